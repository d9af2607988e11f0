#include "memory/planning/calibration.h"

#include <algorithm>
#include <bit>
#include <map>
#include <set>
#include <utility>

#include "core/error.h"
#include "memory/planning/json_fields.h"
#include "memory/planning/wide.h"

namespace plimsoll::memory {
namespace {

constexpr std::int64_t kOne = 10000;  // a scale that changes nothing
constexpr int kFormat = 1;
constexpr Source kSource{"the calibration", "it is made anew from measured peaks"};

using Entry = Calibration::Entry;

/// The power of two below a count, in so many bits: 0, 1, 2-3, 4-7, ...
std::uint32_t magnitude(int count, int bits) {
  const auto width = static_cast<std::uint32_t>(std::bit_width(static_cast<std::uint32_t>(std::max(count, 0))));
  return std::min(width, (std::uint32_t{1} << bits) - 1);
}

std::pair<int, std::uint32_t> place_of(const Entry& entry) { return {entry.rank, entry.shape_class}; }

auto find(auto& entries, int rank, std::uint32_t shape) {
  return std::lower_bound(entries.begin(), entries.end(), std::pair{rank, shape},
                          [](const Entry& entry, const auto& wanted) { return place_of(entry) < wanted; });
}

bool in_range(const Entry& entry) {
  return entry.rank >= 0 && entry.offset_bytes >= 0 && entry.scale >= kOne && entry.observations >= 0 &&
         entry.shortfalls >= 0 && entry.shortfalls <= entry.observations;
}

using Place = std::vector<Entry>::const_iterator;

/// `entry`: the first of this rank, where it has any.
std::int64_t corrected_from(Place entry, Place end, int rank, std::uint32_t shape, std::int64_t predicted) {
  std::int64_t scale = kOne;
  for (; entry != end && entry->rank == rank; ++entry) {
    if (entry->shape_class == shape) return sum(predicted, entry->offset_bytes);
    scale = std::max(scale, entry->scale);
  }
  return scaled_up(predicted, scale, kOne);
}

}  // namespace

std::uint32_t shape_class(const Plan& plan) {
  std::uint32_t shape = static_cast<std::uint32_t>(std::clamp(plan.resolution, 0, (1 << 17) - 1));
  shape = shape << 5 | magnitude(plan.micro_batch, 5);
  shape = shape << 3 | magnitude(plan.recompute_blocks, 3);
  shape = shape << 3 | magnitude(plan.recompute_vision, 3);
  shape = shape << 3 | magnitude(plan.recompute_expert, 3);
  return shape << 1 | static_cast<std::uint32_t>(plan.offload);
}

void Calibration::observe(int rank, const Plan& plan, std::int64_t predicted, std::int64_t measured) {
  if (rank < 0 || predicted < 1 || measured < 1) return;
  const std::uint32_t shape = shape_class(plan);
  auto entry = find(entries_, rank, shape);
  if (entry == entries_.end() || place_of(*entry) != std::pair{rank, shape}) {
    entry = entries_.insert(entry, {.rank = rank, .shape_class = shape});
  }
  entry->observations = sum(entry->observations, 1);
  if (measured > sum(predicted, entry->offset_bytes)) entry->shortfalls = sum(entry->shortfalls, 1);
  entry->offset_bytes = std::max(entry->offset_bytes, measured - predicted);
  entry->scale = std::max(entry->scale, scaled_up(measured, kOne, predicted));
}

std::int64_t Calibration::corrected(int rank, const Plan& plan, std::int64_t predicted) const {
  return corrected_from(find(entries_, rank, std::uint32_t{0}), entries_.end(), rank, shape_class(plan), predicted);
}

Calibration::Walk::Walk(const Calibration& calibration, const Plan& plan)
    : entries_(calibration.entries_), at_(entries_.begin()), shape_(shape_class(plan)) {}

std::int64_t Calibration::Walk::corrected(int rank, std::int64_t predicted) {
  while (at_ != entries_.end() && at_->rank < rank) ++at_;
  return corrected_from(at_, entries_.end(), rank, shape_, predicted);
}

void Calibration::restore(std::vector<Entry> entries) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return place_of(a) < place_of(b); });
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const Entry& entry = entries[i];
    if (!in_range(entry)) {
      fail(ExitCode::kCheckpoint, "the calibration of rank {}, class {} has a number that no run writes; delete it",
           entry.rank, entry.shape_class);
    }
    if (i > 0 && place_of(entries[i - 1]) == place_of(entry)) {
      fail(ExitCode::kCheckpoint, "the calibration has rank {}, class {} twice; delete it", entry.rank,
           entry.shape_class);
    }
  }
  entries_ = std::move(entries);
}

