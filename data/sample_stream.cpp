#include "data/sample_stream.h"

#include <numeric>
#include <utility>

#include "core/philox.h"

namespace plimsoll::data {

SampleStream::SampleStream(std::vector<std::int64_t> samples, std::uint64_t seed)
    : samples_(std::move(samples)), seed_(seed) {}

std::int64_t SampleStream::at(std::uint64_t position) {
  const auto length = static_cast<std::uint64_t>(samples_.size());
  return epoch(position / length)[position % length];
}

const std::vector<std::int64_t>& SampleStream::epoch(std::uint64_t number) {
  if (const auto found = epochs_.find(number); found != epochs_.end()) return found->second;
  auto order = samples_;
  const auto key = mix({seed_, number, 0, static_cast<std::uint32_t>(RandomSite::kSampler)});
  // Fisher and Yates from the back; 64 random bits make the modulo's bias immaterial.
  for (std::size_t i = order.size(); i > 1; --i) {
    const auto words = random_words(key, i);
    const std::uint64_t random = (static_cast<std::uint64_t>(words[0]) << 32) | words[1];
    std::swap(order[i - 1], order[random % i]);
  }
  while (epochs_.size() >= 2) epochs_.erase(epochs_.begin());
  return epochs_[number] = std::move(order);
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
