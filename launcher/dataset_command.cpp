// `plimsoll dataset show`: what the reader makes of single rows, for people and for comparisons with other readers.
// `plimsoll dataset check`: everything that is wrong with a dataset.

#include <charconv>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/file.h"
#include "core/safetensors.h"
#include "data/lerobot_check.h"
#include "data/lerobot_dataset.h"
#include "launcher/commands.h"
#include "launcher/options.h"

namespace plimsoll {
namespace {

std::vector<std::int64_t> parse_indices(const std::string& text, std::int64_t size) {
  std::vector<std::int64_t> indices;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    std::int64_t value = -1;
    const auto [end, error] = std::from_chars(text.data() + at, text.data() + comma, value);
    if (error != std::errc() || end != text.data() + comma || value < 0 || value >= size)
      fail(ExitCode::kUsage,
           "--indices: \"{}\" is no frame of the dataset; give numbers from 0 to {}, separated by commas",
           text.substr(at, comma - at), size - 1);
    indices.push_back(value);
    at = comma + 1;
  }
  return indices;
}

/// Tensors of the output, with their bytes.
class Tensors {
 public:
  template <class T>
  void add(std::string name, const char* dtype, std::vector<std::int64_t> shape, std::span<const T> values) {
    const auto bytes = std::as_bytes(values);
    kept_.emplace_back(bytes.begin(), bytes.end());
    sources_.push_back({std::move(name), dtype, std::move(shape), {}});
  }
  void write(const std::string& path) {
    for (std::size_t i = 0; i < sources_.size(); ++i) sources_[i].bytes = kept_[i];
    write_safetensors(path, sources_, {{"format", "pt"}}, ExitCode::kData);
  }

 private:
  std::vector<std::vector<std::byte>> kept_;
  std::vector<TensorSource> sources_;
};

/// One row of the dataset under the key prefix "000017/".
class Row {
 public:
  Row(const data::LeRobotDataset& dataset, std::int64_t index, Tensors& out)
      : dataset_(dataset), index_(index), out_(out) {}

  void add_features() {
    for (const data::LeRobotFeature& feature : dataset_.info().features) {
      if (feature.kind != data::FeatureKind::kNumbers) {
        add_picture(feature.name);
      } else if (feature.name != "action") {
        out_.add(key(feature.name), "F32", shape_of(feature), dataset_.values(dataset_.numbers(feature.name), index_));
      }
    }
  }

  void add_chunk(std::int64_t chunk) {
    const data::LeRobotFeature* action = dataset_.info().find("action");
    if (!action) return;
    const data::LeRobotEpisode& episode = dataset_.episode_of(index_);
    std::vector<float> actions;
    std::vector<std::uint8_t> is_pad;
    for (std::int64_t i = index_; i < index_ + chunk; ++i) {
      const auto row = dataset_.values(dataset_.numbers("action"), std::min(i, episode.end - 1));
      actions.insert(actions.end(), row.begin(), row.end());
      is_pad.push_back(i >= episode.end ? 1 : 0);
    }
    out_.add<float>(key("action"), "F32", {chunk, action->width()}, actions);
    out_.add<std::uint8_t>(key("action_is_pad"), "U8", {chunk}, is_pad);
  }

  void add_index() {
    const data::RowIndex row = dataset_.row(index_);
    out_.add<float>(key("timestamp"), "F32", {}, {&row.timestamp, 1});
    const std::pair<const char*, const std::int64_t*> integers[] = {{"index", &row.index},
                                                                    {"frame_index", &row.frame_index},
                                                                    {"episode_index", &row.episode_index},
                                                                    {"task_index", &row.task_index}};
    for (const auto& [name, value] : integers) out_.add<std::int64_t>(key(name), "I64", {}, {value, 1});
  }

  std::string number() const { return fmt::format("{:06}", index_); }

 private:
  std::string key(const std::string& name) const { return number() + "/" + name; }

  /// As LeRobot hands it out: a feature of shape [1] is a scalar.
  static std::vector<std::int64_t> shape_of(const data::LeRobotFeature& feature) {
    return feature.shape == std::vector<std::int64_t>{1} ? std::vector<std::int64_t>{} : feature.shape;
  }

  void add_picture(const std::string& camera) {
    const data::Image image = dataset_.image(dataset_.camera(camera), index_);
    out_.add<std::uint8_t>(key(camera), "U8", {image.height, image.width, 3}, image.pixels);
  }

