#include "cache/tiers.h"

#include <algorithm>

namespace plimsoll::cache {

TierSizes choose_tiers(std::optional<std::int64_t> device, std::optional<std::int64_t> host, const TierRoom& room) {
  TierSizes sizes;
  const bool all_fit = !room.on_cpu && room.features <= std::min(room.budget / kDevicePart, room.left / kLeftPart);
  sizes.device = std::min(device.value_or(all_fit ? room.features : 0), room.features);
  const std::int64_t left = room.features - sizes.device;
  sizes.host = std::min(left, host.value_or(room.on_cpu ? 0 : room.host / 2));
  return sizes;
}

}  // namespace plimsoll::cache
