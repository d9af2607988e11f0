#pragma once
// Draws with gnuplot, a program that may be there or not, as a child process.

#include <chrono>
#include <string>

namespace plimsoll::report {

struct Drawing {
  std::string png;      ///< the picture's bytes; empty: there is none, and `problem` says why
  std::string problem;  ///< one line for a person
};

/// Runs `gnuplot` from PATH, without its users' settings, on a script that writes one PNG to standard output. Waits at
/// most `limit`, then kills it. Never throws but for want of memory: a program that is missing, fails, hangs or gives
/// no picture is a `problem`. Any thread; signal handlers and other children of the process are left alone.
Drawing draw(const std::string& script, std::chrono::milliseconds limit = std::chrono::minutes(1));

}  // namespace plimsoll::report
