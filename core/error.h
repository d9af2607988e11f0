#pragma once
// Errors that a user can do something about, and the exit codes they lead to.

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace plimsoll {

/// The program's exit codes. Users and `launch` rely on the numbers.
enum class ExitCode : int {
  kDone = 0,
  kUsage = 2,       ///< usage, configuration, or ranks that disagree
  kMemory = 3,      ///< no plan fits
  kData = 4,        ///< data or model files, or values that are not finite
  kPeer = 5,        ///< a peer was lost or timed out
  kCheckpoint = 6,  ///< a checkpoint is damaged
  kStopped = 75,    ///< stopped on request after a checkpoint
};

/// An error that ends the command with `code()`. Its text names the file, key or rank, the value, and what to do.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& text) : std::runtime_error(text), code_(code) {}
  ExitCode code() const noexcept { return code_; }

 private:
  ExitCode code_;
};

/// Throws Error with a formatted text: static words first, values last.
template <class... Args>
[[noreturn]] void fail(ExitCode code, fmt::format_string<Args...> text, Args&&... args) {
  throw Error(code, fmt::format(text, std::forward<Args>(args)...));
}

}  // namespace plimsoll
