#include "train/device.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <vector>

#include "core/error.h"
#include "ddp/handshake.h"
#include "memory/cpu_allocator.h"
#include "memory/dry_run.h"
#include "model/host_copy.h"
#include "model/kernels.h"
#include "model/kernels_meta_cuda.h"
#include "train/flat_kernels.h"
#include "train/options.h"

namespace plimsoll::train {
namespace {

namespace fs = std::filesystem;

struct Driver {
  bool found = false;
  int devices = 0;
  std::string trouble;  ///< why there are none
};

// By the driver's own library, which is there wherever a GPU can be used: libtorch's CUDA side, half a second and a
// gigabyte of address space, is opened for nothing else.
Driver look_for_devices() {
  using Init = int (*)(unsigned);
  using Count = int (*)(int*);
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (driver == nullptr) return {false, 0, "no NVIDIA driver is installed (libcuda.so.1)"};
  const auto init = reinterpret_cast<Init>(dlsym(driver, "cuInit"));
  const auto count = reinterpret_cast<Count>(dlsym(driver, "cuDeviceGetCount"));
  if (init == nullptr || count == nullptr) return {true, 0, "libcuda.so.1 is no NVIDIA driver"};
  if (const int error = init(0); error != 0)
    return {true, 0, fmt::format("the NVIDIA driver does not start (cuInit gives error {})", error)};
  int devices = 0;
  if (const int error = count(&devices); error != 0 || devices == 0)
    return {true, 0, "the NVIDIA driver knows no GPU (CUDA_VISIBLE_DEVICES may hide them)"};
  return {true, devices, ""};
}

fs::path library_path() {
  std::error_code ignored;
  return fs::read_symlink("/proc/self/exe", ignored).parent_path() / kDeviceLibraryFile;
}

// Who has a driver should hear why no GPU is used.
bool can_use(const Driver& driver) {
  if (driver.devices > 0 && fs::exists(library_path())) return true;
  if (driver.devices > 0) {
    spdlog::warn("the driver knows {} GPU{}, and {} is not there: running on the CPU; it is built where nvcc is",
                 driver.devices, driver.devices == 1 ? "" : "s", library_path().string());
  } else if (driver.found) {
    spdlog::warn("{}: running on the CPU", driver.trouble);
  }
  return false;
}

const DeviceLibrary& open_library() {
  const fs::path file = library_path();
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) {
    const char* said = dlerror();
    fail(ExitCode::kUsage,
         "run.device: there is a GPU, but its library does not open: {}; build it where nvcc is installed, with the "
         "wheels of tools/requirements-cuda.txt, or set run.device = \"cpu\"",
         said == nullptr ? file.string() : said);
  }
  using Get = const DeviceLibrary* (*)();
  const auto get = reinterpret_cast<Get>(dlsym(handle, kDeviceLibraryFunction));
  const DeviceLibrary* library = get == nullptr ? nullptr : get();
  if (library == nullptr || library->version != DeviceLibrary::kVersion) {
    fail(ExitCode::kUsage, "{}: of another build than this program (version {}, {} is needed); build both together",
         file.string(), library == nullptr ? 0 : library->version, DeviceLibrary::kVersion);
  }
  return *library;
}

}  // namespace

int count_gpus() { return look_for_devices().devices; }

Device cpu_device() {
  Device device;
  device.memory = &memory::CpuAllocator::install();
  device.name = processor_name();
  device.total = machine_memory();
  device.available = [] { return available_memory(1); };
  return device;
}

namespace {
bool dry_runs_are_of_a_gpu = false;
}

void let_dry_runs_stand_for_a_gpu() {
  dry_runs_are_of_a_gpu = true;
  model::register_kernels(c10::kMeta, &model::cuda_meta_kernels());
  model::register_host_copies(c10::kMeta, &model::dry_host_copies());
  memory::count_as(memory::kCudaCounting);
}

bool dry_runs_stand_for_a_gpu() { return dry_runs_are_of_a_gpu; }

Device open_device(const std::string& wanted, int local_rank) {
  if (wanted == "cpu") return cpu_device();
  const Driver driver = look_for_devices();
  if (wanted == "auto" && !can_use(driver)) return cpu_device();
  if (driver.devices == 0) {
    fail(ExitCode::kUsage, "run.device = \"{}\": {}; set run.device = \"cpu\", or run it on a machine with a GPU",
         wanted, driver.trouble);
  }
  const DeviceLibrary& library = open_library();
  Device device = library.open(local_rank % driver.devices);
  device.library = &library;
  model::register_kernels(device.place.type(), &library.kernels());
  model::register_host_copies(device.place.type(), &library.host_copies());
  let_dry_runs_stand_for_a_gpu();
  register_flat_kernels(device.place.type(), &library.flat_kernels());
  return device;
}

namespace {

std::unique_ptr<ddp::Communicator> reducer_on(const Device& device, const std::vector<std::string>& cards,
                                              ddp::Communicator& host) {
  const std::set<std::string> different(cards.begin(), cards.end());
  if (different.size() == cards.size()) return device.library->nccl(host);
  if (host.rank() == 0)
    spdlog::info("{} ranks share {} GPUs: gradients are summed in host memory", cards.size(), different.size());
  return ddp::make_staged(host, device.library->copies());
}

// All ranks have opened their devices by now, and none goes on before all have looked.
void look_at_free_bytes(Device& device, const std::vector<std::string>& ids, ddp::Communicator& host) {
  const std::vector<std::int64_t> mine = {device.available()};
  const auto all = ddp::share_numbers(host, mine);
  std::int64_t least = mine.front();
  for (std::size_t rank = 0; rank < ids.size(); ++rank) {
    if (ids[rank] == device.id) least = std::min(least, all[rank].at(0));
  }
  device.free_at_start = least;
}

}  // namespace

std::unique_ptr<ddp::Communicator> communicator_on(Device& device, ddp::Communicator& host) {
  if (host.world() == 1) return nullptr;
  const auto ids = ddp::share_text(host, device.id);  // the CPU's is empty
  const auto without = std::ranges::find(ids, ""),
             with = std::ranges::find_if(ids, [](auto&id) { return !id.empty(); });
  if (with == ids.end()) return nullptr;
  if (without != ids.end()) {
    fail(ExitCode::kUsage,
         "run.device = \"auto\": rank {} computes on a GPU and rank {} on the CPU; give every rank's machine a GPU "
         "and the CUDA library, or set run.device = \"cpu\"",
         with - ids.begin(), without - ids.begin());
  }
  device.sharers = static_cast<int>(std::ranges::count(ids, device.id));
  const auto cards = ddp::share_text(host, device.card);
  auto reduces = reducer_on(device, cards, host);
  look_at_free_bytes(device, ids, host);
  return reduces;
}

}  // namespace plimsoll::train
