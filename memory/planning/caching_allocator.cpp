#include "memory/planning/caching_allocator.h"

#include <algorithm>
#include <iterator>

#include "core/error.h"

namespace plimsoll::memory {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;
constexpr std::int64_t kSmallestBlock = 512;
constexpr std::int64_t kLargestSmall = kMiB;
constexpr std::int64_t kSmallSegment = 2 * kMiB;
constexpr std::int64_t kLargeSegment = 20 * kMiB;
constexpr std::int64_t kOwnSegmentFrom = 10 * kMiB;  // requests from this size on get a segment of their own size
constexpr std::int64_t kSegmentRounding = 2 * kMiB;
// Torch itself refuses requests of an exabyte. As a limit it keeps every sum here below 2^63.
constexpr std::int64_t kExabyte = std::int64_t{1} << 60;

constexpr std::int64_t round_up(std::int64_t bytes, std::int64_t unit) { return (bytes + unit - 1) / unit * unit; }
constexpr std::int64_t round_down(std::int64_t bytes, std::int64_t unit) { return bytes / unit * unit; }

std::int64_t segment_bytes(std::int64_t size) {
  if (size <= kLargestSmall) return kSmallSegment;
  return size < kOwnSegmentFrom ? kLargeSegment : round_up(size, kSegmentRounding);
}

}  // namespace

std::int64_t AllocatorStats::fragmentation() const {
  if (peak_reserved == 0) return 0;
  __extension__ using Wide = __int128;  // reserved x 10000 may exceed 2^63
  return static_cast<std::int64_t>(static_cast<Wide>(peak_reserved - allocated_at_peak_reserved) * 10000 /
                                   peak_reserved);
}

CachingAllocatorModel::CachingAllocatorModel(const AllocatorRules& rules)
    : expandable_(rules.expandable_segments), limit_(kExabyte) {
  set_limit(rules.limit_bytes.value_or(kExabyte));
}

void CachingAllocatorModel::set_limit(std::int64_t bytes) {
  if (bytes < 0) fail(ExitCode::kUsage, "allocator model: the limit must be 0 bytes or more, not {}", bytes);
  limit_ = std::min(bytes, kExabyte);
}

bool CachingAllocatorModel::allocate(std::int64_t bytes, std::uint64_t block) {
  if (bytes < 0) fail(ExitCode::kData, "allocator model: block {} asks for {} bytes", block, bytes);
  if (block == 0 || live_.contains(block)) {
    fail(ExitCode::kData, "allocator model: block {} is allocated, but {}", block,
         block == 0 ? "0 names no block" : "it is live already");
  }
  if (bytes == 0) return true;
  Index found = kNone;
  std::int64_t size = 0;
  if (bytes < kExabyte) {
    size = round_up(bytes, kSmallestBlock);
    const bool small = size <= kLargestSmall;
    found = cached(size, small);
    if (found == kNone) found = fresh(size, small);
    if (found == kNone) {
      ++stats_.retries;
      release_cached();
      found = fresh(size, small);
    }
  }
  if (found == kNone) {
    ++stats_.failures;
    stats_.failed_request_bytes = bytes;
    return false;
  }
  hand_out(found, size, bytes, block);
  return true;
}

void CachingAllocatorModel::free(std::uint64_t block) {
  const auto at = live_.find(block);
  if (at == live_.end()) return;
  const Index index = at->second;
  live_.erase(at);
  Piece& piece = pieces_[index];
  stats_.live -= piece.requested;
  stats_.allocated -= piece.size;
  piece.live = false;
  merge(index, piece.previous);
  merge(index, piece.next);
  insert(index);
  note_needed();
}

void CachingAllocatorModel::release_cached() {
  for (Pool& pool : pools_) release(pool);
  note_needed();
}

void CachingAllocatorModel::reset_peaks() {
  stats_.peak_live = stats_.live;
  stats_.peak_allocated = stats_.allocated;
  stats_.peak_reserved = stats_.reserved;
  stats_.peak_needed = stats_.needed;
  stats_.allocated_at_peak_reserved = stats_.allocated;
  stats_.peak_segments = stats_.segments;
}

bool CachingAllocatorModel::replay(std::span<const AllocatorEvent> events, std::uint64_t offset) {
  for (const AllocatorEvent& event : events) {
    const std::uint64_t block = event.block == 0 ? 0 : event.block + offset;
    if (event.release) {
      release_cached();
    } else if (event.free) {
      free(block);
    } else if (!allocate(event.bytes, block)) {
      return false;
    }
  }
  return true;
}

std::int64_t CachingAllocatorModel::granule_of(bool small) const { return small ? kSmallSegment : kLargeSegment; }

CachingAllocatorModel::Index CachingAllocatorModel::make_piece(const Piece& piece) {
  if (unused_.empty()) {
    pieces_.push_back(piece);
    return static_cast<Index>(pieces_.size() - 1);
  }
  const Index index = unused_.back();
  unused_.pop_back();
  pieces_[index] = piece;
  return index;
}

