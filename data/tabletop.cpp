#include "data/tabletop.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "core/philox.h"

namespace plimsoll::data {
namespace {

constexpr std::array<const char*, 4> kColours{"red", "green", "blue", "yellow"};
constexpr std::array<std::array<std::uint8_t, 3>, 4> kRgb{
    {{214, 48, 40}, {52, 160, 72}, {48, 84, 212}, {232, 204, 44}}};
constexpr std::array<std::uint8_t, 3> kTable{196, 184, 168}, kFloor{72, 72, 76}, kGripper{24, 24, 28},
    kClosedGripper{244, 244, 248};
constexpr double kPadRadius = 0.11, kGripperRadius = 0.05, kStepLength = 0.1, kWristView = 0.4;

// What random(…) is asked for.
enum What : std::uint32_t { kGoal, kHeavy, kStartX, kStartY, kShuffle = 16, kPlaces = 32, kNoise = 4096 };

double squared_distance(double ax, double ay, double bx, double by) {
  return (ax - bx) * (ax - bx) + (ay - by) * (ay - by);
}
double distance(double ax, double ay, double bx, double by) { return std::hypot(ax - bx, ay - by); }

}  // namespace

const char* to_string(Difficulty difficulty) {
  if (difficulty == Difficulty::kFixed) return "fixed";
  return difficulty == Difficulty::kPermuted ? "permuted" : "anywhere";
}

Difficulty parse_difficulty(const std::string& name) {
  for (const Difficulty difficulty : {Difficulty::kFixed, Difficulty::kPermuted, Difficulty::kAnywhere}) {
    if (name == to_string(difficulty)) return difficulty;
  }
  fail(ExitCode::kUsage, "difficulty is \"{}\", but must be one of fixed, permuted, anywhere", name);
}

Tabletop::Tabletop(const TabletopOptions& options) : options_(options) {
  if (!(options.heavy_fraction >= 0 && options.heavy_fraction <= 1))
    fail(ExitCode::kUsage, "the heavy fraction is {}, but must be between 0 and 1", options.heavy_fraction);
  if (!(options.action_noise >= 0 && options.action_noise <= 1))
    fail(ExitCode::kUsage, "the action noise is {}, but must be between 0 and 1", options.action_noise);
  for (const std::int64_t side : {options.top_side, options.wrist_side, options.heavy_wrist_side}) {
    if (side < 28 || side > 1024 || side % 2 != 0)
      fail(ExitCode::kUsage, "a camera's side is {} pixels, but must be even and between 28 and 1024", side);
  }
}

double Tabletop::random(std::uint32_t what) const {
  const auto site = static_cast<std::uint32_t>(RandomSite::kSimulator);
  return uniform(random_words(mix({options_.seed, static_cast<std::uint64_t>(scene_), 0, site}), what)[0]);
}

double Tabletop::noise(std::uint32_t what) const {
  float value = 0;
  const auto draw = kNoise + 16 * static_cast<std::uint32_t>(step_) + what;
  fill_normal(
      {options_.seed, static_cast<std::uint64_t>(scene_), draw, static_cast<std::uint32_t>(RandomSite::kSimulator)},
      &value, 1);
  return value;
}

void Tabletop::reset(std::int64_t scene) {
  scene_ = scene;
  step_ = held_ = 0;
  velocity_ = {};
  closed_ = 0;
  place_pads();
  goal_ = std::min<std::size_t>(3, static_cast<std::size_t>(random(kGoal) * 4));
  heavy_ = random(kHeavy) < options_.heavy_fraction;
  gripper_ = {0.1 + 0.8 * random(kStartX), 0.1 + 0.8 * random(kStartY)};
  choose_instruction();
}

void Tabletop::place_pads() {
  constexpr std::array<Point, 4> kCorners{{{0.22, 0.22}, {0.78, 0.22}, {0.22, 0.78}, {0.78, 0.78}}};
  std::array<std::size_t, 4> colours{0, 1, 2, 3};
  if (options_.difficulty != Difficulty::kFixed) {
    for (std::uint32_t i = 3; i > 0; --i)
      std::swap(colours[i], colours[static_cast<std::size_t>(random(kShuffle + i) * (i + 1))]);
  }
  std::uint32_t draw = kPlaces;
  for (std::size_t i = 0; i < pads_.size(); ++i) {
    pads_[i] = {kCorners[i], colours[i]};
    if (options_.difficulty != Difficulty::kAnywhere) continue;
    const auto overlaps = [&] {
      return std::any_of(pads_.begin(), pads_.begin() + static_cast<std::ptrdiff_t>(i), [&](const Pad& pad) {
        return distance(pad.at.x, pad.at.y, pads_[i].at.x, pads_[i].at.y) < 2 * kPadRadius + 0.02;
      });
    };
    do {  // four pads cover a seventh of the table, so a free place is found soon
      pads_[i].at = {0.12 + 0.76 * random(draw), 0.12 + 0.76 * random(draw + 1)};
      draw += 2;
    } while (overlaps());
  }
}

std::string Tabletop::task() const { return std::string("move to the ") + kColours[goal().colour] + " pad"; }

std::array<std::uint8_t, 3> Tabletop::goal_colour() const { return kRgb[goal().colour]; }

void Tabletop::choose_instruction() {
  const std::string colour = kColours[goal().colour];
  instruction_ = task();
  if (!heavy_) return;
  instruction_ = "first look at the whole table and at each of the four pads on it , do not touch the others";
  for (const char* other : kColours) {
    if (other != colour) instruction_ += std::string(" , not the ") + other + " pad";
  }
  instruction_ +=
      " , then slowly and without any detour move to the " + colour + " pad , stay on it and close the gripper";
}

std::array<std::uint8_t, 3> Tabletop::colour_at(Point place) const {
  if (place.x < 0 || place.x > 1 || place.y < 0 || place.y > 1) return kFloor;
  const double to_gripper = squared_distance(place.x, place.y, gripper_.x, gripper_.y);
  constexpr double kOuter = kGripperRadius * kGripperRadius;
  if (to_gripper < kOuter && to_gripper > 0.2 * kOuter) return closed_ > 0.5 ? kClosedGripper : kGripper;
  for (const Pad& pad : pads_) {
    if (squared_distance(place.x, place.y, pad.at.x, pad.at.y) < kPadRadius * kPadRadius) return kRgb[pad.colour];
  }
  return kTable;
}

Image Tabletop::render(std::int64_t side, Point centre, double width) const {
  Image image{side, side, {}};
  image.pixels.reserve(static_cast<std::size_t>(side * side * 3));
  const double pixel = width / static_cast<double>(side);
  for (std::int64_t row = 0; row < side; ++row) {
    for (std::int64_t column = 0; column < side; ++column) {
      const auto rgb = colour_at({centre.x - width / 2 + (static_cast<double>(column) + 0.5) * pixel,
                                  centre.y - width / 2 + (static_cast<double>(row) + 0.5) * pixel});
      image.pixels.insert(image.pixels.end(), rgb.begin(), rgb.end());
    }
  }
  return image;
}

TabletopObservation Tabletop::observe() const {
  TabletopObservation seen;
  seen.top = render(options_.top_side, {0.5, 0.5}, 1.0);
  seen.wrist = render(heavy_ ? options_.heavy_wrist_side : options_.wrist_side, gripper_, kWristView);
  seen.state = {gripper_.x, gripper_.y, closed_};
  const bool on_pad = std::any_of(pads_.begin(), pads_.end(), [&](const Pad& pad) {
    return distance(pad.at.x, pad.at.y, gripper_.x, gripper_.y) < kPadRadius;
  });
  seen.force = {-0.5 * velocity_.x + 0.02 * noise(4), -0.5 * velocity_.y + 0.02 * noise(5),
                (on_pad ? closed_ : 0.0) + 0.02 * noise(6)};
  return seen;
}

std::vector<double> Tabletop::expert_action() const {
  double x = (goal().at.x - gripper_.x) / kStepLength, y = (goal().at.y - gripper_.y) / kStepLength;
  const double length = std::hypot(x, y);
  if (length > 1) x /= length, y /= length;
  return {x + options_.action_noise * noise(0), y + options_.action_noise * noise(1), success() ? 1.0 : 0.0};
}

void Tabletop::step(std::span<const double> action) {
  if (action.size() != kActionDim)
    fail(ExitCode::kUsage, "an action of {} values was given, the tabletop takes {}", action.size(), kActionDim);
  double x = action[0], y = action[1];
  const double length = std::hypot(x, y);
  if (length > 1) x /= length, y /= length;
  velocity_ = {x, y};
  gripper_ = {std::clamp(gripper_.x + kStepLength * x, 0.0, 1.0), std::clamp(gripper_.y + kStepLength * y, 0.0, 1.0)};
  closed_ = std::clamp(closed_ + (action[2] > 0.5 ? 0.5 : -0.5), 0.0, 1.0);
  held_ = success() && closed_ > 0.5 ? held_ + 1 : 0;
  ++step_;
}

bool Tabletop::success() const { return distance(goal().at.x, goal().at.y, gripper_.x, gripper_.y) < kReached; }

}  // namespace plimsoll::data
