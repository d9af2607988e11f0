#include "data/parquet_table.h"

#include <arrow/api.h>
#include <arrow/extension_type.h>
#include <arrow/io/file.h>
#include <arrow/util/float16.h>
#include <parquet/api/reader.h>
#include <parquet/arrow/reader.h>

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "core/error.h"

namespace plimsoll::data {
namespace {

constexpr std::int64_t kBatchRows = 1024;

/// Where values come from, for errors.
struct Place {
  const std::string& path;
  const std::string& column;

  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) const {
    fail(ExitCode::kData, "{}: column {}: {}", path, column, fmt::format(text, std::forward<Args>(args)...));
  }
  void check(const arrow::Status& status) const {
    if (!status.ok()) refuse("cannot be read: {}; the file is damaged, copy it again", status.message());
  }
};

/// The innermost values of rows of nested lists, and how many each row has.
struct Leaves {
  std::shared_ptr<arrow::Array> values;
  std::vector<std::int64_t> counts;
};

/// Merges the counts of `List` elements into those of rows and steps into the list.
template <class List>
bool descend(const Place& place, Leaves& leaves, std::int64_t first_row) {
  const auto* list = dynamic_cast<const List*>(leaves.values.get());
  if (!list) return false;
  std::int64_t element = 0;
  for (std::size_t row = 0; row < leaves.counts.size(); ++row) {
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < leaves.counts[row]; ++i, ++element) {
      if (list->IsNull(element)) place.refuse("row {} is null", first_row + static_cast<std::int64_t>(row));
      count += list->value_length(element);
    }
    leaves.counts[row] = count;
  }
  auto flat = list->Flatten();
  place.check(flat.status());
  leaves.values = *flat;
  return true;
}

Leaves leaves_of(const Place& place, std::shared_ptr<arrow::Array> array, std::int64_t first_row) {
  Leaves leaves{std::move(array), {}};
  leaves.counts.assign(static_cast<std::size_t>(leaves.values->length()), 1);
  for (;;) {
    if (const auto* extension = dynamic_cast<const arrow::ExtensionArray*>(leaves.values.get())) {
      leaves.values = extension->storage();
    } else if (!descend<arrow::ListArray>(place, leaves, first_row) &&
               !descend<arrow::LargeListArray>(place, leaves, first_row) &&
               !descend<arrow::FixedSizeListArray>(place, leaves, first_row)) {
      return leaves;
    }
  }
}

/// Rows of `width` values each, the first of them the file's row `first`: which row a value is of.
struct EvenRows {
  std::int64_t first = 0, width = 1;
  std::int64_t of(std::int64_t value) const { return first + value / std::max<std::int64_t>(1, width); }
};

template <class Out, class In>
Out convert(const Place& place, std::int64_t row, In value) {
  if constexpr (std::is_integral_v<Out> && std::is_floating_point_v<In>) {
    if (!(std::abs(value) < 0x1p53) || std::trunc(value) != value)
      place.refuse("row {} holds {}, which is not a whole number", row, value);
  }
  return static_cast<Out>(value);
}

template <class Array, class Out>
bool append_as(const Place& place, const arrow::Array& array, const EvenRows& rows, std::vector<Out>& out) {
  const auto* typed = dynamic_cast<const Array*>(&array);
  if (!typed) return false;
  for (std::int64_t i = 0; i < typed->length(); ++i) {
    if constexpr (std::is_same_v<Array, arrow::HalfFloatArray>) {
      out.push_back(convert<Out>(place, rows.of(i), arrow::util::Float16::FromBits(typed->Value(i)).ToFloat()));
    } else {
      out.push_back(convert<Out>(place, rows.of(i), typed->Value(i)));
    }
  }
  return true;
}

template <class... Arrays, class Out>
bool append_as_any(const Place& place, const arrow::Array& array, const EvenRows& rows, std::vector<Out>& out) {
  return (append_as<Arrays>(place, array, rows, out) || ...);
}

