#pragma once
// Logging of the program: spdlog to standard error, so that standard output stays free for what a command prints.
// Use spdlog::info(...) and the like anywhere, from any thread.

#include <string>

namespace plimsoll {

/// Sets level and form of every later message. `level`: "debug", "info", "warning", "error" or "off"; others throw
/// Error(kUsage). In a world of more than one each message starts with its rank ("[rank 1] ..."); warnings and errors
/// start with that word. Call once, early, and again when the rank is known.
void start_logging(const std::string& level, int rank = 0, int world = 1);

}  // namespace plimsoll
