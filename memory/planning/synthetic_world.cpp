#include "memory/planning/synthetic_world.h"

#include <algorithm>
#include <map>
#include <utility>

#include "core/error.h"
#include "core/philox.h"
#include "memory/planning/packing.h"
#include "memory/planning/predictive.h"
#include "memory/planning/ways.h"

namespace plimsoll::memory {
namespace {

constexpr std::int64_t kWhole = 10000;
constexpr std::int64_t kOrdinary = 1000;       // length of an ordinary sample
constexpr std::int64_t kResolution = 256;      // pixels at which the model's numbers hold
constexpr std::int64_t kRecomputeLevels = 18;  // nothing, eighteenths, everything

/// What a hash is drawn for.
enum class Draw : std::uint32_t { kLength = 1, kHeavy = 2, kNoise = 3 };

/// Evenly spread over [low, high].
std::int64_t drawn(std::uint64_t seed, Draw draw, std::int64_t index, std::int64_t low, std::int64_t high) {
  const auto key = static_cast<std::uint32_t>(seed ^ (seed >> 32));
  const std::uint64_t word =
      random_words({key, static_cast<std::uint32_t>(draw)}, static_cast<std::uint64_t>(index))[0];
  const auto span = static_cast<std::uint64_t>(high - low + 1);
  // The high bits of span x 2^-32; a span of more than 2^32 (noise in bytes) goes by 1/65536 first.
  if (span >> 32 != 0) return low + static_cast<std::int64_t>((span >> 16) * (word >> 16));
  return low + static_cast<std::int64_t>((span * word) >> 32);
}

/// By how much a resolution other than the model's changes bytes and time, in 1/10000. 0: images as they are.
std::int64_t pixels(const Plan& plan) {
  if (plan.resolution == 0) return kWhole;
  return std::max<std::int64_t>(1, kWhole * plan.resolution * plan.resolution / (kResolution * kResolution));
}

void check(const Scenario& scenario) {
  if (!scenario.script.empty())
    fail(ExitCode::kUsage, "scenario \"{}\" gives its peaks: replay it, there is no world to simulate", scenario.name);
  if (scenario.ranks < 1 || scenario.budgets.empty() || scenario.steps < 1 || scenario.effective < scenario.ranks) {
    fail(ExitCode::kUsage,
         "scenario \"{}\": {} ranks, {} budgets, {} steps, an effective batch of {}: each rank needs a budget and a "
         "sample; give fewer ranks",
         scenario.name, scenario.ranks, scenario.budgets.size(), scenario.steps, scenario.effective);
  }
}

}  // namespace

SyntheticWorld::SyntheticWorld(Scenario scenario) : scenario_(std::move(scenario)) {
  check(scenario_);
  const Lengths& lengths = scenario_.lengths;
  // One step more than the run has: a trainer that changes its effective batch ends in the middle of a step.
  const std::int64_t count = (scenario_.steps + 1) * scenario_.effective;
  sums_.reserve(static_cast<std::size_t>(count) + 1);
  sums_.push_back(0);
  for (std::int64_t i = 0; i < count; ++i) {
    const bool heavy =
        lengths.heavy_every > 0 && drawn(scenario_.seed, Draw::kHeavy, i, 0, lengths.heavy_every - 1) == 0;
    const std::int64_t base =
        heavy ? lengths.heavy : drawn(scenario_.seed, Draw::kLength, i, lengths.shortest, lengths.longest);
    sums_.push_back(sums_.back() + base * multiplier(i) / kOrdinary);
  }
}

std::int64_t SyntheticWorld::multiplier(std::int64_t position) const {
  const std::int64_t length = scenario_.epoch_steps > 0 ? scenario_.epoch_steps : scenario_.steps;
  const std::int64_t within = position / scenario_.effective % length;
  const Lengths& lengths = scenario_.lengths;
  return lengths.first + (lengths.last - lengths.first) * within / std::max<std::int64_t>(1, length - 1);
}

std::int64_t SyntheticWorld::budget(int rank, std::int64_t step) const {
  const std::vector<std::int64_t>& start = scenario_.budgets;
  std::int64_t bytes = start[std::min(static_cast<std::size_t>(rank), start.size() - 1)];
  for (const BudgetEvent& change : scenario_.changes) {
    if (change.step <= step && (change.rank < 0 || change.rank == rank)) bytes = change.bytes;
  }
  return bytes;
}

std::vector<std::int64_t> SyntheticWorld::budgets(std::int64_t step) const {
  std::vector<std::int64_t> all;
  for (int rank = 0; rank < ranks(); ++rank) all.push_back(budget(rank, step));
  return all;
}

std::int64_t SyntheticWorld::first_sample(int rank, std::int64_t step) const {
  return (step - 1) * scenario_.effective + scenario_.effective * rank / ranks();
}

std::int64_t SyntheticWorld::samples(int rank) const {
  return scenario_.effective * (rank + 1) / ranks() - scenario_.effective * rank / ranks();
}

std::int64_t SyntheticWorld::length(std::int64_t position, std::int64_t count) const {
  const auto last = static_cast<std::int64_t>(sums_.size()) - 1;
  const std::int64_t begin = std::min(position, last);
  const std::int64_t end = std::min(position + count, last);
  return sums_[static_cast<std::size_t>(end)] - sums_[static_cast<std::size_t>(begin)];
}

std::vector<std::int64_t> SyntheticWorld::lengths(int rank, std::int64_t step) const {
  const std::int64_t first = first_sample(rank, step);
  std::vector<std::int64_t> drawn;
  for (std::int64_t i = 0; i < samples(rank); ++i) drawn.push_back(length(first + i, 1));
  return drawn;
}

std::int64_t SyntheticWorld::activation_bytes(const Plan& plan, std::int64_t length) const {
  const SyntheticModel& model = scenario_.model;
  const std::int64_t full = model.sample_bytes * length / kOrdinary * pixels(plan) / kWhole;
  const std::int64_t block = full / model.language_blocks;
  const std::int64_t blocks = std::min(plan.recompute_blocks, model.language_blocks);
  if (blocks == 0) return full;
  const std::int64_t kept = plan.offload ? 0 : block * model.kept / kWhole * blocks;
  return full - block * blocks + kept + block;
}

std::int64_t SyntheticWorld::predicted(const Plan& plan, std::int64_t length) const {
  return scenario_.model.static_bytes + activation_bytes(plan, length);
}

std::int64_t SyntheticWorld::needed(const Plan& plan, std::int64_t length, int rank, std::int64_t step,
                                    std::int64_t started) const {
  const Surprises& more = scenario_.surprises;
  std::int64_t bytes = predicted(plan, length) + activation_bytes(plan, length) * more.under / kWhole;
  if (more.noise_bytes > 0) bytes += drawn(scenario_.seed, Draw::kNoise, step * ranks() + rank, 0, more.noise_bytes);
  const std::int64_t from = std::max(more.leak_from, started);
  return bytes + more.leak_bytes * std::max<std::int64_t>(0, std::min(step, more.leak_until) - from);
}

std::int64_t SyntheticWorld::microseconds(const Plan& plan, std::int64_t length) const {
  const SyntheticModel& model = scenario_.model;
  const std::int64_t bare = model.launch_us + model.sample_us * length / kOrdinary * pixels(plan) / kWhole;
  const std::int64_t blocks = std::min(plan.recompute_blocks, model.language_blocks);
  return bare + bare * model.recompute / kWhole * blocks / model.language_blocks;
}

std::int64_t SyntheticWorld::epoch(std::int64_t step) const {
  return scenario_.epoch_steps > 0 ? (step - 1) / scenario_.epoch_steps : 0;
}

std::int64_t SyntheticWorld::first_step(std::int64_t epoch) const { return epoch * scenario_.epoch_steps + 1; }

std::int64_t SyntheticWorld::last_step(std::int64_t epoch) const {
  return scenario_.epoch_steps > 0 ? std::min((epoch + 1) * scenario_.epoch_steps, scenario_.steps) : scenario_.steps;
}

std::int64_t SyntheticWorld::heaviest(std::int64_t epoch, int count) const {
  std::int64_t most = 0;
  for (std::int64_t step = first_step(epoch); step <= last_step(epoch); ++step) {
    for (int rank = 0; rank < ranks(); ++rank) {
      const std::vector<std::int64_t> drawn = lengths(rank, step);
      const auto size = static_cast<std::size_t>(count);
      most = std::max(most, heaviest_micro_batch(drawn, balanced_order(drawn, size), size));
    }
  }
  return most;
}

namespace {

/// For some steps of an epoch the lengths that the ranks draw.
class SomeSteps {
 public:
  SomeSteps(const SyntheticWorld& world, std::int64_t first, std::int64_t last) {
    const std::int64_t stride = std::max<std::int64_t>(1, (last - first + 1) / kSteps);
    for (std::int64_t step = first; step <= last; step += stride) {
      auto& ranks = drawn_.emplace_back();
      for (int rank = 0; rank < std::min(world.ranks(), kRanks); ++rank) ranks.push_back(world.lengths(rank, step));
    }
  }

