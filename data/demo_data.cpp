#include "data/demo_data.h"

#include "core/error.h"
#include "data/lerobot_writer.h"

namespace plimsoll::data {
namespace {

LeRobotWriterOptions writer_options(const DemoDataOptions& options) {
  LeRobotWriterOptions writer;
  writer.fps = options.fps;
  const std::int64_t top = options.table.top_side, wrist = options.table.wrist_side;
  writer.features = {{"observation.images.top", "video", {top, top, 3}, {}},
                     {"observation.images.wrist", "image", {wrist, wrist, 3}, {}},
                     {"observation.state", "float32", {3}, {"x", "y", "closed"}},
                     {"observation.force", "float32", {3}, {"drag_x", "drag_y", "pressure"}},
                     {"action", "float32", {Tabletop::kActionDim}, {"move_x", "move_y", "close"}}};
  return writer;
}

WriterFrame frame_of(TabletopObservation seen, std::vector<double> action) {
  WriterFrame frame;
  frame.numbers["observation.state"].assign(seen.state.begin(), seen.state.end());
  frame.numbers["observation.force"].assign(seen.force.begin(), seen.force.end());
  frame.numbers["action"] = std::move(action);
  frame.images["observation.images.top"] = std::move(seen.top);
  frame.images["observation.images.wrist"] = std::move(seen.wrist);
  return frame;
}

}  // namespace

DemoDataTotals write_demo_dataset(const std::string& root, const DemoDataOptions& options) {
  if (options.episodes < 1 || options.frames_per_episode < 1)
    fail(ExitCode::kUsage, "{} episodes of {} frames were asked for; both must be at least 1", options.episodes,
         options.frames_per_episode);
  if (options.fps < 1) fail(ExitCode::kUsage, "{} frames a second were asked for; it must be at least 1", options.fps);
  Tabletop table(options.table);
  LeRobotWriter writer(root, writer_options(options));
  DemoDataTotals totals;
  for (std::int64_t scene = 0; scene < options.episodes; ++scene) {
    table.reset(scene);
    totals.heavy_episodes += table.heavy() ? 1 : 0;
    for (std::int64_t i = 0; i < options.frames_per_episode; ++i) {
      const auto action = table.expert_action();
      writer.add(frame_of(table.observe(), action), table.instruction());
      table.step(action);
    }
    writer.end_episode();
  }
  writer.finish();
  totals.episodes = writer.episodes();
  totals.frames = writer.frames();
  return totals;
}

}  // namespace plimsoll::data
