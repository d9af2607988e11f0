#include "cache/live_samples.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace plimsoll::cache {
namespace {

__extension__ using Wide = __int128;

std::int64_t live_up_to(std::int64_t steps, std::int64_t fraction, std::int64_t batch) {
  return static_cast<std::int64_t>(static_cast<Wide>(steps) * fraction * batch / kWholeFraction);
}

}  // namespace

std::int64_t live_count(std::int64_t step, std::int64_t fraction, std::int64_t batch) {
  return live_up_to(step, fraction, batch) - live_up_to(step - 1, fraction, batch);
}

LiveSamples::LiveSamples(std::function<std::int64_t(std::uint64_t)> at, std::int64_t samples, std::int64_t batch,
                         std::int64_t fraction)
    : sample_at_(std::move(at)), batch_(batch), fraction_(fraction), counts_(static_cast<std::size_t>(samples)) {}

void LiveSamples::choose_next() {
  const auto first = static_cast<std::uint64_t>(live_.size());
  const auto step = static_cast<std::int64_t>(first) / batch_ + 1;
  struct Drawn {
    std::int64_t debt;  // of live draws, in parts per million
    std::uint64_t position;
    std::int64_t sample;
  };
  std::vector<Drawn> drawn;
  for (std::int64_t i = 0; i < batch_; ++i) {
    const std::uint64_t position = first + static_cast<std::uint64_t>(i);
    const std::int64_t sample = sample_at_(position);
    const Count& count = counts_[static_cast<std::size_t>(sample)];
    const std::int64_t due = (std::int64_t{count.drawn} + 1) * fraction_;
    drawn.push_back({due - std::int64_t{count.live} * kWholeFraction, position, sample});
  }
  // Equal debts: the order of the stream, which is shuffled.
  std::ranges::sort(drawn, [](const Drawn& a, const Drawn& b) {
    return std::tuple(-a.debt, a.position) < std::tuple(-b.debt, b.position);
  });
  live_.resize(live_.size() + static_cast<std::size_t>(batch_), false);
  const auto count = static_cast<std::size_t>(live_count(step, fraction_, batch_));
  for (std::size_t i = 0; i < drawn.size(); ++i) {
    Count& of_sample = counts_[static_cast<std::size_t>(drawn[i].sample)];
    ++of_sample.drawn;
    if (i >= count) continue;
    ++of_sample.live;
    live_[static_cast<std::size_t>(drawn[i].position)] = true;
  }
}

bool LiveSamples::at(std::uint64_t position) {
  while (live_.size() <= position) choose_next();
  return live_[static_cast<std::size_t>(position)];
}

std::vector<std::uint64_t> LiveSamples::of_step(std::int64_t step) {
  std::vector<std::uint64_t> positions;
  const auto batch = static_cast<std::uint64_t>(batch_), end = static_cast<std::uint64_t>(step) * batch;
  for (std::uint64_t position = end - batch; position < end; ++position)
    if (at(position)) positions.push_back(position);
  return positions;
}

std::vector<std::uint64_t> dealt_share(std::int64_t step, std::int64_t batch, const std::vector<std::uint64_t>& live,
                                       int rank, int world) {
  const auto ranks = static_cast<std::int64_t>(world);
  const auto size_of = [&](std::int64_t of) { return batch / ranks + (of < batch % ranks ? 1 : 0); };
  std::vector<std::vector<std::uint64_t>> shares(static_cast<std::size_t>(world));
  // In turns, beginning with another rank in every step; a rank that is full is passed over.
  std::int64_t turn = step % ranks;
  const auto deal = [&](std::uint64_t position) {
    while (std::ssize(shares[static_cast<std::size_t>(turn)]) == size_of(turn)) turn = (turn + 1) % ranks;
    shares[static_cast<std::size_t>(turn)].push_back(position);
    turn = (turn + 1) % ranks;
  };
  for (const std::uint64_t position : live) deal(position);
  const auto end = static_cast<std::uint64_t>(step * batch);
  auto next_live = live.begin();
  for (auto position = end - static_cast<std::uint64_t>(batch); position < end; ++position) {
    if (next_live != live.end() && *next_live == position) {
      ++next_live;
    } else {
      deal(position);
    }
  }
  auto mine = std::move(shares[static_cast<std::size_t>(rank)]);
  std::ranges::sort(mine);
  return mine;
}

}  // namespace plimsoll::cache
