#pragma once
// How many bytes of features a rank keeps in front of the disk, and where.

#include <cstdint>
#include <optional>

namespace plimsoll::cache {

/// What is known when the sizes are chosen.
struct TierRoom {
  std::int64_t features = 0;  ///< bytes of all training samples' features, in the compute dtype
  std::int64_t budget = 0;    ///< of the rank's device memory
  std::int64_t left = 0;      ///< of it by what is live before a step
  std::int64_t host = 0;      ///< host memory that is free for this rank
  bool on_cpu = true;         ///< the device's memory is the host's
};

struct TierSizes {
  std::int64_t device = 0, host = 0;
  friend bool operator==(const TierSizes&, const TierSizes&) = default;
};

/// Part of the budget that "auto" gives to features, at most, and of what is left of it.
inline constexpr std::int64_t kDevicePart = 20, kLeftPart = 4;

/// `device`, `host`: what the settings say; nothing: "auto". Never more than all features take. A device's memory is
/// worth more to micro-batches: it keeps features by itself only where they all fit into a twentieth of the budget and
/// a quarter of what is left of it, and then the host need not. Host memory takes what it has room for, up to half of
/// what is free. On the CPU both are the same memory, whose free part the system fills with pages of the files by
/// itself: nothing. Pure.
TierSizes choose_tiers(std::optional<std::int64_t> device, std::optional<std::int64_t> host, const TierRoom& room);

}  // namespace plimsoll::cache
