// The plan that the policy chooses, beside the one that trying every plan finds. Run it
//   mpirun -n 2 build/search_bench [budgets, 5] [pairs, 5]
// Lines `FIGURE name = value unit`. One thread a rank, the tiny model, a share of 8 for each. Under each budget every
// plan that fits is run for a step: every micro-batch with every number of language blocks recomputed, with the expert
// recomputed and without, offloaded and not; steps of light samples take as many more of them as fit. The fastest five
// are run for three steps more, and the fastest of these is what an exhaustive search finds. Then that plan and the
// policy's, whose steps choose how to recompute too, are timed by turns, over the same samples, so that whatever else
// the machine does hits both alike.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "bench/tiny_session.h"
#include "core/bytes.h"
#include "core/error.h"

namespace plimsoll::train {
namespace {

constexpr double kBound = 0.95;
constexpr std::size_t kFinalists = 5;
constexpr int kFinalSteps = 3;
constexpr int kPairSteps = 6;

/// Runs steps of one session under the plans that are asked for, all of them over the same samples.
class Timer {
 public:
  Timer(const TinyRanks& ranks, Drawn& drawn, Session& session) : ranks_(ranks), drawn_(drawn), session_(session) {}
  /// Milliseconds a step on the slowest rank, over the samples of the steps from `first` on. The first step is run once
  /// before, to warm up.
  double mean_ms(const memory::Plan& plan, int first, int steps) { return mean_ms(plan, larger(plan), first, steps); }
  /// The same of the policy's plan, as a run runs it.
  double policy_ms(const memory::Plan& plan, int first, int steps) {
    return mean_ms(plan, session_.ways, first, steps);
  }

 private:
  using Ways = std::vector<memory::Candidate>;
  double mean_ms(const memory::Plan& plan, const Ways& ways, int first, int steps) {
    one_ms(plan, ways, first);
    double sum = 0;
    for (int i = 0; i < steps; ++i) sum += one_ms(plan, ways, first + i);
    return sum / steps;
  }

  /// The plan with more samples at once, most first.
  Ways larger(const memory::Plan& plan) const {
    Ways ways;
    for (memory::Plan way = plan; way.micro_batch < session_.share;)
      if (++way.micro_batch; session_.share % way.micro_batch == 0) ways.insert(ways.begin(), {way, 1, 1});
    return ways;
  }

  double one_ms(const memory::Plan& plan, const Ways& ways, std::int64_t of_step) {
    ++step_;
    const std::int64_t batch = session_.config.batch.effective;
    const auto samples = drawn_.share_of((of_step - 1) * batch, batch);
    auto fill = session_.fill(plan, of_step, session_.controller->state());
    fill.ways = ways;
    return ranks_.slowest(time_step_ms(session_, step_, samples, plan, fill));
  }

  const TinyRanks& ranks_;
  Drawn& drawn_;
  Session& session_;
  std::int64_t step_ = 0;
};

using Timed = std::pair<double, memory::Plan>;  // milliseconds a step

std::vector<memory::Plan> all_plans(const Session& session) {
  memory::PlanSpace space;
  space.share = session.share;
  space.max_micro = static_cast<int>(session.config.batch.max_micro);
  space.language.clear();
  for (int k = 0; k <= session.model->language_blocks(); ++k) space.language.push_back(k);
  space.expert = {0, session.model->expert_blocks()};
  space.offload = true;
  return memory::plans_of(space);
}

std::vector<memory::Plan> fitting(const Session& session) {
  const auto allowed = session.budget / 10000 * memory::parse_fraction(session.config.memory.target, "memory.target");
  std::vector<memory::Plan> plans = all_plans(session);
  std::erase_if(plans, [&](const memory::Plan& plan) { return session.predicted_peak(plan) > allowed; });
  return plans;
}

memory::Plan exhaustive(Timer& timer, const std::vector<memory::Plan>& plans) {
  std::vector<Timed> times;
  for (const auto& plan : plans) times.emplace_back(timer.mean_ms(plan, 1, 1), plan);
  const auto faster = [](const Timed& a, const Timed& b) { return a.first < b.first; };
  std::sort(times.begin(), times.end(), faster);
  times.resize(std::min(times.size(), kFinalists));
  for (auto& [ms, plan] : times) ms = timer.mean_ms(plan, 1, kFinalSteps);
  return std::min_element(times.begin(), times.end(), faster)->second;
}

/// Throughput of the policy's plan over that of the other: the median of the pairs.
double ratio(Timer& timer, const memory::Plan& ours, const memory::Plan& theirs, int pairs) {
  std::vector<double> ratios;
  for (int pair = 0; pair < pairs; ++pair) {
    const bool first = pair % 2 == 0;
    const int step = 1 + pair * kPairSteps;
    double own = first ? timer.policy_ms(ours, step, kPairSteps) : 0;
    const double other = timer.mean_ms(theirs, step, kPairSteps);
    if (!first) own = timer.policy_ms(ours, step, kPairSteps);
    ratios.push_back(other / own);
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
  budgets.erase(std::unique(budgets.begin(), budgets.end()), budgets.end());
  return budgets;
}

double search_under(std::int64_t budget, TinyRanks& ranks, Drawn& drawn, int pairs) {
  ranks.config.memory.budget = std::to_string(budget);
  Session session(ranks.config, *ranks.communicator, *ranks.source);
  Timer timer(ranks, drawn, session);
  const memory::Plan ours = session.plan;
  const auto plans = fitting(session);
  const memory::Plan best = exhaustive(timer, plans);
  const double share = ratio(timer, ours, best, pairs);
  if (ranks.first()) {
    fmt::print("{}: of {} plans that fit the fastest is {}; the policy's is {}\n", format_bytes(budget), plans.size(),
               memory::to_string(best), memory::to_string(ours));
    fmt::print("FIGURE policy's plan over exhaustive search, {} = {:.3f}\n", format_bytes(budget), share);
    std::fflush(stdout);
  }
  return share;
}

void run(int count, int pairs) {
  TinyRanks ranks("search-bench");
  ranks.config.train.max_steps = 4096;
  Drawn drawn(ranks);
  std::vector<std::int64_t> budgets;
  {
    const Session ample(ranks.config, *ranks.communicator, *ranks.source);
    budgets = budgets_of(ample, count);
  }
  std::vector<double> shares;
  for (const std::int64_t budget : budgets) shares.push_back(search_under(budget, ranks, drawn, pairs));
  if (!ranks.first()) return;
  const double worst = *std::min_element(shares.begin(), shares.end());
  fmt::print("FIGURE policy's plan over exhaustive search, median of {} budgets = {:.3f}\n", shares.size(),
             median(shares));
  fmt::print("FIGURE policy's plan over exhaustive search, worst of {} budgets = {:.3f} (bound {}: {})\n",
             shares.size(), worst, kBound, worst >= kBound ? "met" : "NOT met");
}

}  // namespace
}  // namespace plimsoll::train

int main(int argc, char** argv) {
  return plimsoll::train::tiny_bench_program([&] {
    const int budgets = argc > 1 ? std::atoi(argv[1]) : 5;
    const int pairs = argc > 2 ? std::atoi(argv[2]) : 5;
    if (budgets < 1 || pairs < 1)
      plimsoll::fail(plimsoll::ExitCode::kUsage, "usage: search_bench [budgets >= 1] [pairs >= 1]");
    plimsoll::train::run(budgets, pairs);
  });
}
