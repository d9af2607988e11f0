#pragma once
// The one place that states the version.

namespace plimsoll {
inline constexpr const char* kVersion = "0.1.0";
}  // namespace plimsoll