void CachingAllocatorModel::drop_piece(Index index) { unused_.push_back(index); }

void CachingAllocatorModel::insert(Index index) {
  const Piece& piece = pieces_[index];
  if (piece.mapped) {
    releasable_ += releasable(piece);
    pool_of(piece).free.insert({piece.size, piece.segment, piece.offset, index});
  } else {
    pool_of(piece).unmapped.insert({0, piece.segment, piece.offset, index});
  }
}

void CachingAllocatorModel::erase(Index index) {
  const Piece& piece = pieces_[index];
  if (piece.mapped) {
    releasable_ -= releasable(piece);
    pool_of(piece).free.erase({piece.size, piece.segment, piece.offset, index});
  } else {
    pool_of(piece).unmapped.erase({0, piece.segment, piece.offset, index});
  }
}

// Shortens a piece that stands in no set to `size`; the rest becomes a piece of its own, of the same state, in its set.
void CachingAllocatorModel::cut(Index index, std::int64_t size) {
  Piece rest = pieces_[index];
  if (rest.size == size) return;
  rest.offset += size;
  rest.size -= size;
  rest.previous = index;
  const Index made = make_piece(rest);
  if (rest.next != kNone) pieces_[rest.next].previous = made;
  pieces_[index].size = size;
  pieces_[index].next = made;
  insert(made);
}

// Takes a neighbour of the same state into a piece that stands in no set.
void CachingAllocatorModel::merge(Index index, Index neighbour) {
  if (neighbour == kNone) return;
  Piece& piece = pieces_[index];
  const Piece other = pieces_[neighbour];
  if (other.live || other.mapped != piece.mapped) return;
  erase(neighbour);
  piece.size += other.size;
  if (piece.previous == neighbour) {
    piece.offset = other.offset;
    piece.previous = other.previous;
    if (piece.previous != kNone) pieces_[piece.previous].next = index;
  } else {
    piece.next = other.next;
    if (piece.next != kNone) pieces_[piece.next].previous = index;
  }
  drop_piece(neighbour);
}

// How large a free piece can become: with the unmapped one behind it.
std::int64_t CachingAllocatorModel::room(Index index) const {
  const Piece& piece = pieces_[index];
  const bool grows = piece.next != kNone && !pieces_[piece.next].mapped;
  return piece.size + (grows ? pieces_[piece.next].size : 0);
}

// Bytes of a free piece that a release gives back: whole segments, or of an expandable one the granules inside.
std::int64_t CachingAllocatorModel::releasable(const Piece& piece) const {
  if (!expandable_) return piece.previous == kNone && piece.next == kNone ? piece.size : 0;
  const std::int64_t granule = granule_of(piece.small);
  return std::max<std::int64_t>(0, round_down(piece.offset + piece.size, granule) - round_up(piece.offset, granule));
}

// Best fit among the free pieces; taken out of its set.
CachingAllocatorModel::Index CachingAllocatorModel::cached(std::int64_t size, bool small) {
  std::set<Key>& free = pools_[small ? 1 : 0].free;
  auto at = free.lower_bound({size, 0, 0, 0});
  if (at == free.end()) return kNone;
  if (expandable_) {
    // Each step needs a piece with something unmapped behind it, so there are no more steps than such gaps.
    for (auto next = std::next(at); next != free.end() && room(next->piece) < room(at->piece); ++next) at = next;
  }
  const Index index = at->piece;
  erase(index);
  return index;
}

// A free piece of at least `size` from the driver, in no set; kNone beyond the limit.
CachingAllocatorModel::Index CachingAllocatorModel::fresh(std::int64_t size, bool small) {
  const std::int64_t bytes = segment_bytes(size);
  if (bytes > limit_ - stats_.reserved) return kNone;
  return expandable_ ? fresh_mapping(size, small) : fresh_segment(bytes, small);
}

CachingAllocatorModel::Index CachingAllocatorModel::fresh_segment(std::int64_t bytes, bool small) {
  Piece piece;
  piece.size = bytes;
  piece.segment = ++segments_made_;
  piece.small = small;
  count_segment();
  reserve(bytes);
  return make_piece(piece);
}

CachingAllocatorModel::Index CachingAllocatorModel::fresh_mapping(std::int64_t size, bool small) {
  Index index = place_to_map(size, small);
  erase(index);
  if (!pieces_[index].mapped) map(index, std::min(pieces_[index].size, size));
  while (pieces_[index].size < size) {
    // Behind a free piece that is too short lies an unmapped one: two free ones would have merged.
    const Index behind = pieces_[index].next;
    const std::int64_t missing = size - pieces_[index].size;
    insert(index);  // so that merging finds it where free pieces stand
    erase(behind);
    map(behind, std::min(pieces_[behind].size, missing));
    index = behind;
  }
  return index;
}

