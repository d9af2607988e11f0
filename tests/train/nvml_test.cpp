#include "train/nvml.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "train/loader_tuner.h"

namespace plimsoll::train {
namespace {

// Beside this program (tests/train/nvml_stand_in.cpp).
std::string nvml_stand_in() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path() / "libnvml_stand_in.so";
}

TEST(Nvml, SaysHowBusyTheGpuIs) {
  const auto says = utilisation_of(open_nvml("00000000:3b:00.0", nvml_stand_in().c_str()));
  ASSERT_TRUE(static_cast<bool>(says)) << nvml_stand_in();
  EXPECT_DOUBLE_EQ(says().value(), 0.37);
  EXPECT_DOUBLE_EQ(busy_part(says, 75, 100), 0.37) << "whatever steps wait";
}

TEST(Nvml, SaysWhatThisProcessUses) {
  const auto uses = use_of_this_process(open_nvml("00000000:3b:00.0", nvml_stand_in().c_str()));
  ASSERT_TRUE(static_cast<bool>(uses));
  EXPECT_EQ(uses().value(), 5LL << 30);
  const auto others = use_of_this_process(open_nvml("00000000:3c:00.0", nvml_stand_in().c_str()));
  ASSERT_TRUE(static_cast<bool>(others));
  EXPECT_FALSE(others().has_value()) << "another process's";
  EXPECT_FALSE(static_cast<bool>(use_of_this_process(open_nvml("00000000:3b:00.0", "libc.so.6"))));
}

TEST(Nvml, WithoutItARunGoesByItsOwnTimes) {
  const std::string bus = "00000000:3b:00.0";
  for (const char* library : {"libnvidia-ml-that-is-not-there.so.1", "libc.so.6"}) {
    const auto says = utilisation_of(open_nvml(bus, library));
    EXPECT_FALSE(static_cast<bool>(says)) << library;
    EXPECT_DOUBLE_EQ(busy_part(says, 25, 100), 0.75) << library << ": busy time over wall time";
  }
  EXPECT_FALSE(static_cast<bool>(utilisation_of(open_nvml("00000000:99:00.0", nvml_stand_in().c_str()))))
      << "no such GPU";
  const auto part = utilisation_of(open_nvml("00000000:3c:00.0", nvml_stand_in().c_str()));
  ASSERT_TRUE(static_cast<bool>(part));
  EXPECT_FALSE(part().has_value());
  EXPECT_DOUBLE_EQ(busy_part(part, 10, 40), 0.75);
  EXPECT_DOUBLE_EQ(busy_part(nullptr, 0, 0), 0) << "of a step without time";
}

}  // namespace
}  // namespace plimsoll::train