template <class Out>
void append_numbers(const Place& place, const std::shared_ptr<arrow::Array>& array, std::int64_t first_row,
                    std::int64_t width, std::vector<Out>& out) {
  const Leaves leaves = leaves_of(place, array, first_row);
  const arrow::Type::type type = leaves.values->type_id();
  if (!arrow::is_integer(type) && !arrow::is_floating(type) && type != arrow::Type::BOOL)
    place.refuse("holds values of type {}, but numbers are needed", leaves.values->type()->ToString());
  for (std::size_t row = 0; row < leaves.counts.size(); ++row) {
    if (leaves.counts[row] != width)
      place.refuse("row {} has {} values, but meta/info.json says {}", first_row + static_cast<std::int64_t>(row),
                   leaves.counts[row], width);
  }
  const EvenRows rows{first_row, width};
  if (leaves.values->null_count() > 0) {
    std::int64_t i = 0;
    while (!leaves.values->IsNull(i)) ++i;
    place.refuse("row {} is null", rows.of(i));
  }
  append_as_any<arrow::FloatArray, arrow::DoubleArray, arrow::Int64Array, arrow::Int32Array, arrow::BooleanArray,
                arrow::UInt8Array, arrow::Int8Array, arrow::Int16Array, arrow::UInt16Array, arrow::UInt32Array,
                arrow::UInt64Array, arrow::HalfFloatArray>(place, *leaves.values, rows, out);
}

/// `row_of(i)` is the row of text i.
template <class RowOf>
void append_texts(const Place& place, const arrow::Array& array, const RowOf& row_of, std::vector<std::string>& out) {
  const auto append_all = [&](const auto& strings) {
    for (std::int64_t i = 0; i < strings.length(); ++i) {
      if (strings.IsNull(i)) place.refuse("row {} holds a null text; give it a text", row_of(i));
      out.push_back(strings.GetString(i));
    }
  };
  if (const auto* plain = dynamic_cast<const arrow::StringArray*>(&array)) return append_all(*plain);
  if (const auto* large = dynamic_cast<const arrow::LargeStringArray*>(&array)) return append_all(*large);
  place.refuse("holds values of type {}, but texts are needed", array.type()->ToString());
}

/// The type in a column's innermost lists.
const arrow::DataType& innermost(const arrow::DataType& type) {
  if (const auto* extension = dynamic_cast<const arrow::ExtensionType*>(&type))
    return innermost(*extension->storage_type());
  if (const auto* list = dynamic_cast<const arrow::BaseListType*>(&type)) return innermost(*list->value_type());
  return type;
}

/// Arrow calls integers and bool as info.json does, and other types otherwise.
std::string dtype_name(const arrow::DataType& type) {
  switch (type.id()) {
    case arrow::Type::HALF_FLOAT:
      return "float16";
    case arrow::Type::FLOAT:
      return "float32";
    case arrow::Type::DOUBLE:
      return "float64";
    case arrow::Type::STRING:
    case arrow::Type::LARGE_STRING:
      return "string";
    default:
      return type.ToString();
  }
}

}  // namespace

struct ParquetTable::Parts {
  /// Parquet throws, Arrow returns: both become our error.
  template <class Do>
  auto guarded(const std::string& column, Do&& action) const {
    const Place place{path, column};
    try {
      return action(place);
    } catch (const parquet::ParquetException& error) {
      fail(ExitCode::kData, "{}: {}{}cannot be read: {}; the file is damaged, copy it again", path, column,
           column.empty() ? "" : ": ", error.what());
    }
  }

  explicit Parts(const std::string& file) : path(file) {
    guarded("", [&](const Place&) { open(); });
  }

  void open() {
    auto input = arrow::io::ReadableFile::Open(path);
    if (!input.ok()) fail(ExitCode::kData, "{}: cannot be opened: {}", path, input.status().message());
    parquet::arrow::FileReaderBuilder builder;
    auto properties = parquet::default_reader_properties();
    properties
        .enable_buffered_stream();  // else a whole column chunk, pictures of a whole file perhaps, is read at once
    properties.set_buffer_size(64 << 10);
    auto status = builder.Open(*input, properties);
    if (status.ok()) status = builder.Build(&reader);
    if (status.ok()) status = reader->GetSchema(&schema);
    if (!status.ok())
      fail(ExitCode::kData, "{}: is no complete parquet file: {}; copy it again", path, status.message());
    for (const auto& field : schema->fields()) names.push_back(field->name());
  }

