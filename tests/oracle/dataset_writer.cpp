// Writes a LeRobot dataset as `plimsoll demo-data` does not, for the library to read (test_lerobot_library.py): numbers
// and pictures in several files, cut at different episodes; two videos; a feature of one value; an episode that goes to
// another task and comes back.
//
//   dataset_writer FOLDER

#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "data/demo_data.h"
#include "data/lerobot_writer.h"
#include "data/tabletop.h"

namespace {

namespace data = plimsoll::data;

constexpr std::int64_t kEpisodes = 8, kFrames = 6;
constexpr const char* kTop = "observation.images.top";
constexpr const char* kSide = "observation.images.side";
constexpr const char* kOtherTask = "wait for the next piece \xF0\x9F\x8D\xB5";

data::LeRobotWriterOptions several_files(const data::TabletopOptions& table) {
  const std::int64_t top = table.top_side, wrist = table.wrist_side;
  data::LeRobotWriterOptions options;
  options.features = {{kTop, "video", {top, top, 3}, {}},
                      {kSide, "video", {top, top, 3}, {}},
                      {"observation.images.wrist", "image", {wrist, wrist, 3}, {}},
                      {"observation.state", "float32", {3}, {"x", "y", "closed"}},
                      {"observation.force", "float32", {3}, {}},
                      {"observation.level", "float32", {1}, {}},
                      {"action", "float32", {data::Tabletop::kActionDim}, {}}};
  options.frames_per_data_file = 2 * kFrames;
  options.frames_per_video_file = 3 * kFrames;
  options.rows_per_group = 4;
  return options;
}

data::Image inverted(data::Image image) {
  for (std::uint8_t& value : image.pixels) value = static_cast<std::uint8_t>(255 - value);
  return image;
}

data::Frame frame_of(const data::Tabletop& table, std::vector<double> action, std::int64_t level) {
  data::Frame frame = data::demo_frame(table.observe(), std::move(action));
  frame.images[kSide] = inverted(frame.images.at(kTop));
  frame.numbers["observation.level"] = {static_cast<double>(level) / 4};
  return frame;
}

void write_dataset(const std::string& folder) {
  data::TabletopOptions scenes;
  scenes.seed = 5;
  scenes.difficulty = data::Difficulty::kPermuted;
  data::Tabletop table(scenes);
  data::LeRobotWriter writer(folder, several_files(scenes));
  for (std::int64_t scene = 0; scene < kEpisodes; ++scene) {
    table.reset(scene);
    for (std::int64_t i = 0; i < kFrames; ++i) {
      const bool elsewhere = scene == 1 && (i == 2 || i == 3);
      const std::vector<double> action = table.expert_action();
      writer.add(frame_of(table, action, scene * kFrames + i), elsewhere ? kOtherTask : table.instruction());
      table.step(action);
    }
    writer.end_episode();
  }
  writer.finish();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: dataset_writer FOLDER\n", stderr);
    return static_cast<int>(plimsoll::ExitCode::kUsage);
  }
  try {
    write_dataset(argv[1]);
    return 0;
  } catch (const plimsoll::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
