#include "memory/planning/way_times.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace plimsoll::memory {
namespace {

constexpr double kKeep = 0.95;         // of what is known of a way, with every step more: some twenty count
constexpr double kKeepSpeed = 0.9;     // of the machine's speed: some ten
constexpr double kDoubt = 0.25;        // steps that the cost model's word on a way counts
constexpr double kOutlier = 2.0;       // times what was expected
constexpr double kKeepNoise = 0.95;    // of what is known of the noise: some twenty
constexpr double kNoise = 0.1;         // as if steps had come that far from what was expected, at first
constexpr double kBeyondChance = 2.0;  // standard errors of a way's mean
constexpr double kTrial = 3.5;         // weight: some four steps
constexpr double kWorthTrying = 1.15;  // times the fastest way

// What the first step is taken to show: a fifth of the time comes with the samples, the rest with their weight.
constexpr double kFixedPart = 0.2;

}  // namespace

WayTimes::WayTimes(CostModel costs, std::int64_t middling)
    : costs_(std::move(costs)), middling_(std::max<std::int64_t>(1, middling)), noise_(kNoise * kNoise) {}

WayTimes::Key WayTimes::key_of(const Plan& way) {
  return {way.micro_batch, way.recompute_blocks, way.recompute_vision, way.recompute_expert, way.offload};
}

// y of a way that takes what the cost model says, at this x and the machine's speed of now.
double WayTimes::expected(double x) const {
  const double spread = n_ * xx_ - x_ * x_;
  const double slope = spread > 1e-9 * n_ * xx_ ? (n_ * xy_ - x_ * y_) / spread : 0.0;
  // Heavier samples never take less time; nor do samples without weight take less than none.
  const double b = std::clamp(slope, 0.0, y_ / x_);
  return (y_ + b * (n_ * x - x_)) / n_;
}

void WayTimes::add(double x, double y) {
  for (double* sum : {&n_, &x_, &xx_, &y_, &xy_}) *sum *= kKeepSpeed;
  n_ += 1, x_ += x, xx_ += x * x, y_ += y, xy_ += x * y;
}

bool WayTimes::took(const TimedShare& share) {
  if (share.samples < 1 || share.weight < 1 || share.microseconds < 1) return false;
  const double x = static_cast<double>(share.weight) / static_cast<double>(share.samples * middling_);
  double y = static_cast<double>(share.microseconds) /
             static_cast<double>(share_microseconds(costs_, share.way, share.samples));
  const auto shape = [](double of) { return kFixedPart + (1 - kFixedPart) * of; };
  if (steps_ == 0)
    for (const double of : {0.5, 1.0, 1.5}) add(of, y * shape(of) / shape(x));
  // The speed is what is left of the time when what is known of the way is taken off.
  Learned& learned = learned_[key_of(share.way)];
  const double before = learned.mean_factor();
  y = std::min(y, kOutlier * expected(x) * before);
  const double off = steps_ == 0 ? kNoise : y / (expected(x) * before) - 1;
  noise_ = noise_ * kKeepNoise + off * off * (1 - kKeepNoise);
  // Beside others only: of a way that runs alone, what changes is the machine's speed.
  const double beside = std::max(0.0, 1 - learned.recent / n_);
  add(x, y / before);
  for (auto& [way, other] : learned_) other.recent *= kKeepSpeed;
  learned.recent += 1;
  learned.weight = learned.weight * kKeep + beside;
  learned.ratios = learned.ratios * kKeep + beside * y / expected(x);
  learned.last = ++steps_;
  return true;
}

double WayTimes::Learned::mean_factor() const { return (kDoubt + ratios) / (kDoubt + weight); }

double WayTimes::factor(const Plan& way) const {
  const auto found = learned_.find(key_of(way));
  if (found == learned_.end()) return 1.0;
  const Learned& learned = found->second;
  const double off = learned.mean_factor() - 1;
  // What looks faster when it is tried is tried again at once, until that is more than luck or is not so any more.
  if (off < 0 && learned.weight < kTrial && learned.last == steps_) return 1 + off;
  const double chance = kBeyondChance * std::sqrt(noise_ / (kDoubt + learned.weight));
  return 1 + std::copysign(std::max(0.0, std::abs(off) - chance), off);
}

bool WayTimes::learns_next() const {
  const std::int64_t next = steps_ + 1;
  return next % (next <= kSoon ? kLearnEvery : kSoon / 2) == 0;
}

std::vector<Candidate> WayTimes::ways(std::span<const Candidate> candidates, std::int64_t share) const {
  std::map<Key, std::int64_t> known;  // of this call: a step that learns asks twice
  const auto time = [&](const Plan& plan) {
    const auto [found, is_new] = known.try_emplace(key_of(plan));
    if (is_new)
      found->second =
          static_cast<std::int64_t>(factor(plan) * static_cast<double>(share_microseconds(costs_, plan, share)));
    return found->second;
  };
  auto ways = ways_of(candidates, time);
  if (!learns_next() || ways.empty()) return ways;
  const double most = kWorthTrying * static_cast<double>(ways.front().microseconds);
  std::vector<Candidate> tried;
  for (const Candidate& one : candidates) {
    const std::int64_t took = time(one.plan);
    if (sharper(candidates.front().plan, one.plan) || static_cast<double>(took) > most) continue;
    tried.push_back({one.plan, one.bytes, took});
  }
  const auto last_run = [&](const Candidate& way) {
    const auto found = learned_.find(key_of(way.plan));
    return std::pair(found == learned_.end() ? 0 : found->second.last, way.microseconds);
  };
  std::ranges::stable_sort(tried, {}, last_run);
  ways.insert(ways.begin(), tried.begin(), tried.end());
  return ways;
}

}  // namespace plimsoll::memory
