#pragma once
// What is wrong with files that are read: the first fault ends the reading, or all of them are listed.

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"

namespace plimsoll::data {

/// Readers say here what they find. One thread.
class Faults {
 public:
  /// `listing`: reading goes on after a fault, as far as anything can be read.
  explicit Faults(bool listing = false) : listing_(listing) {}

  bool listing() const { return listing_; }
  const std::vector<std::string>& list() const { return list_; }

  /// Keeps the fault when it lists, else throws it as Error(kData).
  void add(const std::string& what) {
    if (!listing_) throw Error(ExitCode::kData, what);
    list_.push_back(what);
  }

  /// Runs `part`; an Error(kData) that it throws is a fault, and so is a folder that cannot be read. False when there
  /// was one and it was kept.
  template <class Part>
  bool run(Part&& part) {
    try {
      std::forward<Part>(part)();
      return true;
    } catch (const Error& error) {
      if (!listing_ || error.code() != ExitCode::kData) throw;
      list_.emplace_back(error.what());
    } catch (const std::filesystem::filesystem_error& error) {
      add(error.what());
    }
    return false;
  }

 private:
  bool listing_;
  std::vector<std::string> list_;
};

}  // namespace plimsoll::data
