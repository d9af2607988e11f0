#pragma once
// What the code under test says where it refuses something.

#include <gtest/gtest.h>

#include <string>

#include "core/error.h"

namespace plimsoll {

/// The text of the Error that `action` throws, whatever its code; "no error" where it throws none.
std::string error_of(const auto& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

/// The same; an Error of another code fails the test.
std::string error_of(ExitCode code, const auto& action) {
  return error_of([&] {
    try {
      action();
    } catch (const Error& error) {
      EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
      throw;
    }
  });
}

}  // namespace plimsoll
