// Which device a run gets where there is no GPU, and what ranks with a GPU agree on, whose GPUs are made up here. What
// a real one does is seen only where there is one.
#include "train/device.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <barrier>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.h"
#include "ddp/communicator.h"
#include "memory/cpu_allocator.h"
#include "tests/error_of.h"
#include "tests/train/tiny_run.h"
#include "train/source.h"

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

/// Two ranks that are threads of this process. Only what gathers is there.
class Twin final : public ddp::Communicator {
 public:
  struct Shared {
    std::barrier<> meeting{2};
    std::array<std::vector<std::byte>, 2> bytes;
  };
  Twin(int rank, Shared& shared) : rank_(rank), shared_(shared) {}
  int rank() const override { return rank_; }
  int world() const override { return 2; }
  int local_rank() const override { return rank_; }
  void all_reduce_sum(std::span<float>) override {}
  void broadcast(std::span<std::byte>, int) override {}
  std::vector<std::byte> all_gather(std::span<const std::byte> bytes) override {
    shared_.bytes[static_cast<std::size_t>(rank_)].assign(bytes.begin(), bytes.end());
    barrier();
    std::vector<std::byte> all = shared_.bytes[0];
    all.insert(all.end(), shared_.bytes[1].begin(), shared_.bytes[1].end());
    barrier();
    return all;
  }
  void barrier() override { shared_.meeting.arrive_and_wait(); }
  void enter(std::int64_t, const char*) override {}
  [[noreturn]] void abort(int) override { throw Error(ExitCode::kPeer, "aborted"); }
  std::string name() const override { return "twin"; }

 private:
  int rank_;
  Shared& shared_;
};

/// Stands for what NCCL would make.
class MadeByNccl final : public ddp::DeviceCommunicator {
 public:
  using DeviceCommunicator::DeviceCommunicator;
  void all_reduce_sum(std::span<float>) override {}
  std::string name() const override { return "nccl"; }
};

const DeviceLibrary& made_up_library() {
  static const DeviceLibrary library = [] {
    DeviceLibrary made;
    made.copies = [] { return ddp::DeviceCopies{}; };
    made.nccl = [](ddp::Communicator& host) -> std::unique_ptr<ddp::Communicator> {
      return std::make_unique<MadeByNccl>(host);
    };
    return made;
  }();
  return library;
}

/// A GPU that is made up: its memory is the host's.
Device made_up_gpu(const std::string& id, const std::string& card, std::function<std::int64_t()> available) {
  Device device = cpu_device();
  device.name = "a made-up GPU";
  device.id = id;
  device.card = card;
  device.available = std::move(available);
  device.library = &made_up_library();
  return device;
}

/// What the two ranks find, each on its own device; gives the names of what reduces.
std::array<std::string, 2> meet(std::array<Device, 2>& devices) {
  Twin::Shared shared;
  std::array<std::string, 2> names;
  const auto rank = [&](int number) {
    const auto place = static_cast<std::size_t>(number);
    Twin host(number, shared);
    names[place] = communicator_on(devices[place], host)->name();
  };
  std::thread other(rank, 1);
  rank(0);
  other.join();
  return names;
}

// A rank that goes on loads its model, and the other must not take what is free after that for all there is.
TEST(RanksOnOneGpu, ReadWhatIsFreeTogetherAndTakeTheLeast) {
  std::atomic<std::int64_t> taken{0};
  const auto one_after_another = [&taken] { return (std::int64_t{16} << 30) - taken.fetch_add(1 << 20); };
  std::array<Device, 2> devices = {made_up_gpu("one", "card", one_after_another),
                                   made_up_gpu("one", "card", one_after_another)};
  EXPECT_EQ(meet(devices), (std::array<std::string, 2>{"twin, staged", "twin, staged"}));
  for (const Device& device : devices) {
    EXPECT_EQ(device.sharers, 2);
    EXPECT_EQ(device.free_at_start, (std::int64_t{16} << 30) - (1 << 20));
  }
}

TEST(RanksOnOneGpu, SlicesOfACardHaveMemoryOfTheirOwnAndNoNccl) {
  std::array<Device, 2> devices = {made_up_gpu("slice 1", "card", [] { return std::int64_t{10} << 30; }),
                                   made_up_gpu("slice 2", "card", [] { return std::int64_t{20} << 30; })};
  EXPECT_EQ(meet(devices), (std::array<std::string, 2>{"twin, staged", "twin, staged"}));
  EXPECT_EQ(devices[0].sharers, 1);
  EXPECT_EQ(devices[0].free_at_start, std::int64_t{10} << 30);
  EXPECT_EQ(devices[1].free_at_start, std::int64_t{20} << 30);
}

TEST(RanksOnOneGpu, HaveNcclWhereEachHasACardOfItsOwn) {
  std::array<Device, 2> devices = {made_up_gpu("one", "card 1", [] { return std::int64_t{10} << 30; }),
                                   made_up_gpu("two", "card 2", [] { return std::int64_t{20} << 30; })};
  EXPECT_EQ(meet(devices), (std::array<std::string, 2>{"nccl", "nccl"}));
  EXPECT_EQ(devices[1].sharers, 1);
  EXPECT_EQ(devices[1].free_at_start, std::int64_t{20} << 30);
}

/// A session's budget, or what it says instead.
std::string budget_text(const std::string& budget, const Device& device) {
  static const std::string dir = [] {
    std::string path = testing::TempDir() + "plimsoll-device-test";
    write_tiny_model(path);
    return path;
  }();
  Config config = tiny_config(dir);
  config.memory.budget = budget;
  const auto source = make_source(config);
  const auto solo = ddp::make_solo();
  std::string text;
  const std::string error =
      error_of(ExitCode::kMemory, [&] { text = std::to_string(Session(config, *solo, *source, device).budget); });
  memory::CpuAllocator::install().set_budget(std::numeric_limits<std::int64_t>::max());
  return text.empty() ? error : text;
}

TEST(RanksOnOneGpu, EachHasItsPartOfWhatWasFreeBeforeAnyLoaded) {
  Device device = made_up_gpu("one", "card", [] { return std::int64_t{1} << 30; });
  device.sharers = 2;
  device.free_at_start = std::int64_t{8} << 30;  // the other rank was quick, and has loaded since
  EXPECT_EQ(budget_text("auto", device), std::to_string(std::int64_t{4} << 30));
}

TEST(RanksOnOneGpu, ABudgetAboveWhatIsFreeIsRefusedBeforeAnythingIsLoaded) {
  Device device = made_up_gpu("one", "card", [] { return std::int64_t{1} << 30; });
  device.total = std::int64_t{80} << 30;
  const std::string text = budget_text("60GiB", device);
  EXPECT_NE(text.find("rank 0: memory.budget is 60"), std::string::npos) << text;
  EXPECT_NE(text.find("a made-up GPU has 1"), std::string::npos) << text;
  device.free_at_start = std::int64_t{61} << 30;
  EXPECT_EQ(budget_text("60GiB", device), std::to_string(std::int64_t{60} << 30));
}

}  // namespace
}  // namespace plimsoll::train
