// Which device a run gets where there is no GPU. What one does with a GPU is seen only where there is one.
#include "train/device.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "ddp/communicator.h"

namespace plimsoll::train {
namespace {

bool have_driver() { return dlopen("libcuda.so.1", RTLD_NOW) != nullptr; }

TEST(Device, TheCpuIsThereAlways) {
  Device device = open_device("cpu", 3);
  EXPECT_TRUE(device.place.is_cpu());
  EXPECT_EQ(device.library, nullptr);
  ASSERT_NE(device.memory, nullptr);
  EXPECT_GT(device.total, 0);
  EXPECT_GT(device.available(), 0);
  EXPECT_LE(device.available(), device.total);
  EXPECT_FALSE(device.name.empty());
  EXPECT_EQ(communicator_on(device, *ddp::make_solo()), nullptr) << "the host's communicator serves";
}

TEST(Device, AutoIsTheCpuWhereThereIsNoDriver) {
  if (have_driver()) GTEST_SKIP() << "this machine has an NVIDIA driver";
  EXPECT_TRUE(open_device("auto", 0).place.is_cpu());
}

TEST(Device, AGpuThatIsNotThereIsRefused) {
  if (have_driver()) GTEST_SKIP() << "this machine has an NVIDIA driver";
  try {
    open_device("cuda", 0);
    FAIL() << "opened a GPU without a driver";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_NE(std::string(error.what()).find("libcuda.so.1"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace plimsoll::train