std::int64_t Calibration::shortfalls() const {
  std::int64_t all = 0;
  for (const Entry& entry : entries_) all = sum(all, entry.shortfalls);
  return all;
}

bool Calibration::is_of_world(int world) const {
  std::set<int> ranks;
  for (const Entry& entry : entries_) ranks.insert(entry.rank);
  return ranks.empty() || (std::cmp_equal(ranks.size(), world) && *ranks.rbegin() == world - 1);
}

Calibration Calibration::for_world(int world) const {
  std::map<std::uint32_t, Entry> largest;
  for (const Entry& entry : entries_) {
    Entry& kept = largest.try_emplace(entry.shape_class, Entry{.shape_class = entry.shape_class}).first->second;
    kept.offset_bytes = std::max(kept.offset_bytes, entry.offset_bytes);
    kept.scale = std::max(kept.scale, entry.scale);
  }
  Calibration result;
  for (int rank = 0; rank < world; ++rank) {
    for (const auto& [shape, entry] : largest) {
      result.entries_.push_back(entry);
      result.entries_.back().rank = rank;
    }
  }
  return result;
}

Json json_of(const Calibration& calibration) {
  Json list = Json::array();
  for (const Entry& entry : calibration.entries()) {
    list.push_back({{"rank", entry.rank},
                    {"class", entry.shape_class},
                    {"offset_bytes", entry.offset_bytes},
                    {"scale_per_10000", entry.scale},
                    {"observations", entry.observations},
                    {"shortfalls", entry.shortfalls}});
  }
  return list;
}

void read_calibration(const Fields& fields, const char* name, Calibration& calibration) {
  std::vector<Entry> entries;
  fields.read_list(name, [&](const Fields& item) {
    Entry& entry = entries.emplace_back();
    item.read("rank", entry.rank);
    item.read("class", entry.shape_class);
    item.read("offset_bytes", entry.offset_bytes);
    item.read("scale_per_10000", entry.scale);
    item.read("observations", entry.observations);
    item.read("shortfalls", entry.shortfalls);
    if (entry.rank < 0) item.refuse("rank", "rank");
    if (entry.offset_bytes < 0) item.refuse("offset_bytes", "number of bytes");
    if (entry.scale < kOne) item.refuse("scale_per_10000", "scale of at least 10000");
    if (entry.observations < 0) item.refuse("observations", "count");
    if (entry.shortfalls < 0 || entry.shortfalls > entry.observations)
      item.refuse("shortfalls", "count of at most the observations");
  });
  calibration.restore(std::move(entries));
}

std::string to_json(const Calibration& calibration, std::string_view key) {
  // A key that is no UTF-8 is written with replacement marks; it then fits no key on reading, and a new file is made.
  return Json{{"format", kFormat}, {"key", std::string(key)}, {"entries", json_of(calibration)}}.dump(
      2, ' ', false, Json::error_handler_t::replace);
}

Calibration calibration_from_json(std::string_view text, std::string_view key) {
  const Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded()) fail(ExitCode::kCheckpoint, "{} is no JSON; {}", kSource.what, kSource.advice);
  const Fields fields(json, "", kSource);
  int format = 0;
  fields.read("format", format);
  if (format != kFormat) fields.refuse("format", "format that this version reads");
  std::string found;
  fields.read("key", found);
  if (found != key) {
    fail(ExitCode::kCheckpoint, "{}: \"key\" is {}, wanted is {}: it is of another model or machine; {}", kSource.what,
         found, key, kSource.advice);
  }
  Calibration calibration;
  read_calibration(fields, "entries", calibration);
  return calibration;
}

}  // namespace plimsoll::memory
