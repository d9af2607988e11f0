#pragma once
// Our trainer and others, each over the scenarios of bench/memory_scenarios.json in real steps of the tiny model, on
// two ranks. For rivals_bench.

#include <memory>
#include <string>
#include <vector>

#include "bench/memory_scenarios.h"
#include "bench/rival_policy.h"
#include "bench/tiny_session.h"

namespace plimsoll::train {

inline constexpr std::int64_t kWindow = 2;            ///< steps
inline constexpr std::int64_t kPhase = 48 * kWindow;  ///< steps under one budget
inline constexpr std::int64_t kBatch = 8 * kRanks;

inline constexpr const char* kOurs = "predictive";
inline constexpr const char* kAgain = "halving again";  ///< beside itself: the noise

/// That a trainer is to get through.
inline std::int64_t samples_of(const Scenario& scenario) {
  return kBatch * kPhase * static_cast<std::int64_t>(scenario.budgets.size());
}

/// What came of a trainer in a scenario.
struct Run {
  double seconds = 0;        ///< of all turns
  double start_seconds = 0;  ///< making the session, or what a rival needs of one: model and buffers
  /// Of the turns in the second half of a phase that got anywhere: how fast it is once it has settled.
  double settled_seconds = 0;
  std::int64_t settled_samples = 0;
  int turns = 0;
  std::string plans;  ///< each with the position from which on it was used
  std::string last;   ///< its last plan
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
  /// Samples of the stream that are done, and what the next ones will be run under.
  virtual std::int64_t position() const = 0;
  virtual memory::Plan plan_now() const = 0;
  /// What costs nobody anything, after each.
  virtual void between_turns() {}

  TinyRanks& ranks_;
  const Scenario& scenario_;
  Config config_;
  std::unique_ptr<Session> session_;
  Run run_;

 private:
  std::string noted_;  ///< the plan of the turn before
};

/// `name`: one of the above, or a rival's (bench::name_of). All arguments outlive it.
std::unique_ptr<Trainer> make_trainer(const std::string& name, TinyRanks& ranks, Drawn& drawn,
                                      const Scenario& scenario);

}  // namespace plimsoll::train
