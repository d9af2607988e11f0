#include "cache/tiers.h"

#include <algorithm>

namespace plimsoll::cache {

TierSizes choose_tiers(std::optional<std::int64_t> device, std::optional<std::int64_t> host, const TierRoom& room) {
  TierSizes sizes;
  const bool all_fit = !room.on_cpu && room.features <= room.budget / kDevicePart;
  sizes.device = device.value_or(all_fit ? room.features : 0);
  const std::int64_t left = std::max<std::int64_t>(0, room.features - sizes.device);
  sizes.host = host.value_or(room.on_cpu ? 0 : std::min(left, room.host / 2));
  return sizes;
}

}  // namespace plimsoll::cache