// The lowest place where `size` fits, made of unmapped pieces and the free ones between and before them. A new range of
// addresses if there is none: twice the largest possible limit, so that the first one nearly always stays the only one.
CachingAllocatorModel::Index CachingAllocatorModel::place_to_map(std::int64_t size, bool small) {
  for (const Key& key : pools_[small ? 1 : 0].unmapped) {
    const Index before = pieces_[key.piece].previous;
    const Index start = before != kNone && !pieces_[before].live ? before : key.piece;
    if (fits_from(start, size)) return start;
  }
  Piece range;
  range.size = round_down(2 * kExabyte, granule_of(small));
  range.segment = ++segments_made_;
  range.small = small;
  range.mapped = false;
  const Index index = make_piece(range);
  insert(index);
  count_segment();
  return index;
}

bool CachingAllocatorModel::fits_from(Index index, std::int64_t size) const {
  std::int64_t bytes = 0;
  for (; index != kNone && !pieces_[index].live && bytes < size; index = pieces_[index].next)
    bytes += pieces_[index].size;
  return bytes >= size;
}

// Maps the granules that the first `size` bytes of an unmapped piece need. The piece stands in no set, before and
// after.
void CachingAllocatorModel::map(Index index, std::int64_t size) {
  const std::int64_t mapped = round_up(size, granule_of(pieces_[index].small));
  cut(index, mapped);
  pieces_[index].mapped = true;
  merge(index, pieces_[index].previous);
  merge(index, pieces_[index].next);
  reserve(mapped);
}

// Gives the granules back that lie wholly inside a free piece of an expandable segment.
void CachingAllocatorModel::unmap(Index index) {
  const std::int64_t granule = granule_of(pieces_[index].small);
  const std::int64_t offset = pieces_[index].offset, end = offset + pieces_[index].size;
  const std::int64_t from = round_up(offset, granule), to = round_down(end, granule);
  if (from >= to) return;
  erase(index);
  Index whole = index;
  if (from > offset) {
    cut(index, from - offset);
    whole = pieces_[index].next;
    insert(index);
    erase(whole);
  }
  cut(whole, to - from);
  pieces_[whole].mapped = false;
  merge(whole, pieces_[whole].previous);
  merge(whole, pieces_[whole].next);
  stats_.reserved -= to - from;
  if (pieces_[whole].previous == kNone && pieces_[whole].next == kNone) {
    drop_piece(whole);
    --stats_.segments;
  } else {
    insert(whole);
  }
}

void CachingAllocatorModel::release(Pool& pool) {
  std::vector<Index> found;
  for (const Key& key : pool.free) {
    const Piece& piece = pieces_[key.piece];
    if (expandable_ || (piece.previous == kNone && piece.next == kNone)) found.push_back(key.piece);
  }
  for (const Index index : found) {
    if (expandable_) {
      unmap(index);
      continue;
    }
    erase(index);
    stats_.reserved -= pieces_[index].size;
    --stats_.segments;
    drop_piece(index);
  }
}

void CachingAllocatorModel::hand_out(Index index, std::int64_t size, std::int64_t requested, std::uint64_t block) {
  const std::int64_t rest = pieces_[index].size - size;
  if (pieces_[index].small || expandable_ ? rest >= kSmallestBlock : rest > kLargestSmall) cut(index, size);
  Piece& piece = pieces_[index];
  piece.live = true;
  piece.requested = requested;
  live_.emplace(block, index);
  stats_.live += requested;
  stats_.allocated += piece.size;
  stats_.peak_live = std::max(stats_.peak_live, stats_.live);
  stats_.peak_allocated = std::max(stats_.peak_allocated, stats_.allocated);
  note_allocated();
  note_needed();
}

void CachingAllocatorModel::reserve(std::int64_t bytes) {
  ++stats_.driver_calls;
  stats_.reserved += bytes;
  if (stats_.reserved <= stats_.peak_reserved) return;
  stats_.peak_reserved = stats_.reserved;
  stats_.allocated_at_peak_reserved = stats_.allocated;
}

void CachingAllocatorModel::count_segment() {
  ++stats_.segments;
  stats_.peak_segments = std::max(stats_.peak_segments, stats_.segments);
}

void CachingAllocatorModel::note_allocated() {
  if (stats_.reserved != stats_.peak_reserved) return;
  stats_.allocated_at_peak_reserved = std::max(stats_.allocated_at_peak_reserved, stats_.allocated);
}

void CachingAllocatorModel::note_needed() {
  stats_.needed = stats_.reserved - releasable_;
  stats_.peak_needed = std::max(stats_.peak_needed, stats_.needed);
}

AllocatorStats replay(std::span<const AllocatorEvent> events, const AllocatorRules& rules) {
  CachingAllocatorModel model(rules);
  model.replay(events);
  return model.stats();
}

}  // namespace plimsoll::memory
