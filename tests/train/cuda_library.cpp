// The CUDA library as the program opens it. A program of its own: opening it loads libtorch's CUDA side for good.

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "core/error.h"
#include "train/device.h"

namespace plimsoll::train {
namespace {

std::filesystem::path library() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path() / kDeviceLibraryFile;
}

class CudaLibrary : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(library())) GTEST_SKIP() << library() << " was not built: no nvcc was found";
    void* handle = dlopen(library().c_str(), RTLD_NOW | RTLD_GLOBAL);
    ASSERT_NE(handle, nullptr) << dlerror();
    using Get = const DeviceLibrary* (*)();
    const auto get = reinterpret_cast<Get>(dlsym(handle, kDeviceLibraryFunction));
    ASSERT_NE(get, nullptr) << dlerror();
    given_ = get();
    ASSERT_NE(given_, nullptr);
  }

  const DeviceLibrary* given_ = nullptr;
};

TEST_F(CudaLibrary, OpensAndGivesAllThatADeviceNeeds) {
  EXPECT_EQ(given_->version, DeviceLibrary::kVersion);
  EXPECT_NE(given_->open, nullptr);
  EXPECT_NE(given_->kernels, nullptr);
  EXPECT_NE(given_->flat_kernels, nullptr);
  EXPECT_NE(given_->host_copies, nullptr);
  EXPECT_NE(given_->copies, nullptr);
  EXPECT_NE(given_->nccl, nullptr);
}

// What the checks on a GPU ask it for beside that (cuda_device.cpp).
TEST_F(CudaLibrary, ReplaysAndRecordsAllocations) {
  void* handle = dlopen(library().c_str(), RTLD_NOW | RTLD_GLOBAL);
  for (const char* name :
       {"plimsoll_replay_allocations", "plimsoll_record_allocations", "plimsoll_recorded_allocations"})
    EXPECT_NE(dlsym(handle, name), nullptr) << name;
}

TEST_F(CudaLibrary, SaysThatThereIsNoDriver) {
  if (dlopen("libcuda.so.1", RTLD_NOW) != nullptr) GTEST_SKIP() << "this machine has an NVIDIA driver";
  try {
    given_->open(0);
    FAIL() << "opened a GPU without a driver";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_NE(std::string(error.what()).find("driver"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("run.device"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace plimsoll::train