  std::size_t count() const { return drawn_.size(); }
  /// Length of the heaviest micro-batch of any rank.
  std::int64_t heaviest(std::size_t step, int size) {
    auto& lengths = known_[size];
    if (lengths.empty())
      for (const auto& ranks : drawn_) lengths.push_back(heaviest_of(ranks, static_cast<std::size_t>(size)));
    return lengths[step];
  }

 private:
  static constexpr std::int64_t kSteps = 32;
  static constexpr int kRanks = 8;

  static std::int64_t heaviest_of(const std::vector<std::vector<std::int64_t>>& ranks, std::size_t size) {
    std::int64_t most = 0;
    for (const auto& drawn : ranks)
      most = std::max(most, heaviest_micro_batch(drawn, balanced_order(drawn, size), size));
    return most;
  }

  std::vector<std::vector<std::vector<std::int64_t>>> drawn_;
  std::map<int, std::vector<std::int64_t>> known_;
};

}  // namespace

CandidateTable SyntheticWorld::table(std::int64_t epoch, const PolicyConfig& config) const {
  const SyntheticModel& model = scenario_.model;
  PlanSpace space;
  space.share = share();
  space.min_micro = config.micro_batch.minimum;
  space.max_micro = config.micro_batch.maximum;
  space.resolutions = {scenario_.first.resolution};
  space.language.clear();
  for (std::int64_t level = 0; level <= kRecomputeLevels; ++level)
    space.language.push_back(static_cast<int>(model.language_blocks * level / kRecomputeLevels));
  std::vector<std::int64_t> heaviest_of(static_cast<std::size_t>(space.max_micro) + 1, 0);
  const auto longest = [&](const Plan& plan) {
    std::int64_t& length = heaviest_of.at(static_cast<std::size_t>(plan.micro_batch));
    if (length == 0) length = heaviest(epoch, plan.micro_batch);
    return length;
  };
  const auto bytes = [&](const Plan& plan) { return predicted(plan, longest(plan)); };
  const CandidateTable unfilled = make_table(plans_of(space), costs(), share(), bytes);
  const auto ways = ways_of(unfilled.all(), costs(), share());
  SomeSteps steps(*this, first_step(epoch), last_step(epoch));
  const std::vector<std::int64_t> all_budgets = budgets(first_step(epoch));
  const std::int64_t budget = *std::min_element(all_budgets.begin(), all_budgets.end());
  std::vector<Candidate> timed(unfilled.all().begin(), unfilled.all().end());
  for (Candidate& one : timed) {
    const std::int64_t filled = fill_bytes(one, {0, budget, config.target, 0}, {});
    const auto fits = [&](std::size_t step, const Plan& way) {
      return predicted(way, steps.heaviest(step, way.micro_batch)) <= filled;
    };
    one.microseconds = mean_microseconds(fastest_microseconds(ways, steps.count(), fits), one.microseconds);
  }
  return CandidateTable(std::move(timed));
}

CostModel SyntheticWorld::costs() const {
  const SyntheticModel& model = scenario_.model;
  const std::int64_t mean = sums_.back() / (static_cast<std::int64_t>(sums_.size()) - 1);
  CostModel costs;
  for (int samples : {1, 2})
    costs.points.push_back({samples, model.launch_us + model.sample_us * samples * mean / kOrdinary});
  costs.language_blocks = model.language_blocks;
  costs.language_recompute = model.recompute;
  return costs;
}

}  // namespace plimsoll::memory