  const data::LeRobotDataset& dataset_;
  std::int64_t index_;
  Tensors& out_;
};

/// What normalisation goes by: as stored or, of format v2.1, put together from the episodes'.
nlohmann::ordered_json statistics_json(const data::LeRobotInfo& info) {
  auto json = nlohmann::ordered_json::object();
  for (const auto& [feature, statistics] : info.statistics) {
    for (const auto& [name, values] : data::kStatistics) {
      if (!(statistics.*values).empty()) json[feature][name] = statistics.*values;
    }
  }
  return json;
}

int show(const std::string& root, const cxxopts::ParseResult& parsed) {
  const auto chunk = parsed["chunk"].as<std::int64_t>();
  if (chunk < 1 || chunk > 1 << 20) fail(ExitCode::kUsage, "--chunk is {}, but must be at least 1", chunk);
  const std::filesystem::path out = required(parsed, "out");
  if (out.extension() != ".safetensors")
    fail(ExitCode::kUsage, "--out is \"{}\", but must end in .safetensors", out.string());
  const data::LeRobotDataset dataset(root);
  Tensors tensors;
  nlohmann::ordered_json texts = nlohmann::ordered_json::object();
  for (const std::int64_t index : parse_indices(required(parsed, "indices"), dataset.size())) {
    Row row(dataset, index, tensors);
    if (texts.contains(row.number())) continue;
    row.add_features();
    row.add_chunk(chunk);
    row.add_index();
    texts[row.number()] = dataset.task(index);
  }
  tensors.write(out.string());
  write_file_durably(std::filesystem::path(out).replace_extension(".json"),
                     texts.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n", ExitCode::kData);
  if (parsed.count("statistics"))
    write_file_durably(parsed["statistics"].as<std::string>(), statistics_json(dataset.info()).dump(2) + "\n",
                       ExitCode::kData);
  return 0;
}

int check(const std::string& root, bool as_json) {
  const data::DatasetReport report = data::check_lerobot_dataset(root);
  if (as_json) {
    const nlohmann::ordered_json json{{"episodes", report.episodes},
                                      {"frames", report.frames},
                                      {"tasks", report.tasks},
                                      {"faults", report.faults},
                                      {"warnings", report.warnings}};
    fmt::print("{}\n", json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
  } else {
    for (const auto& fault : report.faults) fmt::print("fault    {}\n", fault);
    for (const auto& warning : report.warnings) fmt::print("warning  {}\n", warning);
    fmt::print("{}: {} episodes, {} frames, {} tasks: {} fault{}, {} warning{}\n", root, report.episodes, report.frames,
               report.tasks, report.faults.size(), report.faults.size() == 1 ? "" : "s", report.warnings.size(),
               report.warnings.size() == 1 ? "" : "s");
  }
  return static_cast<int>(report.faults.empty() ? ExitCode::kDone : ExitCode::kData);
}

}  // namespace

int run_dataset(const std::vector<std::string>& args) {
  cxxopts::Options options(
      "plimsoll dataset",
      "show DIR: write single rows of a LeRobot dataset as safetensors, and their task texts beside it as JSON\n"
      "  check DIR: read all of it and list everything that is wrong; exit code 4 when anything is");
  options.add_options()("json", "check: print JSON")("what", "show or check", cxxopts::value<std::string>())(
      "dir", "Dataset", cxxopts::value<std::string>())("indices", "Global frame numbers, separated by commas",
                                                       cxxopts::value<std::string>())(
      "chunk", "Actions from each frame on; rows past the episode's end repeat its last",
      cxxopts::value<std::int64_t>()->default_value("1"))(
      "out", "File to write, F.safetensors; task texts go to F.json", cxxopts::value<std::string>())(
      "statistics", "File to write with the statistics that normalisation goes by, as JSON",
      cxxopts::value<std::string>());
  options.parse_positional({"what", "dir"});
  options.positional_help("show|check DIR");
  const auto parsed = parse_options(options, args);
  if (!parsed) return 0;
  const std::string what = required(*parsed, "what");
  if (what == "check") return check(required(*parsed, "dir"), parsed->count("json") > 0);
  if (what != "show") fail(ExitCode::kUsage, "plimsoll dataset: \"{}\" is not known; it knows: show, check", what);
  return show(required(*parsed, "dir"), *parsed);
}

}  // namespace plimsoll
