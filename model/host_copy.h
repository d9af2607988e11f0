#pragma once
// What recomputed blocks keep in host memory outside every budget, while the device's memory serves others.

#include <torch/torch.h>

#include <cstddef>
#include <memory>
#include <vector>

namespace plimsoll::model {

/// A copy that runs beside what the device computes. Not thread-safe.
class Transfer {
 public:
  /// As wait(), where that was not called.
  virtual ~Transfer() = default;
  /// What is given to the device from here on runs after the copy. Does not hold up the calling thread.
  virtual void wait() = 0;
};

/// How a device copies beside its computing. Lives as long as the program; any thread.
class HostCopies {
 public:
  virtual ~HostCopies() = default;
  /// Host memory for values of this shape and dtype, outside every budget. Where there is none left it throws what
  /// counts as out of memory (memory/guardian.h).
  virtual at::Tensor host_like(const at::Tensor& values) const = 0;
  /// Copies after all that the device was given before. `to` lives, and `from` keeps its values, until the device has
  /// passed the transfer's wait().
  virtual std::unique_ptr<Transfer> copy(const at::Tensor& from, const at::Tensor& to) const = 0;
};

/// Null for a device that does not: its copies hold up everything, and each happens where it is asked for.
const HostCopies* host_copies_for(c10::DeviceType device);
/// In the place of the one before. `copies` lives as long as the program; null: none.
void register_host_copies(c10::DeviceType device, const HostCopies* copies);
/// For meta tensors that stand for those of a device that does: nothing is copied.
const HostCopies& dry_host_copies();

/// What the blocks of one forward pass keep on the host, in their order. Backward asks for it in the reverse order.
///
/// Where copies run beside the computing, a block's values leave while it computes, and in backward those of the block
/// before come back while this one is run again. So in backward the device holds one block's values more than where
/// copies hold everything up, at places that depend on nothing but the order of the blocks: a dry run sees the same
/// allocations. One thread at a time.
class HostChain {
 public:
  /// Begins to copy the values of a contiguous tensor; returns their place, counted from 0. Throws what counts as out
  /// of memory where there is no host memory left. On meta nothing is copied.
  std::size_t keep(const at::Tensor& values);
  /// What is given to the device from here on may have the memory of the values that were kept last.
  void let_go();
  /// The values in a new tensor on the device of `like`, once.
  at::Tensor restore(std::size_t place, const at::Tensor& like);
  /// What is kept for the place is not needed any more.
  void release(std::size_t place);

 private:
  struct Kept {
    std::vector<std::int64_t> sizes;
    at::ScalarType dtype = at::kFloat;
    bool holds = false;
    std::unique_ptr<std::byte[]> block;  ///< without HostCopies
    at::Tensor host;                     ///< with HostCopies
    // The transfer goes first, so that whoever gets this memory next comes after it.
    at::Tensor device;                   ///< with HostCopies: where the values still are, or are on their way to
    std::unique_ptr<Transfer> transfer;  ///< to or from it
  };
  static void fetch(Kept& kept, const at::Tensor& like);

  std::vector<Kept> kept_;
};

}  // namespace plimsoll::model
