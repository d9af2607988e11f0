#include "cache/host_pool.h"

#include <algorithm>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <utility>

#include "cache/row_ranges.h"

namespace plimsoll::cache {
namespace {

constexpr std::size_t kUnit = 4096;  // blocks begin on pages

std::int64_t units_of(std::size_t bytes) { return static_cast<std::int64_t>((bytes + kUnit - 1) / kUnit); }

}  // namespace

struct HostPool::State {
  struct Piece {
    std::shared_ptr<std::byte[]> memory;
    RowRanges units;
  };

  MakePiece make;
  std::size_t piece, most;
  mutable std::mutex mutex;  ///< of what follows
  std::deque<Piece> pieces;
  std::size_t bytes = 0;
  bool refused = false;  ///< a piece could not be made

  // One more piece that holds so many bytes.
  bool grow(std::size_t wanted) {
    const std::size_t size = std::max(piece, static_cast<std::size_t>(units_of(wanted)) * kUnit);
    if (refused || bytes + size > most) return false;
    std::shared_ptr<std::byte[]> memory;
    try {
      memory = make(size);
    } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): null says the same
    }
    refused = memory == nullptr;
    if (refused) return false;
    pieces.push_back({std::move(memory), RowRanges(static_cast<std::int64_t>(size / kUnit))});
    bytes += size;
    return true;
  }
};

HostPool::HostPool(MakePiece make, std::size_t piece, std::size_t most) : state_(std::make_shared<State>()) {
  state_->make = std::move(make);
  state_->most = most;
  state_->piece = std::max(kUnit, std::min(piece, most) / kUnit * kUnit);
}

std::shared_ptr<std::byte[]> HostPool::take(std::size_t bytes) {
  const std::int64_t units = std::max<std::int64_t>(1, units_of(bytes));
  const std::scoped_lock lock(state_->mutex);
  for (std::size_t at = 0;; ++at) {
    if (at == state_->pieces.size() && !state_->grow(bytes)) return nullptr;
    State::Piece& piece = state_->pieces[at];
    const auto first = piece.units.take(units);
    if (!first) continue;
    return {piece.memory.get() + static_cast<std::size_t>(*first) * kUnit,
            [state = state_, &piece, first = *first, units](std::byte*) {
              const std::scoped_lock held(state->mutex);
              piece.units.give_back(first, units);
            }};
  }
}

std::size_t HostPool::bytes() const {
  const std::scoped_lock lock(state_->mutex);
  return state_->bytes;
}

}  // namespace plimsoll::cache
