// The plan that the policy chooses, beside the one that trying every plan finds. Run it
//   build/search_bench [budgets, 5] [pairs, 5]
// Lines `FIGURE name = value unit`. One rank, one thread, the tiny model, a share of 8. Under each budget every
// candidate that fits is run for a step, the fastest five of them for three more, and the fastest of these is what an
// exhaustive search finds. Then that plan and the policy's are timed by turns, so that whatever else the machine does
// hits both alike.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "bench/tiny_session.h"
#include "core/bytes.h"
#include "core/error.h"
#include "model/init_model.h"
#include "train/source.h"

namespace plimsoll::train {
namespace {

namespace fs = std::filesystem;

constexpr double kBound = 0.95;
constexpr std::size_t kFinalists = 5;
constexpr int kFinalSteps = 3;

/// Runs steps of one session, each under the plan that is asked for.
class Timer {
 public:
  explicit Timer(Session& session) : session_(session) {}
  /// Milliseconds a step. The first of them only warms up and is not counted.
  double mean_ms(const memory::Plan& plan, int steps) {
    one_ms(plan);
    double sum = 0;
    for (int i = 0; i < steps; ++i) sum += one_ms(plan);
    return sum / steps;
  }

 private:
  double one_ms(const memory::Plan& plan) { return time_step_ms(session_, ++step_, plan); }

  Session& session_;
  std::int64_t step_ = 0;
};

using Timed = std::pair<double, memory::Plan>;  // milliseconds a step

std::vector<memory::Plan> fitting(const Session& session) {
  const auto allowed = session.budget / 10000 * memory::parse_fraction(session.config.memory.target, "memory.target");
  std::vector<memory::Plan> plans;
  for (const auto& candidate : session.candidates.all()) {
    if (candidate.bytes <= allowed) plans.push_back(candidate.plan);
  }
  return plans;
}

memory::Plan exhaustive(Timer& timer, const std::vector<memory::Plan>& plans) {
  std::vector<Timed> times;
  for (const auto& plan : plans) times.emplace_back(timer.mean_ms(plan, 1), plan);
  const auto faster = [](const Timed& a, const Timed& b) { return a.first < b.first; };
  std::sort(times.begin(), times.end(), faster);
  times.resize(std::min(times.size(), kFinalists));
  for (auto& [ms, plan] : times) ms = timer.mean_ms(plan, kFinalSteps);
  return std::min_element(times.begin(), times.end(), faster)->second;
}

/// Throughput of the policy's plan over that of the other: the median of the pairs.
double ratio(Timer& timer, const memory::Plan& ours, const memory::Plan& theirs, int pairs) {
  std::vector<double> ratios;
  for (int pair = 0; pair < pairs; ++pair) {
    const bool first = pair % 2 == 0;
    const double a = timer.mean_ms(first ? ours : theirs, kFinalSteps);
    const double b = timer.mean_ms(first ? theirs : ours, kFinalSteps);
    ratios.push_back(first ? b / a : a / b);
  }
  return median(ratios);
}

// Budgets whose targets the cheapest plan, the dearest, and some between them just fit.
std::vector<std::int64_t> budgets_of(const Session& session, int count) {
  std::vector<std::int64_t> bytes;
  for (const auto& candidate : session.candidates.all()) bytes.push_back(candidate.bytes);
  std::sort(bytes.begin(), bytes.end());
  std::vector<std::int64_t> budgets;
  for (int i = 0; i < count; ++i) {
    const auto at =
        count == 1 ? 0 : static_cast<std::size_t>(i) * (bytes.size() - 1) / static_cast<std::size_t>(count - 1);
    budgets.push_back(static_cast<std::int64_t>(static_cast<double>(bytes[at]) * 1.02 / session.config.memory.target));
  }
  return budgets;
}

void run(const fs::path& folder, int count, int pairs) {
  Config config = tiny_bench_config(folder);
  config.memory.calibration = "off";
  model::write_random_checkpoint(model::init_config("tiny"), {config.model.path, 1, false});
  const auto source = make_source(config);
  const auto communicator = ddp::make_solo();
  std::vector<std::int64_t> budgets;
  {
    const Session ample(config, *communicator, *source);
    budgets = budgets_of(ample, count);
  }
  double worst = 1e9;
  for (const std::int64_t budget : budgets) {
    config.memory.budget = std::to_string(budget);
    Session session(config, *communicator, *source);
    Timer timer(session);
    const memory::Plan ours = session.plan;
    const auto plans = fitting(session);
    const memory::Plan best = exhaustive(timer, plans);
    const double share = best == ours ? 1.0 : ratio(timer, ours, best, pairs);
    worst = std::min(worst, share);
    fmt::print("{}: of {} plans that fit the fastest is {}; the policy's is {}\n", format_bytes(budget), plans.size(),
               memory::to_string(best), memory::to_string(ours));
    fmt::print("FIGURE policy's plan over exhaustive search, {} = {:.3f}\n", format_bytes(budget), share);
    std::fflush(stdout);
  }
  fmt::print("FIGURE policy's plan over exhaustive search, worst of {} budgets = {:.3f} (bound {}: {})\n", count, worst,
             kBound, worst >= kBound ? "met" : "NOT met");
}

}  // namespace
}  // namespace plimsoll::train

int main(int argc, char** argv) {
  return plimsoll::train::tiny_bench_program([&] {
    const int budgets = argc > 1 ? std::atoi(argv[1]) : 5;
    const int pairs = argc > 2 ? std::atoi(argv[2]) : 5;
    if (budgets < 1 || pairs < 1)
      plimsoll::fail(plimsoll::ExitCode::kUsage, "usage: search_bench [budgets >= 1] [pairs >= 1]");
    const auto folder = std::filesystem::temp_directory_path() / fmt::format("plimsoll-search-bench-{}", ::getpid());
    plimsoll::train::run(folder, budgets, pairs);
    std::filesystem::remove_all(folder);
  });
}
