#pragma once
// A model of PyTorch's CUDA caching allocator: from the allocations and frees of a dry run to the bytes that a GPU
// would have reserved. Pure and in whole numbers; no torch. One thread at a time per model.
//
// The rules are those of c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h as of torch 2.11, with the
// settings that PYTORCH_CUDA_ALLOC_CONF leaves alone (no max_split_size, no garbage collection, no power-of-two
// rounding):
//  - A request is rounded up to 512 B. Up to 1 MiB it belongs to the small pool, else to the large one.
//  - The smallest free block of the pool that is large enough serves it; among equals the lowest address.
//  - Failing that a segment is made: 2 MiB for the small pool; for the large one 20 MiB for requests under 10 MiB,
//    else the request rounded up to 2 MiB.
//  - A block is split when the rest is at least 512 B (small pool) or more than 1 MiB (large pool). A rest that is not
//    split off counts as allocated.
//  - A freed block merges with the free blocks beside it in its segment and stays cached.
//  - When a segment would exceed the limit, every segment without a live block is given back and the request tried once
//    more: a retry, counted whether or not something was given back. Then it fails.
//  - Expandable segments: each pool has one range of addresses that is mapped as needed in granules of 2 MiB (small) or
//    20 MiB (large), at the lowest address where the request fits, free blocks before it included. Splitting as in the
//    small pool in both. Giving back unmaps the granules that lie wholly inside free blocks. Best fit takes a block
//    that can grow for as large as it can become. The limit is compared with the segment that would be made without
//    them, so that reserved bytes may exceed it by less than one granule.
//
// What the model does not know: one stream is assumed, so that a free is done at once; segments lie at ascending
// addresses in the order of their making, while the driver may reuse addresses (which decides only among blocks of
// equal size); and the device itself never runs out before the limit does.

#include <compare>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

namespace plimsoll::memory {

/// One allocation, free or release. A free's bytes are not read, nor is anything else of a release.
struct AllocatorEvent {
  std::int64_t bytes = 0;   ///< requested
  std::uint64_t block = 0;  ///< names the block until its free; 0 is no block that the list allocates
  bool free = false;
  bool release = false;  ///< what holds no live block is given back, as emptyCache does
};

struct AllocatorRules {
  bool expandable_segments = false;
  /// Bytes that may be reserved: the memory fraction's share of the device, less what is reserved elsewhere. Null:
  /// 2^60.
  std::optional<std::int64_t> limit_bytes;
};

/// Bytes and counts as torch's own statistics give them: allocated_bytes, reserved_bytes, num_alloc_retries, num_ooms.
struct AllocatorStats {
  std::int64_t live = 0, peak_live = 0;            ///< as requested
  std::int64_t allocated = 0, peak_allocated = 0;  ///< sizes of the live blocks: rounded, with rests not split off
  std::int64_t reserved = 0, peak_reserved = 0;    ///< held from the driver
  /// What a release would leave: reserved bytes less what holds no live block.
  std::int64_t needed = 0, peak_needed = 0;
  /// The most allocated at once while reserved was at its peak.
  std::int64_t allocated_at_peak_reserved = 0;
  /// Segments held. An expandable segment counts as one, however much of it is mapped.
  std::int64_t segments = 0, peak_segments = 0;
  std::int64_t driver_calls = 0;          ///< segments made and mappings so far: each costs time
  std::int64_t retries = 0;               ///< cached blocks released because of the limit, and tried again
  std::int64_t failures = 0;              ///< requests that did not fit even then
  std::int64_t failed_request_bytes = 0;  ///< the latest of them, as requested; 0: none

  /// Reserved but not allocated at the reserved peak, in 1/10000 of it, rounded down. 0 when nothing was reserved.
  std::int64_t fragmentation() const;
  friend bool operator==(const AllocatorStats&, const AllocatorStats&) = default;
};

/// The allocator's state. Starts empty; keeps what it caches from one list of events to the next, as a GPU does.
class CachingAllocatorModel {
 public:
  /// Throws Error(kUsage) when the limit is negative.
  explicit CachingAllocatorModel(const AllocatorRules& rules = {});

  /// False when the request does not fit (counted in stats); then nothing has changed but what was released. A request
  /// of 0 bytes takes no block. Throws Error(kData) when bytes are negative, or `block` is 0 or live already.
  bool allocate(std::int64_t bytes, std::uint64_t block);
  /// A block that is not live is passed over: it was allocated before the list began, or its request failed.
  void free(std::uint64_t block);
  /// Gives back what holds no live block, as emptyCache does. Not a retry.
  void release_cached();
  /// A new limit. It may be below what is reserved: the next segment is then one too many. Throws Error(kUsage) when it
  /// is negative.
  void set_limit(std::int64_t bytes);
  /// Peaks start anew from what is held now; counts go on.
  void reset_peaks();

  /// Applies `events` up to the first request that fails; false if one did. `offset` is added to every block but 0, so
  /// that lists which number their blocks from 1 can follow one another over blocks that stay live.
  bool replay(std::span<const AllocatorEvent> events, std::uint64_t offset = 0);

  const AllocatorStats& stats() const { return stats_; }

 private:
  using Index = std::uint32_t;
  static constexpr Index kNone = std::numeric_limits<Index>::max();

  // A piece of a segment: live, free, or (expandable only) not mapped.
  struct Piece {
    std::int64_t size = 0;
    std::int64_t offset = 0;     // within the segment
    std::uint64_t segment = 0;   // numbered in the order of making, which stands for the address
    std::int64_t requested = 0;  // of a live piece
    Index previous = kNone, next = kNone;
    bool small = false, live = false, mapped = true;
  };
  // Order of best fit; of unmapped pieces (size 0) the order of addresses.
  struct Key {
    std::int64_t size;
    std::uint64_t segment;
    std::int64_t offset;
    Index piece;
    friend auto operator<=>(const Key&, const Key&) = default;
  };
  struct Pool {
    std::set<Key> free, unmapped;
  };

  Pool& pool_of(const Piece& piece) { return pools_[piece.small ? 1 : 0]; }
  std::int64_t granule_of(bool small) const;
  Index make_piece(const Piece& piece);
  void drop_piece(Index index);
  void insert(Index index);
  void erase(Index index);
  void cut(Index index, std::int64_t size);
  void merge(Index index, Index neighbour);
  std::int64_t room(Index index) const;
  std::int64_t releasable(const Piece& piece) const;

  Index cached(std::int64_t size, bool small);
  Index fresh(std::int64_t size, bool small);
  Index fresh_segment(std::int64_t bytes, bool small);
  Index fresh_mapping(std::int64_t size, bool small);
  Index place_to_map(std::int64_t size, bool small);
  bool fits_from(Index index, std::int64_t size) const;
  void map(Index index, std::int64_t size);
  void unmap(Index index);
  void release(Pool& pool);
  void hand_out(Index index, std::int64_t size, std::int64_t requested, std::uint64_t block);
  void reserve(std::int64_t bytes);
  void count_segment();
  void note_allocated();
  void note_needed();

  bool expandable_;
  std::int64_t limit_;
  AllocatorStats stats_;
  std::int64_t releasable_ = 0;  // what a release would give back
  Pool pools_[2];                // large, small
  std::vector<Piece> pieces_;
  std::vector<Index> unused_;
  std::unordered_map<std::uint64_t, Index> live_;
  std::uint64_t segments_made_ = 0;
};

/// One list of events through an empty allocator, up to the first request that fails.
AllocatorStats replay(std::span<const AllocatorEvent> events, const AllocatorRules& rules = {});

}  // namespace plimsoll::memory