  int field(const Place& place) const {
    const int index = schema->GetFieldIndex(place.column);
    if (index < 0) place.refuse("is missing; the file has: {}", fmt::join(names, ", "));
    return index;
  }

  /// `use(first row, array)` over the column in batches.
  template <class Use>
  void for_each_batch(const std::string& column, Use&& use) const {
    guarded(column, [&](const Place& place) {
      std::unique_ptr<parquet::arrow::ColumnReader> batches;
      place.check(reader->GetColumn(field(place), &batches));
      const std::int64_t total = rows();
      for (std::int64_t row = 0; row < total;) {
        std::shared_ptr<arrow::ChunkedArray> chunks;
        place.check(batches->NextBatch(std::min(kBatchRows, total - row), &chunks));
        if (!chunks || chunks->length() == 0)
          place.refuse("ends after row {} of {}; the file is damaged, copy it again", row, total);
        for (const auto& array : chunks->chunks()) {
          use(place, row, array);
          row += array->length();
        }
      }
    });
  }

  std::int64_t rows() const { return reader->parquet_reader()->metadata()->num_rows(); }

  std::string path;
  std::unique_ptr<parquet::arrow::FileReader> reader;
  std::shared_ptr<arrow::Schema> schema;
  std::vector<std::string> names;
};

ParquetTable::ParquetTable(const std::string& path) : parts_(std::make_unique<Parts>(path)) {}
ParquetTable::~ParquetTable() = default;
ParquetTable::ParquetTable(ParquetTable&&) noexcept = default;

const std::string& ParquetTable::path() const { return parts_->path; }
std::int64_t ParquetTable::rows() const { return parts_->rows(); }
const std::vector<std::string>& ParquetTable::columns() const { return parts_->names; }
bool ParquetTable::has(const std::string& column) const { return parts_->schema->GetFieldIndex(column) >= 0; }

std::string ParquetTable::dtype(const std::string& column) const {
  return parts_->guarded(column, [&](const Place& place) {
    return dtype_name(innermost(*parts_->schema->field(parts_->field(place))->type()));
  });
}

namespace {
constexpr auto kAppendNumbers = [](std::int64_t width, auto& out) {
  return [width, &out](const Place& place, std::int64_t row, const std::shared_ptr<arrow::Array>& array) {
    append_numbers(place, array, row, width, out);
  };
};
}  // namespace

void ParquetTable::append(const std::string& column, std::int64_t width, std::vector<float>& out) const {
  parts_->for_each_batch(column, kAppendNumbers(width, out));
}
void ParquetTable::append(const std::string& column, std::int64_t width, std::vector<double>& out) const {
  parts_->for_each_batch(column, kAppendNumbers(width, out));
}
void ParquetTable::append(const std::string& column, std::int64_t width, std::vector<std::int64_t>& out) const {
  parts_->for_each_batch(column, kAppendNumbers(width, out));
}

std::vector<std::string> ParquetTable::texts(const std::string& column) const {
  std::vector<std::string> out;
  parts_->for_each_batch(column, [&](const Place& place, std::int64_t first, const auto& array) {
    append_texts(
        place, *array, [first](std::int64_t i) { return first + i; }, out);
  });
  return out;
}

std::vector<std::vector<std::string>> ParquetTable::text_lists(const std::string& column) const {
  std::vector<std::vector<std::string>> out;
  parts_->for_each_batch(column, [&](const Place& place, std::int64_t first, const auto& array) {
    const Leaves leaves = leaves_of(place, array, first);
    const auto row_of = [&](std::int64_t text) {
      std::int64_t row = first;
      for (const std::int64_t count : leaves.counts) {
        if (text < count) break;
        text -= count;
        ++row;
      }
      return row;
    };
    std::vector<std::string> flat;
    append_texts(place, *leaves.values, row_of, flat);
    auto next = flat.begin();
    for (const std::int64_t count : leaves.counts) {
      out.emplace_back(next, next + count);
      next += count;
    }
  });
  return out;
}

