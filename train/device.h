#pragma once
// What a rank computes on: the CPU, or a GPU through the CUDA library that lies beside the program. The program itself
// links only the CPU libtorch; the device is a value, and the same code runs on each.

#include <c10/core/Device.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "ddp/device_communicator.h"
#include "memory/device_memory.h"

namespace plimsoll::model {
class HostCopies;
class Kernels;
}  // namespace plimsoll::model

namespace plimsoll::train {

class FlatKernels;
struct DeviceLibrary;

/// Cheap to copy; what it points to lives as long as the program. Its kernels are registered (model/kernels.h,
/// train/flat_kernels.h).
struct Device {
  c10::Device place = c10::kCPU;
  memory::DeviceMemory* memory = nullptr;
  std::string name;                         ///< "Some CPU, 8 cores", "NVIDIA H200": what times depend on
  std::string id;                           ///< no other device of any machine has it; empty for the CPU
  std::string card;                         ///< of any machine's, which its slices (MIG) share; empty for the CPU
  std::int64_t total = 0;                   ///< bytes that it has
  std::function<std::int64_t()> available;  ///< bytes that are free now
  /// Bytes of it that this process holds now outside of `memory`: context, modules, communicators. They grow with the
  /// first use of each kernel and communicator. Where the driver cannot tell processes apart it is all that is used
  /// outside of `memory`. Null where there is nothing of the kind: the CPU.
  std::function<std::int64_t()> overhead;
  /// Part of the last moments that it was busy, 0 to 1; nothing, or null, where it does not say.
  std::function<std::optional<double>()> utilisation;
  /// Host memory that it copies from fastest (page-locked), of so many bytes; null: ordinary memory serves. Throws
  /// c10::Error where there is none to be had. Any thread.
  std::function<std::shared_ptr<std::byte[]>(std::size_t)> pinned;
  int sharers = 0;  ///< ranks that compute on it, as communicator_on() finds; 0: all
  /// Bytes that were free when all ranks were there and none had loaded its model, the least that any rank on this
  /// device read, as communicator_on() finds; nothing: it did not look.
  std::optional<std::int64_t> free_at_start;
  const DeviceLibrary* library = nullptr;  ///< null for the CPU
};

/// The CPU behind its budgeted allocator (memory/cpu_allocator.h), installed with the first call.
Device cpu_device();

/// run.device: "cpu", "cuda", or "auto" (a GPU where the driver knows one and the CUDA library was built, else the
/// CPU). `local_rank` says which GPU, in turn if there are fewer than ranks. Call it before the first tensor of the
/// process, or libtorch asks its CUDA side too early and never again. Throws Error(kUsage) when "cuda" is not to be
/// had, or when "auto" finds a GPU that cannot be used: it says why, and what to do. Where "auto" finds a driver and
/// then no GPU or no library, it warns.
Device open_device(const std::string& wanted, int local_rank);

/// GPUs that the driver knows of; 0 without a driver. Opens nothing but the driver's library.
int count_gpus();

/// From now on dry runs stand for a GPU: they make what the CUDA kernels make, in their order, by the caching
/// allocator's rules. For the whole process; open_device() does it where it opens one.
void let_dry_runs_stand_for_a_gpu();
bool dry_runs_stand_for_a_gpu();
/// What cuBLAS (32 MiB) and cuBLASLt (1 MiB) hold in a dry run's GPU for each of the two threads that compute: what
/// libtorch 2.11 chooses for compute capability 9.0; for others it is less (aten/src/ATen/cuda/CublasHandlePool.cpp).
inline constexpr std::int64_t kCudaWorkspace = 2 * (std::int64_t{33} << 20);

/// What reduces in the memory of the ranks' devices: NCCL, or through host memory where two ranks share a GPU or have
/// slices of one, between which NCCL does not reduce. Null where `host` serves: on the CPU, and for one rank. Counts
/// the ranks that share `device`, and has all of them look at once at what is free on it, after what NCCL takes:
/// whoever opens its data first must not leave the others a smaller budget. Collective. Throws Error(kUsage) on all
/// ranks when only some of them have a GPU.
std::unique_ptr<ddp::Communicator> communicator_on(Device& device, ddp::Communicator& host);

/// What the CUDA library gives: one function is looked up in it, which returns this. The library calls nothing of the
/// program's.
struct DeviceLibrary {
  static constexpr int kVersion = 5;
  int version = kVersion;
  /// Opens a GPU, which becomes the thread's current one. Throws Error(kUsage).
  Device (*open)(int index) = nullptr;
  /// Of the current GPU.
  const model::Kernels& (*kernels)() = nullptr;
  const FlatKernels& (*flat_kernels)() = nullptr;
  const model::HostCopies& (*host_copies)() = nullptr;
  ddp::DeviceCopies (*copies)() = nullptr;
  std::unique_ptr<ddp::Communicator> (*nccl)(ddp::Communicator& host) = nullptr;
};
inline constexpr const char* kDeviceLibraryFile = "libplimsoll_cuda.so";
inline constexpr const char* kDeviceLibraryFunction = "plimsoll_device_library";

}  // namespace plimsoll::train
