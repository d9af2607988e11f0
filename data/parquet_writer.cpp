#include "data/parquet_writer.h"

#include <arrow/api.h>
#include <arrow/io/file.h>
#include <arrow/util/key_value_metadata.h>
#include <parquet/arrow/writer.h>

#include "core/error.h"

namespace plimsoll::data {
namespace {

using arrow::field;

std::shared_ptr<arrow::DataType> list_of(std::shared_ptr<arrow::DataType> type) {
  return arrow::list(field("element", std::move(type)));
}

std::shared_ptr<arrow::DataType> arrow_type(const ColumnSpec& column) {
  switch (column.type) {
    case ColumnType::kInteger:
      return arrow::int64();
    case ColumnType::kFloat:
      return arrow::float32();
    case ColumnType::kDouble:
      return arrow::float64();
    case ColumnType::kText:
      return arrow::utf8();
    case ColumnType::kFloats:
      return arrow::fixed_size_list(field("element", arrow::float32()), column.width);
    case ColumnType::kDoubles:
      return list_of(arrow::float64());
    case ColumnType::kIntegers:
      return list_of(arrow::int64());
    case ColumnType::kTexts:
      return list_of(arrow::utf8());
    case ColumnType::kChannels:
      return list_of(list_of(list_of(arrow::float64())));
    case ColumnType::kImage:
      break;
  }
  return arrow::struct_({field("bytes", arrow::binary()), field("path", arrow::utf8())});
}

template <class Builder>
Builder& as(arrow::ArrayBuilder& builder) {
  return dynamic_cast<Builder&>(builder);
}

arrow::Status append_floats(arrow::ArrayBuilder& builder, const std::vector<double>& values) {
  auto& list = as<arrow::FixedSizeListBuilder>(builder);
  ARROW_RETURN_NOT_OK(list.Append());
  for (const double value : values)
    ARROW_RETURN_NOT_OK(as<arrow::FloatBuilder>(*list.value_builder()).Append(static_cast<float>(value)));
  return arrow::Status::OK();
}

template <class Builder, class T>
arrow::Status append_list(arrow::ArrayBuilder& builder, const std::vector<T>& values) {
  auto& list = as<arrow::ListBuilder>(builder);
  ARROW_RETURN_NOT_OK(list.Append());
  for (const T& value : values) ARROW_RETURN_NOT_OK(as<Builder>(*list.value_builder()).Append(value));
  return arrow::Status::OK();
}

arrow::Status append_channels(arrow::ArrayBuilder& builder, const std::vector<double>& values) {
  auto& channels = as<arrow::ListBuilder>(builder);
  ARROW_RETURN_NOT_OK(channels.Append());
  for (const double value : values) {
    auto& rows = as<arrow::ListBuilder>(*channels.value_builder());
    ARROW_RETURN_NOT_OK(rows.Append());
    ARROW_RETURN_NOT_OK(append_list<arrow::DoubleBuilder>(*rows.value_builder(), std::vector{value}));
  }
  return arrow::Status::OK();
}

arrow::Status append_image(arrow::ArrayBuilder& builder, const std::vector<std::uint8_t>& bytes) {
  auto& structure = as<arrow::StructBuilder>(builder);
  ARROW_RETURN_NOT_OK(structure.Append());
  ARROW_RETURN_NOT_OK(as<arrow::BinaryBuilder>(*structure.field_builder(0))
                          .Append(bytes.data(), static_cast<std::int32_t>(bytes.size())));
  return as<arrow::StringBuilder>(*structure.field_builder(1)).AppendNull();
}

arrow::Status append_cell(arrow::ArrayBuilder& builder, ColumnType type, const Cell& cell) {
  switch (type) {
    case ColumnType::kInteger:
      return as<arrow::Int64Builder>(builder).Append(std::get<std::int64_t>(cell));
    case ColumnType::kFloat:
      return as<arrow::FloatBuilder>(builder).Append(static_cast<float>(std::get<double>(cell)));
    case ColumnType::kDouble:
      return as<arrow::DoubleBuilder>(builder).Append(std::get<double>(cell));
    case ColumnType::kText:
      return as<arrow::StringBuilder>(builder).Append(std::get<std::string>(cell));
    case ColumnType::kFloats:
      return append_floats(builder, std::get<std::vector<double>>(cell));
    case ColumnType::kDoubles:
      return append_list<arrow::DoubleBuilder>(builder, std::get<std::vector<double>>(cell));
    case ColumnType::kIntegers:
      return append_list<arrow::Int64Builder>(builder, std::get<std::vector<std::int64_t>>(cell));
    case ColumnType::kTexts:
      return append_list<arrow::StringBuilder>(builder, std::get<std::vector<std::string>>(cell));
    case ColumnType::kChannels:
      return append_channels(builder, std::get<std::vector<double>>(cell));
    case ColumnType::kImage:
      break;
  }
  return append_image(builder, std::get<std::vector<std::uint8_t>>(cell));
}

std::shared_ptr<parquet::WriterProperties> properties_for(const std::vector<ColumnSpec>& columns) {
  parquet::WriterProperties::Builder builder;
  builder.compression(arrow::Compression::SNAPPY);
  for (const ColumnSpec& column : columns) {
    if (column.type == ColumnType::kImage)
      builder.disable_dictionary(column.name + ".bytes")->disable_statistics(column.name + ".bytes");
  }
  return builder.build();
}

}  // namespace

struct ParquetWriter::Parts {
  Parts(const std::string& file, std::vector<ColumnSpec> specs, std::int64_t group,
        const std::map<std::string, std::string>& metadata)
      : path(file), columns(std::move(specs)), rows_per_group(group) {
    std::vector<std::shared_ptr<arrow::Field>> fields;
    for (const ColumnSpec& column : columns) fields.push_back(field(column.name, arrow_type(column)));
    auto pairs = std::make_shared<arrow::KeyValueMetadata>();
    for (const auto& [key, value] : metadata) pairs->Append(key, value);
    schema = arrow::schema(fields, pairs);
    for (const auto& one : fields)
      check(arrow::MakeBuilder(arrow::default_memory_pool(), one->type(), &builders.emplace_back()));
    output = value_of(arrow::io::FileOutputStream::Open(path));
    const auto arrow_properties = parquet::ArrowWriterProperties::Builder().store_schema()->build();
    writer = value_of(parquet::arrow::FileWriter::Open(*schema, arrow::default_memory_pool(), output,
                                                       properties_for(columns), arrow_properties));
  }

