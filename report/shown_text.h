#pragma once
// Texts out of streams, made fit to be shown: a task's name is whatever a dataset holds.

#include <cstddef>
#include <string>
#include <string_view>

namespace plimsoll::report {

/// On one line, without control characters (each becomes a space), at most `most` bytes and "..." behind what was cut;
/// never in the middle of a UTF-8 character.
std::string on_one_line(std::string_view text, std::size_t most);

/// For HTML, as content and within quotes; control characters that XML does not know become spaces.
std::string escape_html(std::string_view text);

}  // namespace plimsoll::report
