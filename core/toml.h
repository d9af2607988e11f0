#pragma once
// The one place that knows the TOML library.

#include <optional>
#include <string>
#include <string_view>

#include "core/setting.h"

namespace plimsoll {

/// A TOML document as a table whose values carry "name:line" as their origin. Throws Error(kUsage) with line and column
/// for text that is no TOML, and for dates and times, which no key takes.
Setting parse_toml(std::string_view text, const std::string& name);

/// One TOML value ("4", "[1, 2]", "\"a\""); nothing when `text` is none.
std::optional<Setting> parse_toml_value(std::string_view text);

}  // namespace plimsoll
