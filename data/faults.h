#pragma once
// What is wrong with files that are read: the first fault ends the reading, or all of them are told.

#include <filesystem>
#include <functional>
#include <string>
#include <utility>

#include "core/error.h"

namespace plimsoll::data {

/// Readers say here what they find. One thread.
class Faults {
 public:
  using Sink = std::function<void(const std::string& what)>;

  /// The first fault is thrown.
  Faults() = default;
  /// `sink` is told of each, and reading goes on as far as anything can be read.
  explicit Faults(Sink sink) : sink_(std::move(sink)) {}

  /// Tells the sink or, without one, throws Error(kData).
  void add(const std::string& what) const {
    if (!sink_) throw Error(ExitCode::kData, what);
    sink_(what);
  }

  /// Runs `part`; an Error(kData) that it throws is a fault, and so is a folder that cannot be read. False when there
  /// was one and the sink was told.
  template <class Part>
  bool run(Part&& part) const {
    try {
      std::forward<Part>(part)();
      return true;
    } catch (const Error& error) {
      if (!sink_ || error.code() != ExitCode::kData) throw;
      sink_(error.what());
    } catch (const std::filesystem::filesystem_error& error) {
      add(error.what());
    }
    return false;
  }

 private:
  Sink sink_;
};

}  // namespace plimsoll::data