void ParquetTable::for_each_image(const std::string& column, const UseBytes& use) const {
  parts_->for_each_batch(column, [&](const Place& place, std::int64_t first,
                                     const std::shared_ptr<arrow::Array>& array) {
    const auto* rows = dynamic_cast<const arrow::StructArray*>(array.get());
    const auto bytes = rows ? std::dynamic_pointer_cast<arrow::BinaryArray>(rows->GetFieldByName("bytes")) : nullptr;
    if (!bytes)
      place.refuse("is of type {}, but an image column is struct<bytes: binary, path: string>",
                   array->type()->ToString());
    for (std::int64_t i = 0; i < bytes->length(); ++i) {
      if (rows->IsNull(i) || bytes->IsNull(i))
        place.refuse("row {} holds no bytes; pictures in files of their own are not read", first + i);
      const auto view = bytes->GetView(i);
      use(first + i, {reinterpret_cast<const std::uint8_t*>(view.data()), view.size()});
    }
  });
}

std::vector<std::uint8_t> ParquetTable::image(const std::string& column, std::int64_t row) const {
  return parts_->guarded(column, [&](const Place& place) {
    auto& file = *parts_->reader->parquet_reader();
    const auto metadata = file.metadata();
    const int leaf = metadata->schema()->ColumnIndex(column + ".bytes");
    if (leaf < 0) place.refuse("is missing, or no struct<bytes: binary, path: string>");
    int group = 0;
    std::int64_t skip = row;
    while (group < metadata->num_row_groups() && skip >= metadata->RowGroup(group)->num_rows())
      skip -= metadata->RowGroup(group++)->num_rows();
    if (row < 0 || group == metadata->num_row_groups()) place.refuse("has no row {}", row);
    const auto values = std::dynamic_pointer_cast<parquet::ByteArrayReader>(file.RowGroup(group)->Column(leaf));
    if (!values) place.refuse("holds no bytes");
    std::int16_t definition = 0, repetition = 0;
    parquet::ByteArray bytes;
    std::int64_t read = 0;
    if (values->Skip(skip) == skip) values->ReadBatch(1, &definition, &repetition, &bytes, &read);
    if (read != 1) place.refuse("row {} holds no bytes; pictures in files of their own are not read", row);
    return std::vector<std::uint8_t>(bytes.ptr, bytes.ptr + bytes.len);
  });
}

std::optional<std::vector<ImageChunk>> ParquetTable::image_chunks(const std::string& column) const {
  return parts_->guarded(column, [&](const Place&) -> std::optional<std::vector<ImageChunk>> {
    const auto metadata = parts_->reader->parquet_reader()->metadata();
    const int leaf = metadata->schema()->ColumnIndex(column + ".bytes");
    if (leaf < 0) return std::nullopt;
    const parquet::ColumnDescriptor* values = metadata->schema()->Column(leaf);
    if (values->physical_type() != parquet::Type::BYTE_ARRAY || values->max_repetition_level() > 0) return std::nullopt;
    std::vector<ImageChunk> chunks;
    for (int number = 0; number < metadata->num_row_groups(); ++number) {
      const auto group = metadata->RowGroup(number);
      const auto chunk = group->ColumnChunk(leaf);
      const bool snappy = chunk->compression() == arrow::Compression::SNAPPY;
      if (!snappy && chunk->compression() != arrow::Compression::UNCOMPRESSED) return std::nullopt;
      if (chunk->crypto_metadata() || !chunk->file_path().empty()) return std::nullopt;
      std::int64_t begin = chunk->data_page_offset();
      if (chunk->has_dictionary_page() && chunk->dictionary_page_offset() > 0)
        begin = std::min(begin, chunk->dictionary_page_offset());
      chunks.push_back(
          {begin, begin + chunk->total_compressed_size(), group->num_rows(), values->max_definition_level(), snappy});
    }
    return chunks;
  });
}

}  // namespace plimsoll::data
