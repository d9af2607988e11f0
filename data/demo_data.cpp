#include "data/demo_data.h"

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/error.h"
#include "core/file.h"
#include "data/lerobot_info.h"
#include "data/lerobot_json.h"
#include "data/lerobot_writer.h"
#include "data/sample_stream.h"

namespace plimsoll::data {
namespace {

constexpr const char* kTop = "observation.images.top";
constexpr const char* kWrist = "observation.images.wrist";
constexpr const char* kState = "observation.state";
constexpr const char* kForce = "observation.force";
constexpr const char* kAction = "action";

std::vector<WriterFeature> demo_features(const TabletopOptions& table) {
  const std::int64_t top = table.top_side, wrist = table.wrist_side;
  return {{kTop, "video", {top, top, 3}, {}},
          {kWrist, "image", {wrist, wrist, 3}, {}},
          {kState, "float32", {3}, {"x", "y", "closed"}},
          {kForce, "float32", {3}, {"drag_x", "drag_y", "pressure"}},
          {kAction, "float32", {Tabletop::kActionDim}, {"move_x", "move_y", "close"}}};
}

std::string record_file(const std::string& root) { return root + "/meta/tabletop.json"; }

void write_record(const std::string& root, const TabletopOptions& table) {
  const nlohmann::ordered_json json = {{"format", 1},
                                       {"seed", table.seed},
                                       {"difficulty", to_string(table.difficulty)},
                                       {"top_side", table.top_side},
                                       {"wrist_side", table.wrist_side},
                                       {"heavy_wrist_side", table.heavy_wrist_side},
                                       {"heavy_fraction", table.heavy_fraction},
                                       {"action_noise", table.action_noise}};
  write_file_durably(record_file(root), json.dump(2) + "\n", ExitCode::kData);
}

TabletopOptions read_record(const std::string& path) {
  const auto json = read_json(path);
  TabletopOptions table;
  table.seed = entry<std::uint64_t>(json, path, "seed");
  table.top_side = entry<std::int64_t>(json, path, "top_side");
  table.wrist_side = entry<std::int64_t>(json, path, "wrist_side");
  table.heavy_wrist_side = entry<std::int64_t>(json, path, "heavy_wrist_side");
  table.heavy_fraction = entry<double>(json, path, "heavy_fraction");
  table.action_noise = entry<double>(json, path, "action_noise");
  const auto difficulty = entry<std::string>(json, path, "difficulty");
  try {
    table.difficulty = parse_difficulty(difficulty);
    return Tabletop(table), table;  // which looks at the numbers
  } catch (const Error& error) {
    throw Error(ExitCode::kData, path + ": " + error.what());
  }
}

/// Of datasets without a record.
TabletopOptions table_of(const LeRobotInfo& info) {
  TabletopOptions table;
  table.heavy_fraction = kUsualHeavyFraction;
  if (const LeRobotFeature* top = info.find(kTop)) table.top_side = top->shape.front();
  if (const LeRobotFeature* wrist = info.find(kWrist)) table.wrist_side = wrist->shape.front();
  return table;
}

void check_features(const LeRobotInfo& info, const TabletopOptions& table) {
  for (const WriterFeature& wanted : demo_features(table)) {
    const LeRobotFeature* found = info.find(wanted.name);
    if (found && found->shape == wanted.shape) continue;
    fail(ExitCode::kData,
         "{}/meta/info.json: no dataset of `plimsoll demo-data`, whose simulator is the only one there is: \"{}\" {} "
         "where [{}] is expected",
         info.root, wanted.name,
         found ? fmt::format("has the shape [{}]", fmt::join(found->shape, ", ")) : "is missing",
         fmt::join(wanted.shape, ", "));
  }
}

/// What is said in each scene.
std::vector<std::string> instructions_of(const DemoDataOptions& options) {
  Tabletop table(options.table);
  std::vector<std::string> texts;
  for (std::int64_t scene = 0; scene < options.episodes; ++scene) {
    table.reset(scene);
    texts.push_back(table.instruction());
  }
  if (!options.shuffled_instructions) return texts;
  std::vector<std::int64_t> scenes(texts.size());
  std::iota(scenes.begin(), scenes.end(), std::int64_t{0});
  SampleStream order(scenes, options.table.seed);
  std::vector<std::string> shuffled;
  for (std::size_t i = 0; i < texts.size(); ++i) shuffled.push_back(texts[static_cast<std::size_t>(order.at(i))]);
  return shuffled;
}

}  // namespace

Frame demo_frame(TabletopObservation seen, std::vector<double> action) {
  Frame frame;
  frame.numbers[kState].assign(seen.state.begin(), seen.state.end());
  frame.numbers[kForce].assign(seen.force.begin(), seen.force.end());
  if (!action.empty()) frame.numbers[kAction] = std::move(action);
  frame.images[kTop] = std::move(seen.top);
  frame.images[kWrist] = std::move(seen.wrist);
  return frame;
}

DemoDataTotals write_demo_dataset(const std::string& root, const DemoDataOptions& options) {
  if (options.episodes < 1 || options.frames_per_episode < 1)
    fail(ExitCode::kUsage, "{} episodes of {} frames were asked for; both must be at least 1", options.episodes,
         options.frames_per_episode);
  if (options.episodes > kFirstUnseenScene)
    fail(ExitCode::kUsage, "{} episodes were asked for; there are {} scenes to record", options.episodes,
         kFirstUnseenScene);
  if (options.fps < 1) fail(ExitCode::kUsage, "{} frames a second were asked for; it must be at least 1", options.fps);
  Tabletop table(options.table);
  LeRobotWriterOptions writing;
  writing.fps = options.fps;
  writing.features = demo_features(options.table);
  LeRobotWriter writer(root, writing);
  DemoDataTotals totals;
  const std::vector<std::string> instructions = instructions_of(options);
  for (std::int64_t scene = 0; scene < options.episodes; ++scene) {
    table.reset(scene);
    totals.heavy_episodes += table.heavy() ? 1 : 0;
    for (std::int64_t i = 0; i < options.frames_per_episode; ++i) {
      const auto action = table.expert_action();
      writer.add(demo_frame(table.observe(), action), instructions[static_cast<std::size_t>(scene)]);
      table.step(action);
    }
    writer.end_episode();
  }
  write_record(root, options.table);
  writer.finish();
  totals.episodes = writer.episodes();
  totals.frames = writer.frames();
  return totals;
}

DemoDataset read_demo_dataset(const std::string& root) {
  const LeRobotInfo info = read_lerobot_info(root);
  DemoDataset dataset;
  const std::string record = record_file(root);
  dataset.table = std::filesystem::exists(record) ? read_record(record) : table_of(info);
  check_features(info, dataset.table);
  dataset.fps = static_cast<int>(std::lround(info.fps));
  dataset.mean_action = info.statistics_of(*info.find(kAction)).mean;
  if (dataset.mean_action.empty()) fail(ExitCode::kData, "{}/meta: statistics of \"action\": no \"mean\"", root);
  return dataset;
}

}  // namespace plimsoll::data
