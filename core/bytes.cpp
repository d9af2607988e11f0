#include "core/bytes.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>

#include "core/error.h"
#include "core/setting.h"

namespace plimsoll {
namespace {

struct Unit {
  std::string_view name;
  double bytes;
};
constexpr std::array<Unit, 10> kUnits{{{"", 1.0},
                                       {"B", 1.0},
                                       {"KB", 1e3},
                                       {"MB", 1e6},
                                       {"GB", 1e9},
                                       {"TB", 1e12},
                                       {"KIB", 1024.0},
                                       {"MIB", 1048576.0},
                                       {"GIB", 1073741824.0},
                                       {"TIB", 1099511627776.0}}};

std::string_view trim(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front()))) text.remove_prefix(1);
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.remove_suffix(1);
  return text;
}

const Unit* find_unit(std::string_view name) {
  std::string upper;
  for (const char c : trim(name)) upper += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  for (const Unit& unit : kUnits) {
    if (unit.name == upper) return &unit;
  }
  return nullptr;
}

}  // namespace

std::int64_t parse_bytes(std::string_view text, std::string_view what) {
  const std::string_view trimmed = trim(text);
  double number = 0.0;
  const auto [end, error] =
      std::from_chars(trimmed.data(), trimmed.data() + trimmed.size(), number, std::chars_format::fixed);
  const Unit* unit = find_unit({end, static_cast<std::size_t>(trimmed.data() + trimmed.size() - end)});
  // The largest double below 2^63; a larger one would not fit the result.
  const bool fits = error == std::errc() && unit != nullptr && number >= 0.0 && number * unit->bytes < 0x1p63;
  if (!fits)
    fail(ExitCode::kUsage, "{} = \"{}\" is no size; write bytes like 4096, \"300MiB\", \"1.5GiB\" or \"24GB\"", what,
         text);
  return static_cast<std::int64_t>(std::llround(number * unit->bytes));
}

std::optional<std::int64_t> bytes_or_auto(const Setting& setting, std::string_view what) {
  if (setting.is("auto")) return std::nullopt;
  if (setting.is("none")) return 0;
  return setting.is_string() ? parse_bytes(setting.as_string(), what) : setting.as_integer();
}

std::vector<std::int64_t> parse_sizes(std::string_view text, std::string_view what) {
  std::vector<std::int64_t> sizes;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    sizes.push_back(parse_bytes(text.substr(at, comma - at), what));
    if (sizes.back() < 1)
      fail(ExitCode::kUsage, "{} = \"{}\": give sizes above 0, such as \"24GiB,40GiB\"", what, text);
    at = comma + 1;
  }
  return sizes;
}

std::string format_bytes(std::int64_t bytes) {
  static constexpr std::array<const char*, 5> kNames{"KiB", "MiB", "GiB", "TiB", "PiB"};
  if (bytes > -1024 && bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes) / 1024.0;
  std::size_t unit = 0;
  for (; std::abs(value) >= 1023.95 && unit + 1 < kNames.size(); ++unit) value /= 1024.0;
  return std::abs(value) < 9.995 ? fmt::format("{:.2f} {}", value, kNames[unit])
                                 : fmt::format("{:.1f} {}", value, kNames[unit]);
}

}  // namespace plimsoll
