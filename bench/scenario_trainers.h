#pragma once
// Our trainer and others, each over the scenarios of bench/memory_scenarios.json in real steps of the tiny model, on
// two ranks. For rivals_bench.

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "bench/rival_policy.h"
#include "bench/tiny_session.h"

namespace plimsoll::train {

inline constexpr std::int64_t kPhase = 24;  ///< steps under one budget
inline constexpr int kRanks = 2;
inline constexpr std::int64_t kBatch = 8 * kRanks;
inline constexpr double kFull = 0.99;  ///< the target beside rivals that fill a card to its last byte

inline constexpr const char* kOurs = "predictive";
inline constexpr const char* kOursFull = "predictive, target 0.99";
inline constexpr const char* kAgain = "halving again";  ///< beside itself: the noise

struct Scenario {
  std::string name;
  std::vector<std::array<std::int64_t, kRanks>> budgets;  ///< bytes, phase by phase
  std::int64_t samples() const { return kBatch * kPhase * static_cast<std::int64_t>(budgets.size()); }
};

/// Those of the file. `session`: under the default target, with nothing that limits its memory.
std::vector<Scenario> scenarios(const Session& session);

/// What came of a trainer in a scenario.
struct Run {
  double seconds = 0;        ///< of all turns
  double start_seconds = 0;  ///< making the session, or what a rival needs of one: model and buffers
  std::string last;          ///< its last plan
  int failures = 0, restarts = 0;
  std::int64_t lost = 0;  ///< samples done in vain
  bool kept = true;       ///< the effective batch
  bool finished = true;   ///< false: it gave up
};

/// One of them in one scenario. All calls are collective.
class Trainer {
 public:
  virtual ~Trainer() = default;
  /// Makes the session, which what follows needs.
  void start();
  /// A step, or whatever the trainer does in place of one. False when nothing is left to do.
  bool turn();
  virtual Run result() const = 0;

 protected:
  Trainer(TinyRanks& ranks, const Scenario& scenario, const char* policy);
  virtual void begin() = 0;
  virtual bool step() = 0;
  /// What costs nobody anything, after each.
  virtual void between_turns() {}

  TinyRanks& ranks_;
  const Scenario& scenario_;
  Config config_;
  std::unique_ptr<Session> session_;
  Run run_;
};

/// `name`: one of the above, or a rival's (bench::name_of). All arguments outlive it.
std::unique_ptr<Trainer> make_trainer(const std::string& name, TinyRanks& ranks, Drawn& drawn,
                                      const Scenario& scenario);

}  // namespace plimsoll::train
