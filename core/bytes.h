#pragma once
// Sizes in bytes, as people write them and as they read them.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace plimsoll {

class Setting;

inline namespace literals {
constexpr std::int64_t operator""_KiB(unsigned long long n) { return static_cast<std::int64_t>(n) << 10; }
constexpr std::int64_t operator""_MiB(unsigned long long n) { return static_cast<std::int64_t>(n) << 20; }
constexpr std::int64_t operator""_GiB(unsigned long long n) { return static_cast<std::int64_t>(n) << 30; }
}  // namespace literals

/// Reads "24GiB", "24 GB", "512MiB", "1.5GiB" or plain "4096" (bytes). KB, MB, GB, TB are powers of 1000; KiB, MiB,
/// GiB, TiB of 1024. Throws Error(kUsage) that names `what` (the key or option) when `text` is no size or is negative.
std::int64_t parse_bytes(std::string_view text, std::string_view what);

/// What a setting that is a size or a word says: its bytes, 0 for "none", nothing for "auto". Errors as parse_bytes.
std::optional<std::int64_t> bytes_or_auto(const Setting& setting, std::string_view what);

/// "24GiB,40GiB": sizes above 0, separated by commas. Errors as parse_bytes.
std::vector<std::int64_t> parse_sizes(std::string_view text, std::string_view what);

/// "1.50 GiB", "312.0 MiB", "17 B": three significant digits are enough for a person.
std::string format_bytes(std::int64_t bytes);

}  // namespace plimsoll
