#include "data/sample_stream.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/error.h"
#include "core/philox.h"

namespace plimsoll::data {
namespace {

constexpr std::size_t kPasses = 2;  // of a type that are kept: one behind, where the stream is; and those ahead

std::shared_ptr<const StreamOrder> one_type(std::vector<std::int64_t> samples, std::uint64_t seed) {
  return std::make_shared<const StreamOrder>(StreamOrder{std::move(samples), seed, {}, {}});
}

}  // namespace

SampleStream::SampleStream(std::vector<std::int64_t> samples, std::uint64_t seed)
    : SampleStream(one_type(std::move(samples), seed)) {}

SampleStream::SampleStream(std::shared_ptr<const StreamOrder> order, int ahead)
    : order_(std::move(order)), most_passes_(kPasses + static_cast<std::size_t>(ahead)) {
  const StreamOrder& from = *order_;
  if (from.target.empty()) {
    types_.resize(1);
    types_[0].samples = from.samples;
  } else {
    types_.resize(from.target.size());
    for (std::size_t i = 0; i < from.samples.size(); ++i) types_[from.types[i]].samples.push_back(from.samples[i]);
    for (std::size_t type = 0; type < types_.size(); ++type) types_[type].part = from.target[type];
  }
  for (std::size_t type = 0; type < types_.size(); ++type)
    if (types_[type].part > 0 && types_[type].samples.empty())
      fail(ExitCode::kUsage, "type {} of the samples is to have {} of {} draws and has no samples", type,
           types_[type].part, kWholeTarget);
  deal_out();
}

// The one furthest behind its part is next; of equal ones the first. After a period all are even.
void SampleStream::deal_out() {
  const std::int64_t common =
      std::accumulate(types_.begin(), types_.end(), std::int64_t{0},
                      [](std::int64_t divisor, const Type& type) { return std::gcd(divisor, type.part); });
  std::int64_t period = 0;
  for (Type& type : types_) period += type.part /= common;
  for (std::int64_t at = 0; at < period; ++at) {
    std::size_t next = 0;
    std::int64_t furthest = -1;
    for (std::size_t type = 0; type < types_.size(); ++type) {
      const std::int64_t behind = types_[type].part * (at + 1) - std::ssize(types_[type].positions) * period;
      if (behind <= furthest) continue;
      next = type;
      furthest = behind;
    }
    type_at_.push_back(static_cast<std::uint8_t>(next));
    number_at_.push_back(static_cast<std::uint32_t>(types_[next].positions.size()));
    types_[next].positions.push_back(static_cast<std::uint32_t>(at));
  }
}

SampleStream::Draw SampleStream::draw_at(std::uint64_t position) const {
  const auto period = static_cast<std::uint64_t>(type_at_.size());
  const std::size_t at = position % period, type = type_at_[at];
  return {type, position / period * static_cast<std::uint64_t>(types_[type].part) + number_at_[at]};
}

std::int64_t SampleStream::at(std::uint64_t position) {
  const Draw draw = draw_at(position);
  const Type& type = types_[draw.type];
  const auto length = static_cast<std::uint64_t>(type.samples.size());
  return type.samples[pass(draw.type, draw.number / length).order[draw.number % length]];
}

std::uint64_t SampleStream::next_draw(std::uint64_t position) {
  const Draw draw = draw_at(position);
  const auto length = static_cast<std::uint64_t>(types_[draw.type].samples.size());
  const Local sample = pass(draw.type, draw.number / length).order[draw.number % length];
  Pass& next = pass(draw.type, draw.number / length + 1);
  if (next.places.empty()) {
    next.places.resize(next.order.size());
    for (std::size_t i = 0; i < next.order.size(); ++i) next.places[next.order[i]] = static_cast<Local>(i);
  }
  const std::uint64_t number = (draw.number / length + 1) * length + next.places[sample];
  const auto part = static_cast<std::uint64_t>(types_[draw.type].part);
  return number / part * type_at_.size() + types_[draw.type].positions[number % part];
}

SampleStream::Pass& SampleStream::pass(std::size_t number_of_type, std::uint64_t number) {
  Type& type = types_[number_of_type];
  if (const auto found = type.passes.find(number); found != type.passes.end()) return found->second;
  std::vector<Local> order(type.samples.size());
  std::iota(order.begin(), order.end(), Local{0});
  const auto key = mix({order_->seed, number, static_cast<std::uint32_t>(number_of_type),
                        static_cast<std::uint32_t>(RandomSite::kSampler)});
  // Fisher and Yates from the back; 64 random bits make the modulo's bias immaterial.
  for (std::size_t i = order.size(); i > 1; --i) {
    const auto words = random_words(key, i);
    const std::uint64_t random = (static_cast<std::uint64_t>(words[0]) << 32) | words[1];
    std::swap(order[i - 1], order[random % i]);
  }
  while (type.passes.size() >= most_passes_) {
    const auto first = type.passes.begin(), last = std::prev(type.passes.end());
    type.passes.erase(number > first->first ? first : last);  // whoever goes back needs what lies behind
  }
  return type.passes[number] = {std::move(order), {}};
}

std::int64_t SampleStream::most_draws_in_a_step(std::int64_t effective_batch) const {
  if (types_.size() == 1) return data::most_draws_in_a_step(epoch_length(), effective_batch);
  std::int64_t most = 1;
  for (const Type& type : types_) {
    if (type.part == 0) continue;
    const std::int64_t draws =
        std::min(effective_batch, effective_batch * type.part / static_cast<std::int64_t>(type_at_.size()) + 2);
    // So many draws in a row reach into so many passes.
    most = std::max(most, (draws + std::ssize(type.samples) - 2) / std::ssize(type.samples) + 1);
  }
  return std::min(most, effective_batch);
}

StreamRange share_of_step(std::int64_t step, std::int64_t effective_batch, int rank, int world) {
  const auto cut = [&](int r) {
    return static_cast<std::uint64_t>((step - 1) * effective_batch + effective_batch * r / world);
  };
  return {cut(rank), cut(rank + 1)};
}

std::int64_t most_draws_in_a_step(std::int64_t samples, std::int64_t effective_batch) {
  // Steps begin at multiples of this within an epoch; the last of them reaches furthest.
  const std::int64_t apart = std::gcd(samples, effective_batch);
  return (samples - apart + effective_batch - 1) / samples + 1;
}

}  // namespace plimsoll::data