  void check(const arrow::Status& status) const {
    if (!status.ok()) fail(ExitCode::kData, "{}: cannot be written: {}", path, status.message());
  }
  template <class T>
  T value_of(arrow::Result<T> result) const {
    check(result.status());
    return std::move(result).ValueUnsafe();
  }

  void flush() {
    if (pending == 0) return;
    std::vector<std::shared_ptr<arrow::Array>> arrays;
    for (auto& builder : builders) check(builder->Finish(&arrays.emplace_back()));
    check(writer->WriteTable(*arrow::Table::Make(schema, arrays, pending), rows_per_group));
    pending = 0;
  }

  std::string path;
  std::vector<ColumnSpec> columns;
  std::int64_t rows_per_group, pending = 0, rows = 0;
  std::shared_ptr<arrow::Schema> schema;
  std::vector<std::unique_ptr<arrow::ArrayBuilder>> builders;
  std::shared_ptr<arrow::io::FileOutputStream> output;
  std::unique_ptr<parquet::arrow::FileWriter> writer;
};

ParquetWriter::ParquetWriter(const std::string& path, std::vector<ColumnSpec> columns, std::int64_t rows_per_group,
                             const std::map<std::string, std::string>& metadata)
    : parts_(std::make_unique<Parts>(path, std::move(columns), rows_per_group, metadata)) {}
ParquetWriter::~ParquetWriter() = default;

void ParquetWriter::add(const std::vector<Cell>& row) {
  for (std::size_t i = 0; i < row.size(); ++i)
    parts_->check(append_cell(*parts_->builders[i], parts_->columns[i].type, row[i]));
  ++parts_->rows;
  if (++parts_->pending >= parts_->rows_per_group) parts_->flush();
}

void ParquetWriter::finish() {
  parts_->flush();
  parts_->check(parts_->writer->Close());
  parts_->check(parts_->output->Close());
}

std::int64_t ParquetWriter::rows() const { return parts_->rows; }

}  // namespace plimsoll::data
