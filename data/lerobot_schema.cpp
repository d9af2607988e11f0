#include "data/lerobot_schema.h"

#include <string_view>

namespace plimsoll::data {
namespace {

using Json = nlohmann::ordered_json;

/// Null stands for the count.
struct StatisticColumn {
  const char* name;
  std::vector<double> Summary::*values;
};
constexpr StatisticColumn kColumns[] = {{"min", &Summary::min}, {"max", &Summary::max}, {"mean", &Summary::mean},
                                        {"std", &Summary::std}, {"count", nullptr},     {"q01", &Summary::q01},
                                        {"q10", &Summary::q10}, {"q50", &Summary::q50}, {"q90", &Summary::q90},
                                        {"q99", &Summary::q99}};

bool is_picture(const WriterFeature& feature) { return feature.dtype != "float32"; }

ColumnSpec data_column(const WriterFeature& feature) {
  if (feature.dtype == "image") return {feature.name, ColumnType::kImage};
  if (feature.shape == std::vector<std::int64_t>{1}) return {feature.name, ColumnType::kFloat};
  return {feature.name, ColumnType::kFloats, static_cast<int>(feature.shape.at(0))};
}

Json value_type(const char* dtype) { return {{"dtype", dtype}, {"_type", "Value"}}; }

Json huggingface_type(const WriterFeature& feature) {
  if (feature.dtype == "image") return {{"_type", "Image"}};
  if (feature.shape == std::vector<std::int64_t>{1}) return value_type("float32");
  return {{"feature", value_type("float32")}, {"length", feature.shape.at(0)}, {"_type", "List"}};
}

const char* index_dtype(std::string_view name) { return name == "timestamp" ? "float32" : "int64"; }

Json video_info(const WriterFeature& feature, int fps) {
  return {{"video.height", feature.shape.at(0)},
          {"video.width", feature.shape.at(1)},
          {"video.codec", "h264"},
          {"video.pix_fmt", "yuv420p"},
          {"video.is_depth_map", false},
          {"video.fps", fps},
          {"video.channels", 3},
          {"has_audio", false}};
}

Json feature_json(const WriterFeature& feature, int fps) {
  Json json{{"dtype", feature.dtype}, {"shape", feature.shape}, {"names", nullptr}};
  if (is_picture(feature)) json["names"] = {"height", "width", "channels"};
  if (!feature.names.empty()) json["names"] = feature.names;
  if (feature.dtype == "video") json["info"] = video_info(feature, fps);
  return json;
}

}  // namespace

std::vector<ColumnSpec> data_columns(const std::vector<WriterFeature>& features) {
  std::vector<ColumnSpec> columns;
  for (const WriterFeature& feature : features) {
    if (feature.dtype != "video") columns.push_back(data_column(feature));
  }
  for (const char* name : kIndexFeatures)
    columns.push_back({name, std::string_view(name) == "timestamp" ? ColumnType::kFloat : ColumnType::kInteger});
  return columns;
}

std::map<std::string, std::string> data_metadata(const std::vector<WriterFeature>& features) {
  Json types = Json::object();
  for (const WriterFeature& feature : features) {
    if (feature.dtype != "video") types[feature.name] = huggingface_type(feature);
  }
  for (const char* name : kIndexFeatures) types[name] = value_type(index_dtype(name));
  return {{"huggingface", Json{{"info", {{"features", types}}}}.dump()}};
}

std::map<std::string, std::string> tasks_metadata() {
  const auto column = [](const char* name, const char* field, const char* pandas, const char* numpy) {
    return Json{{"name", name ? Json(name) : Json(nullptr)},
                {"field_name", field},
                {"pandas_type", pandas},
                {"numpy_type", numpy},
                {"metadata", nullptr}};
  };
  const Json pandas{{"index_columns", {"__index_level_0__"}},
                    {"column_indexes", Json::array({{{"name", nullptr},
                                                     {"field_name", nullptr},
                                                     {"pandas_type", "unicode"},
                                                     {"numpy_type", "object"},
                                                     {"metadata", {{"encoding", "UTF-8"}}}}})},
                    {"columns",
                     {column("task_index", "task_index", "int64", "int64"),
                      column(nullptr, "__index_level_0__", "unicode", "object")}},
                    {"attributes", Json::object()},
                    {"creator", {{"library", "plimsoll"}, {"version", "1"}}},
                    {"pandas_version", "2.2.0"}};
  return {{"pandas", pandas.dump()}};
}

std::vector<ColumnSpec> episode_columns(const std::vector<WriterFeature>& features) {
  std::vector<ColumnSpec> columns{{"episode_index"},    {"tasks", ColumnType::kTexts}, {"length"},
                                  {"data/chunk_index"}, {"data/file_index"},           {"dataset_from_index"},
                                  {"dataset_to_index"}};
  for (const WriterFeature& feature : features) {
    if (feature.dtype != "video") continue;
    for (const char* name : {"chunk_index", "file_index"}) columns.push_back({"videos/" + feature.name + "/" + name});
    for (const char* name : {"from_timestamp", "to_timestamp"})
      columns.push_back({"videos/" + feature.name + "/" + name, ColumnType::kDouble});
  }
  const auto add_statistics = [&](const std::string& feature, bool picture) {
    for (const auto& [name, values] : kColumns) {
      const ColumnType type = values == nullptr ? ColumnType::kIntegers
                              : picture         ? ColumnType::kChannels
                                                : ColumnType::kDoubles;
      columns.push_back({"stats/" + feature + "/" + name, type});
    }
  };
  for (const WriterFeature& feature : features) add_statistics(feature.name, is_picture(feature));
  for (const char* name : kIndexFeatures) add_statistics(name, false);
  for (const char* name : {"chunk_index", "file_index"}) columns.push_back({std::string("meta/episodes/") + name});
  return columns;
}

void append_statistics_cells(const Summary& summary, std::vector<Cell>& row) {
  for (const auto& [name, values] : kColumns) {
    if (values == nullptr) {
      row.emplace_back(std::vector<std::int64_t>{summary.count});
    } else {
      row.emplace_back(summary.*values);
    }
  }
}

Json statistics_json(const Summary& summary, bool picture) {
  Json json = Json::object();
  for (const auto& [name, values] : kColumns) {
    Json& list = json[name] = Json::array();
    if (values == nullptr) {
      list.push_back(summary.count);
      continue;
    }
    for (const double value : summary.*values)
      list.push_back(picture ? Json::array({Json::array({value})}) : Json(value));
  }
  return json;
}

Json info_json(const LeRobotWriterOptions& options, const DatasetTotals& totals) {
  Json features = Json::object();
  for (const WriterFeature& feature : options.features) features[feature.name] = feature_json(feature, options.fps);
  for (const char* name : kIndexFeatures)
    features[name] = {{"dtype", index_dtype(name)}, {"shape", Json::array({1})}, {"names", nullptr}};
  bool videos = false;
  for (const WriterFeature& feature : options.features) videos = videos || feature.dtype == "video";
  const Json video_path =
      videos ? Json("videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4") : Json(nullptr);
  return {{"codebase_version", "v3.0"},
          {"robot_type", options.robot_type},
          {"total_episodes", totals.episodes},
          {"total_frames", totals.frames},
          {"total_tasks", totals.tasks},
          {"chunks_size", 1000},
          {"data_files_size_in_mb", 100},
          {"video_files_size_in_mb", 200},
          {"fps", options.fps},
          {"splits", {{"train", "0:" + std::to_string(totals.episodes)}}},
          {"data_path", "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"},
          {"video_path", video_path},
          {"features", features}};
}

}  // namespace plimsoll::data
