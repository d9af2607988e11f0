#pragma once
// Features that are kept in memory, in front of the disk. The order of the sample stream is known, so that what is
// needed last makes room for what is needed sooner (L. A. Belady, A study of replacement algorithms for a
// virtual-storage computer, IBM Systems Journal 5 (1966), the optimal rule). Without torch.

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "core/host_bytes.h"

namespace plimsoll::cache {

/// Payloads are shared with whoever reads them. Any thread.
class MemoryTier {
 public:
  /// `bytes`: of all payloads together; 0: nothing is kept.
  explicit MemoryTier(std::uint64_t bytes) : most_(bytes) {}

  /// The payload of the sample made at `stamp`, or nothing; from now on it is needed next at `next`, a position of the
  /// stream. One of another stamp is forgotten.
  std::optional<HostBytes> find(std::int64_t sample, std::int64_t stamp, std::uint64_t next);
  /// Keeps it until what is needed sooner wants its place; not at all where all that is kept is needed sooner. Replaces
  /// an older one of the sample.
  void keep(std::int64_t sample, std::int64_t stamp, HostBytes payload, std::uint64_t next);

  /// It will not be asked for again.
  void forget(std::int64_t sample);

  bool keeps() const { return most_ > 0; }
  std::uint64_t bytes() const;

 private:
  struct Kept {
    std::int64_t stamp = 0;
    HostBytes payload;
    std::multimap<std::uint64_t, std::int64_t>::iterator place;  ///< in by_next_
  };
  void remove(std::unordered_map<std::int64_t, Kept>::iterator found);

  const std::uint64_t most_;
  mutable std::mutex mutex_;
  std::unordered_map<std::int64_t, Kept> kept_;
  std::multimap<std::uint64_t, std::int64_t> by_next_;  ///< samples, by when they are needed next
  std::uint64_t bytes_ = 0;
};

}  // namespace plimsoll::cache
