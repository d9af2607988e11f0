#include "memory/planning/candidates.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "core/error.h"
#include "memory/planning/wide.h"

namespace plimsoll::memory {
namespace {

constexpr std::string_view kHeader = "candidates 1";
constexpr std::int64_t kTenThousandths = 10000;
constexpr std::int64_t kMostRate = 1000000;  // a hundred times a micro-batch

auto order_of(const Plan& plan) {
  return std::tuple(plan.resolution, plan.micro_batch, plan.recompute_blocks, plan.recompute_vision,
                    plan.recompute_expert, plan.offload);
}

auto order_of(const Candidate& candidate) {
  const int resolution = candidate.plan.resolution;
  // Each step is run in the fastest way that fits it (ways.h), so that many plans take the same time: then the plan is
  // what does not recompute, and the large micro-batch.
  return std::tuple_cat(
      std::tuple(resolution == 0 ? std::numeric_limits<int>::min() : -resolution, candidate.microseconds,
                 saves_memory(candidate.plan), -candidate.plan.micro_batch, candidate.bytes),
      order_of(candidate.plan));
}

/// Takes the first line off `text`.
std::string_view take_line(std::string_view& text) {
  const std::size_t end = text.find('\n');
  if (end == std::string_view::npos) fail(ExitCode::kUsage, "the candidate table ends within a line: send it again");
  const std::string_view line = text.substr(0, end);
  text.remove_prefix(end + 1);
  return line;
}

/// The whole numbers of a line, as many as `values` has, separated by one blank.
template <std::size_t kCount>
std::array<std::int64_t, kCount> numbers_of(std::string_view line) {
  std::array<std::int64_t, kCount> values{};
  const char* at = line.data();
  const char* const end = at + line.size();
  for (std::size_t i = 0; i < kCount; ++i) {
    if (i > 0 && (at == end || *at++ != ' '))
      fail(ExitCode::kUsage, "the candidate table: \"{}\" has not {} numbers", line, kCount);
    const auto [next, error] = std::from_chars(at, end, values[i]);
    if (error != std::errc{}) fail(ExitCode::kUsage, "the candidate table: \"{}\" has not {} numbers", line, kCount);
    at = next;
  }
  if (at != end) fail(ExitCode::kUsage, "the candidate table: \"{}\" has more than {} numbers", line, kCount);
  return values;
}

Candidate candidate_of(std::string_view line) {
  const auto values = numbers_of<8>(line);
  for (std::size_t i = 0; i < 6; ++i) {
    const std::int64_t most = i == 5 ? 1 : std::numeric_limits<int>::max();
    if (values[i] < (i == 1 ? 1 : 0) || values[i] > most)
      fail(ExitCode::kUsage, "the candidate table: \"{}\" is no plan: {} is out of range", line, values[i]);
  }
  const auto field = [&](std::size_t i) { return static_cast<int>(values[i]); };
  return {{field(0), field(1), field(2), field(3), field(4), field(5) == 1}, values[6], values[7]};
}

void check(const CostModel& model) {
  if (model.points.empty()) fail(ExitCode::kUsage, "a cost model needs the time of at least one micro-batch");
  if (model.language_blocks < 1 || model.vision_blocks < 1 || model.expert_blocks < 1)
    fail(ExitCode::kUsage, "a cost model needs at least 1 block a tower (1 where there is no tower)");
  for (std::int64_t rate : {model.language_recompute, model.vision_recompute, model.expert_recompute, model.offload}) {
    if (rate < 0 || rate > kMostRate)
      fail(ExitCode::kUsage, "a cost model: a rate of {}/10000 of a micro-batch; give 0..{}", rate, kMostRate);
  }
  for (std::size_t i = 0; i < model.points.size(); ++i) {
    const auto& point = model.points[i];
    if (point.samples < 1 || point.microseconds < 1 || (i > 0 && point.samples <= model.points[i - 1].samples)) {
      fail(ExitCode::kUsage, "a cost model: {} us for {} samples; times are positive, samples ascend from 1",
           point.microseconds, point.samples);
    }
  }
}

/// The line through both points, at `samples`.
std::int64_t on_line(const CostModel::Point& a, const CostModel::Point& b, std::int64_t samples) {
  const std::int64_t width = b.samples - a.samples;
  const bool rises = b.microseconds >= a.microseconds;
  const std::int64_t slope = rises ? b.microseconds - a.microseconds : a.microseconds - b.microseconds;
  const bool beyond = samples >= a.samples;
  const std::int64_t part = scaled(slope, beyond ? samples - a.samples : a.samples - samples, width);
  return rises == beyond ? sum(a.microseconds, part) : std::max<std::int64_t>(0, a.microseconds - part);
}

/// Time of one micro-batch with nothing recomputed.
std::int64_t plain_microseconds(const std::vector<CostModel::Point>& points, std::int64_t samples) {
  const auto& first = points.front();
  if (points.size() == 1) return std::max<std::int64_t>(1, scaled(first.microseconds, samples, first.samples));
  std::size_t right = 1;
  while (right + 1 < points.size() && points[right].samples < samples) ++right;
  const std::int64_t time = on_line(points[right - 1], points[right], samples);
  // Noisy points may make a line that falls: fewer samples are never dearer per sample, more never cheaper than the
  // last.
  std::int64_t least = 1;
  if (samples < first.samples) least = scaled(first.microseconds, samples, first.samples);
  if (samples > points.back().samples) least = points.back().microseconds;
  return std::max({time, least, std::int64_t{1}});
}

std::int64_t micro_batch_microseconds(const CostModel& model, const Plan& plan, std::int64_t samples) {
  const std::int64_t plain = plain_microseconds(model.points, samples);
  std::int64_t time = plain;
  const auto add = [&](std::int64_t rate, int blocks, int all) {
    time = sum(time, scaled(plain, rate * std::clamp(blocks, 0, all), kTenThousandths * all));
  };
  add(model.language_recompute, plan.recompute_blocks, model.language_blocks);
  add(model.vision_recompute, plan.recompute_vision, model.vision_blocks);
  add(model.expert_recompute, plan.recompute_expert, model.expert_blocks);
  if (plan.offload) add(model.offload, plan.recompute_blocks, model.language_blocks);
  return time;
}

std::vector<int> distinct(std::vector<int> values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

/// SplitMix64's finaliser (Vigna, public domain).
constexpr std::uint64_t stir(std::uint64_t value) {
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9U;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBU;
  return value ^ (value >> 31);
}

std::uint32_t hash_of(std::span<const Candidate> candidates) {
  if (candidates.empty()) return 0;
  std::uint64_t hash = candidates.size();
  const auto add = [&](std::int64_t value) {
    hash = stir(hash + 0x9E3779B97F4A7C15U + static_cast<std::uint64_t>(value));
  };
  for (const Candidate& candidate : candidates) {
    const Plan& plan = candidate.plan;
    for (std::int64_t value :
         {std::int64_t{plan.resolution}, std::int64_t{plan.micro_batch}, std::int64_t{plan.recompute_blocks},
          std::int64_t{plan.recompute_vision}, std::int64_t{plan.recompute_expert}, std::int64_t{plan.offload},
          candidate.bytes, candidate.microseconds}) {
      add(value);
    }
  }
  return std::max<std::uint32_t>(1, static_cast<std::uint32_t>(hash & 0xFFFFFFU));
}

}  // namespace

CandidateTable::CandidateTable(std::vector<Candidate> candidates) : candidates_(std::move(candidates)) {
  std::vector<Plan> plans;
  for (const Candidate& candidate : candidates_) {
    if (candidate.bytes < 1 || candidate.microseconds < 1) {
      fail(ExitCode::kUsage, "candidate \"{}\" has {} bytes and {} us: both must be positive",
           to_string(candidate.plan), candidate.bytes, candidate.microseconds);
    }
    plans.push_back(candidate.plan);
  }
  std::sort(plans.begin(), plans.end(), [](const Plan& a, const Plan& b) { return order_of(a) < order_of(b); });
  const auto twice = std::adjacent_find(plans.begin(), plans.end());
  if (twice != plans.end()) fail(ExitCode::kUsage, "candidate \"{}\" comes twice: give it once", to_string(*twice));
  std::sort(candidates_.begin(), candidates_.end(),
            [](const Candidate& a, const Candidate& b) { return order_of(a) < order_of(b); });
  hash_ = hash_of(candidates_);
}

const Candidate* CandidateTable::find(const Plan& plan) const {
  const auto found = std::find_if(candidates_.begin(), candidates_.end(),
                                  [&](const Candidate& candidate) { return candidate.plan == plan; });
  return found == candidates_.end() ? nullptr : &*found;
}

std::string to_text(const CandidateTable& table) {
  std::string text = fmt::format("{} {}\n", kHeader, table.all().size());
  for (const Candidate& candidate : table.all()) {
    const Plan& plan = candidate.plan;
    text += fmt::format("{} {} {} {} {} {} {} {}\n", plan.resolution, plan.micro_batch, plan.recompute_blocks,
                        plan.recompute_vision, plan.recompute_expert, plan.offload ? 1 : 0, candidate.bytes,
                        candidate.microseconds);
  }
  return text;
}

std::string to_json(const CandidateTable& table) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Candidate& candidate : table.all()) {
    const Plan& plan = candidate.plan;
    list.push_back({{"micro_batch", plan.micro_batch},
                    {"resolution", plan.resolution},
                    {"recompute_blocks", plan.recompute_blocks},
                    {"recompute_vision", plan.recompute_vision},
                    {"recompute_expert", plan.recompute_expert},
                    {"offload", plan.offload},
                    {"bytes", candidate.bytes},
                    {"microseconds", candidate.microseconds}});
  }
  return nlohmann::ordered_json{{"candidates", list}}.dump() + "\n";
}

