// The conformance suite of tests/ddp over the ranks' GPUs: by NCCL where every rank has one of its own, a single
// rank too, through pinned host memory where they share. Where there is no GPU it says so, and nothing else runs. As
// the others:
//
//   mpirun -n 2 build/device_conformance
//   mpirun -n 3 --enable-recovery build/device_conformance --fault killed FOLDER
//
// --can-run: whether this machine has what it takes; if not, 77 and the reason.

#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "tests/ddp/conformance.h"
#include "tests/ddp/conformance_program.h"
#include "train/device.h"

namespace plimsoll::ddp {
namespace {

constexpr double kPatience = 20.0;  // seconds: ranks take some to start their GPUs, and not all the same
constexpr int kCannotRun = 77;

/// Empty where there is a GPU to reduce on.
std::string why_not() {
  const auto library = std::filesystem::read_symlink("/proc/self/exe").parent_path() / train::kDeviceLibraryFile;
  if (!std::filesystem::exists(library)) return library.string() + " was not built: no nvcc was found";
  if (train::count_gpus() == 0) return "no GPU: nothing was reduced by NCCL or in a GPU's memory";
  return "";
}

/// The suite's values are the host's: copied to the device, reduced there, and copied back.
class OnDevice final : public DeviceCommunicator {
 public:
  OnDevice(Communicator& host, const train::Device& device, std::unique_ptr<Communicator> reduces)
      : DeviceCommunicator(host),
        place_(device.place),
        copies_(device.library->copies()),
        reduces_(std::move(reduces)) {}

  void all_reduce_sum(std::span<float> values) override {
    const at::Tensor memory =
        at::empty({static_cast<std::int64_t>(values.size())}, at::TensorOptions(place_).dtype(at::kFloat));
    const std::span<float> there(memory.data_ptr<float>(), values.size());
    copies_.from_host(values, there.data());
    reduces_->all_reduce_sum(there);
    copies_.to_host(there, values.data());
  }
  std::string name() const override { return reduces_->name(); }

 private:
  c10::Device place_;
  DeviceCopies copies_;
  std::unique_ptr<Communicator> reduces_;
};

std::unique_ptr<Communicator> on_device(Communicator& host) {
  train::Device device = train::open_device("cuda", host.local_rank());
  auto reduces = train::communicator_on(device, host);
  // A run of one rank reduces nothing. Here NCCL does: it is all of it that a machine with one GPU can run.
  if (!reduces) reduces = device.library->nccl(host);
  return std::make_unique<OnDevice>(host, device, std::move(reduces));
}

TEST(DeviceConformance, NcclReducesWhereEveryRankHasAGpuOfItsOwn) {
  if (const std::string reason = why_not(); !reason.empty()) GTEST_SKIP() << reason;
  const bool own = tested().world() <= train::count_gpus();
  EXPECT_EQ(tested().name(), own ? "nccl" : "mpi, staged");
  if (!own && tested().rank() == 0)
    std::printf("NCCL was not run: %d ranks have %d GPUs\n", tested().world(), train::count_gpus());
}

int run(int argc, char** argv) {
  const std::string reason = why_not();
  const std::string_view first = argc > 1 ? argv[1] : "";
  if (first == "--can-run" || (first == "--fault" && !reason.empty())) {
    std::printf("%s\n", reason.c_str());
    return reason.empty() ? 0 : kCannotRun;
  }
  if (reason.empty()) return run_conformance(argc, argv, &on_device, kPatience);
  testing::InitGoogleTest(&argc, argv);
  GTEST_FLAG_SET(filter, "DeviceConformance.*");
  return RUN_ALL_TESTS();
}

}  // namespace
}  // namespace plimsoll::ddp

int main(int argc, char** argv) { return plimsoll::ddp::run(argc, argv); }
