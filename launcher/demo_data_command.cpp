#include <fmt/format.h>

#include <cstdint>

#include "core/error.h"
#include "data/demo_data.h"
#include "launcher/commands.h"
#include "launcher/options.h"

namespace plimsoll {
namespace {

cxxopts::Options describe() {
  cxxopts::Options options("plimsoll demo-data",
                           "Simulate a small tabletop task and write it as a LeRobot v3.0 dataset");
  const data::DemoDataOptions usual;
  const auto whole = [](std::int64_t value) {
    return cxxopts::value<std::int64_t>()->default_value(std::to_string(value));
  };
  options.add_options()("out", "Folder to write; must not exist or be empty", cxxopts::value<std::string>())(
      "episodes", "Scenes, one episode each", whole(usual.episodes))("frames-per-episode", "Frames of an episode",
                                                                     whole(usual.frames_per_episode))(
      "seed", "Seed of scenes and noise", whole(0))("difficulty",
                                                    "Pads: fixed, permuted (colours change places) or anywhere",
                                                    cxxopts::value<std::string>()->default_value("fixed"))(
      "heavy-fraction", "Fraction of episodes with larger images and longer instructions",
      cxxopts::value<double>()->default_value(fmt::format("{}", data::kUsualHeavyFraction)))(
      "noise", "Standard deviation of the expert's action noise",
      cxxopts::value<double>()->default_value(fmt::format("{}", usual.table.action_noise)))(
      "fps", "Frames a second", whole(usual.fps))("top-side", "Pixels of the camera above the table",
                                                  whole(usual.table.top_side))(
      "wrist-side", "Pixels of the camera at the gripper", whole(usual.table.wrist_side))(
      "heavy-wrist-side", "The same in heavy episodes", whole(usual.table.heavy_wrist_side))(
      "shuffled-instructions",
      "Instructions are dealt to the episodes at random: a control that learns nothing from the words");
  return options;
}

data::DemoDataOptions read(const cxxopts::ParseResult& parsed) {
  const auto whole = [&](const char* name) { return parsed[name].as<std::int64_t>(); };
  if (whole("seed") < 0) fail(ExitCode::kUsage, "--seed is {}, but must be at least 0", whole("seed"));
  if (whole("fps") < 1 || whole("fps") > 1000)
    fail(ExitCode::kUsage, "--fps is {}, but must be between 1 and 1000", whole("fps"));
  data::DemoDataOptions result;
  result.episodes = whole("episodes");
  result.frames_per_episode = whole("frames-per-episode");
  result.fps = static_cast<int>(whole("fps"));
  result.shuffled_instructions = parsed.count("shuffled-instructions") > 0;
  result.table = {static_cast<std::uint64_t>(whole("seed")),
                  data::parse_difficulty(parsed["difficulty"].as<std::string>()),
                  whole("top-side"),
                  whole("wrist-side"),
                  whole("heavy-wrist-side"),
                  parsed["heavy-fraction"].as<double>(),
                  parsed["noise"].as<double>()};
  return result;
}

}  // namespace

int run_demo_data(const std::vector<std::string>& args) {
  auto options = describe();
  const auto parsed = parse_options(options, args);
  if (!parsed) return 0;
  const std::string out = required(*parsed, "out");
  const auto totals = data::write_demo_dataset(out, read(*parsed));
  fmt::print("{}: {} episodes ({} heavy), {} frames, LeRobot v3.0\n", out, totals.episodes, totals.heavy_episodes,
             totals.frames);
  return 0;
}

}  // namespace plimsoll