CandidateTable candidate_table_from_text(std::string_view text) {
  std::string_view header = take_line(text);
  if (!header.starts_with(kHeader) || header.size() <= kHeader.size() + 1)
    fail(ExitCode::kUsage, "the candidate table begins with \"{}\", not \"{} COUNT\"", header, kHeader);
  header.remove_prefix(kHeader.size() + 1);
  const std::int64_t count = numbers_of<1>(header)[0];
  std::vector<Candidate> candidates;
  while (!text.empty()) candidates.push_back(candidate_of(take_line(text)));
  if (std::cmp_not_equal(candidates.size(), count))
    fail(ExitCode::kUsage, "the candidate table says {} candidates and has {}", count, candidates.size());
  return CandidateTable(std::move(candidates));
}

std::vector<CostModel::Point> smoothed(std::vector<CostModel::Point> points) {
  constexpr std::int64_t kNoise = 1100;  // thousandths of the least time per sample of the smaller ones
  CostModel::Point best{1, std::numeric_limits<std::int64_t>::max()};
  for (CostModel::Point& point : points) {
    const std::int64_t as_best = scaled(best.microseconds, point.samples, best.samples);
    if (point.microseconds < as_best) {
      best = point;
    } else if (point.microseconds < scaled(as_best, kNoise, 1000)) {
      point.microseconds = as_best;
    }
  }
  return points;
}

