"""Ways to spoil files, each as a person, a disk or a careless tool would."""

import json
import struct

import pyarrow as pa
import pyarrow.parquet as pq


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def remove(file):
    file.unlink()


def empty(file):
    file.write_bytes(b"")


def edit_json(file, change):
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def edit_header(file, change):
    """Rewrites a safetensors header: change(header) edits it in place, or returns the text to put there."""
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:8 + size])
    text = (change(header) or json.dumps(header)).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size:])


def parquet_of(dataset):
    return dataset / "data" / "chunk-000" / "file-000.parquet"


def edit_column(dataset, name, change):
    """change(list of rows) edits the values of a column in place; its type and the file's metadata stay."""
    file = parquet_of(dataset)
    table = pq.read_table(file)
    values = table.column(name).to_pylist()
    change(values)
    place = table.schema.get_field_index(name)
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type)), file)


def drop_column(dataset, name):
    file = parquet_of(dataset)
    pq.write_table(pq.read_table(file).drop_columns([name]), file)
