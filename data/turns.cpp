#include "data/turns.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <utility>

namespace plimsoll::data {

Turns::Turns(std::vector<std::int64_t> parts) : parts_(std::move(parts)), positions_(parts_.size()) {
  const std::int64_t common =
      std::accumulate(parts_.begin(), parts_.end(), std::int64_t{0},
                      [](std::int64_t divisor, std::int64_t part) { return std::gcd(divisor, part); });
  std::int64_t period = 0;
  for (std::int64_t& part : parts_) period += part /= common;
  for (std::int64_t at = 0; at < period; ++at) {
    std::size_t next = 0;
    std::int64_t furthest = -1;
    for (std::size_t taker = 0; taker < parts_.size(); ++taker) {
      const std::int64_t behind = parts_[taker] * (at + 1) - std::ssize(positions_[taker]) * period;
      if (behind <= furthest) continue;
      next = taker;
      furthest = behind;
    }
    takers_.push_back(static_cast<std::uint16_t>(next));
    numbers_.push_back(static_cast<std::uint32_t>(positions_[next].size()));
    positions_[next].push_back(static_cast<std::uint32_t>(at));
  }
}

Turns::Turn Turns::at(std::uint64_t position) const {
  const auto period = static_cast<std::uint64_t>(takers_.size());
  const std::size_t at = position % period, taker = takers_[at];
  return {taker, position / period * static_cast<std::uint64_t>(parts_[taker]) + numbers_[at]};
}

std::uint64_t Turns::position_of(const Turn& turn) const {
  const auto part = static_cast<std::uint64_t>(parts_[turn.taker]);
  return turn.number / part * takers_.size() + positions_[turn.taker][turn.number % part];
}

// Of the windows of that length one that begins with a turn of its own has most.
std::int64_t Turns::most_of(std::size_t taker, std::int64_t turns) const {
  const std::vector<std::uint32_t>& own = positions_[taker];
  const std::int64_t count = std::ssize(own), period = std::ssize(takers_), rest = turns % period;
  const auto place = [&](std::int64_t turn) {
    return own[static_cast<std::size_t>(turn % count)] + turn / count * period;
  };
  std::int64_t most = 0, end = 0;
  for (std::int64_t begin = 0; begin < count; ++begin) {
    while (place(end) < place(begin) + rest) ++end;
    most = std::max(most, end - begin);
  }
  return turns / period * count + most;
}

std::vector<std::int64_t> whole_parts(const std::vector<double>& fractions, std::int64_t whole) {
  std::vector<std::int64_t> parts;
  std::vector<std::size_t> order(fractions.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (const double fraction : fractions) {
    const auto part = static_cast<std::int64_t>(std::floor(fraction * static_cast<double>(whole)));
    parts.push_back(fraction > 0 ? std::max<std::int64_t>(1, part) : 0);
  }
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) {
    const auto rest = [&](std::size_t at) {
      return fractions[at] * static_cast<double>(whole) - static_cast<double>(parts[at]);
    };
    return rest(a) > rest(b);
  });
  std::int64_t left = whole - std::accumulate(parts.begin(), parts.end(), std::int64_t{0});
  for (std::size_t i = 0; left > 0; i = (i + 1) % order.size(), --left) ++parts[order[i]];
  for (; left < 0; ++left) --*std::ranges::max_element(parts);
  return parts;
}

std::vector<std::int64_t> parts_by_weight(std::vector<double> weights, std::int64_t whole) {
  const double most = *std::ranges::max_element(weights);
  for (double& weight : weights) weight /= most;  // so that their sum is finite
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (double& weight : weights) weight /= sum;
  return whole_parts(weights, whole);
}

}  // namespace plimsoll::data