Cut cut_share(std::int64_t share, std::int64_t micro_batch) {
  if (share < 1 || micro_batch < 1)
    fail(ExitCode::kUsage, "a share of {} in micro-batches of {}: both must be at least 1", share, micro_batch);
  return {share / micro_batch, share % micro_batch};
}

std::int64_t share_microseconds(const CostModel& model, const Plan& plan, std::int64_t share) {
  check(model);
  const Cut cut = cut_share(share, plan.micro_batch);
  std::int64_t time = 0;
  if (cut.whole > 0) time = scaled(micro_batch_microseconds(model, plan, plan.micro_batch), cut.whole, 1);
  if (cut.rest > 0) time = sum(time, micro_batch_microseconds(model, plan, cut.rest));
  return time;
}

std::vector<int> useful_micro_batches(std::int64_t share, int minimum, int maximum) {
  if (share < 1 || minimum < 1 || maximum < minimum)
    fail(ExitCode::kUsage, "micro-batches {}..{} of a share of {}: give bounds from 1 on, the larger last", minimum,
         maximum, share);
  const std::int64_t most = std::min<std::int64_t>(maximum, share);
  std::vector<int> sizes;
  // More samples than the share never meet: a minimum above it means the share.
  std::int64_t size = std::min<std::int64_t>(minimum, most);
  while (size <= most) {
    sizes.push_back(static_cast<int>(size));
    const std::int64_t count = (share - 1) / size + 1;
    if (count == 1) break;
    size = (share - 1) / (count - 1) + 1;  // the smallest that makes one micro-batch less
  }
  return sizes;
}

namespace {

/// Every way to recompute and offload, for any resolution and micro-batch.
std::vector<Plan> recomputes_of(const PlanSpace& space) {
  std::vector<Plan> plans;
  const std::vector<int> vision = distinct(space.vision), expert = distinct(space.expert);
  for (int language : distinct(space.language)) {
    for (int v : vision) {
      for (int e : expert) {
        plans.push_back({0, 1, language, v, e, false});
        if (space.offload && language > 0) plans.push_back({0, 1, language, v, e, true});
      }
    }
  }
  return plans;
}

}  // namespace

std::vector<Plan> plans_of(const PlanSpace& space) {
  std::vector<Plan> plans;
  const std::vector<int> sizes = useful_micro_batches(space.share, space.min_micro, space.max_micro);
  const std::vector<Plan> recomputes = recomputes_of(space);
  for (int resolution : distinct(space.resolutions)) {
    for (int size : sizes) {
      for (Plan plan : recomputes) {
        plan.resolution = resolution;
        plan.micro_batch = size;
        plans.push_back(plan);
      }
    }
  }
  return plans;
}

CandidateTable make_table(std::span<const Plan> plans, const CostModel& costs, std::int64_t share,
                          const std::function<std::int64_t(const Plan&)>& bytes) {
  std::vector<Candidate> candidates;
  for (const Plan& plan : plans) {
    const std::int64_t needed = bytes(plan);
    if (needed == 0) continue;
    candidates.push_back({plan, needed, share_microseconds(costs, plan, share)});
  }
  return CandidateTable(std::move(candidates));
}

}  // namespace plimsoll::memory
