#pragma once
// The demo's robot: a gripper over a small table with four coloured pads; the instruction names the colour to reach.
//
// The table is the unit square. Everything follows from (seed, scene): the same on every machine.

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/image_file.h"

namespace plimsoll::data {

/// Where the pads are. kFixed: four places, each with its colour always (the words suffice). kPermuted: the places
/// stay, colours change (the picture is needed). kAnywhere: places change too.
enum class Difficulty { kFixed, kPermuted, kAnywhere };

/// "fixed", "permuted" or "anywhere"; others throw Error(kUsage).
Difficulty parse_difficulty(const std::string& name);
const char* to_string(Difficulty difficulty);

struct TabletopOptions {
  std::uint64_t seed = 0;
  Difficulty difficulty = Difficulty::kFixed;
  std::int64_t top_side = 84;    ///< pixels of the camera above the table, even
  std::int64_t wrist_side = 56;  ///< pixels of the camera at the gripper in an ordinary scene
  std::int64_t heavy_wrist_side =
      168;  ///< and in a heavy one, whose instruction is longer too: at least twice the tokens and patches
  double heavy_fraction = 0;   ///< of the scenes that are heavy, in [0, 1]
  double action_noise = 0.05;  ///< standard deviation of what the scripted expert adds to its actions
};

struct TabletopObservation {
  Image top, wrist;
  std::array<double, 3> state{};  ///< gripper x, y in [0, 1]; how far it is closed, in [0, 1]
  std::array<double, 3> force{};  ///< drag along x and y, pressure on a pad; with sensor noise
};

/// One scene at a time. For demonstrations: reset, then observe, expert_action, step in turn. For closed loops: the
/// model's action in place of the expert's. One thread.
class Tabletop {
 public:
  static constexpr std::int64_t kActionDim =
      3;  ///< movement along x and y in units of 0.1 a step (together at most 1 long); close: above 0.5
  static constexpr double kReached = 0.07;  ///< distance from a pad's centre that counts as on it

  /// Throws Error(kUsage) for options out of range. reset() must follow.
  explicit Tabletop(const TabletopOptions& options);

  /// Sets up scene number `scene`; equal numbers give equal scenes.
  void reset(std::int64_t scene);
  const std::string& instruction() const { return instruction_; }
  /// What the instruction asks for in its shortest words: equal in heavy scenes.
  std::string task() const;
  std::array<std::uint8_t, 3> goal_colour() const;  ///< of the named pad: red, green, blue
  bool heavy() const { return heavy_; }

  TabletopObservation observe() const;
  /// The scripted expert's action with its noise: straight to the pad, then close. Equal if asked twice.
  std::vector<double> expert_action() const;
  /// Moves by `action` [kActionDim].
  void step(std::span<const double> action);
  /// The gripper is on the named pad now.
  bool success() const;
  /// And has been there, closed, after each of the last three steps: no policy that only passes over the pad has.
  bool grasped() const { return held_ >= 3; }

 private:
  struct Point {
    double x = 0, y = 0;
  };
  struct Pad {
    Point at;
    std::size_t colour = 0;
  };
  double random(std::uint32_t what) const;  ///< uniform in [0, 1), fixed by scene and `what`
  double noise(std::uint32_t what) const;   ///< standard normal, fixed by scene, step and `what`
  void place_pads();
  void choose_instruction();
  std::array<std::uint8_t, 3> colour_at(Point place) const;
  Image render(std::int64_t side, Point centre, double width) const;
  const Pad& goal() const { return pads_[goal_]; }

  TabletopOptions options_;
  std::int64_t scene_ = 0, step_ = 0;
  std::int64_t held_ = 0;  ///< steps in a row after which it was closed on the named pad
  std::array<Pad, 4> pads_;
  std::size_t goal_ = 0;
  Point gripper_, velocity_;
  double closed_ = 0;
  bool heavy_ = false;
  std::string instruction_;
};

}  // namespace plimsoll::data
