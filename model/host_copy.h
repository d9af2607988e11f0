#pragma once
// Values of a tensor kept in host memory outside every budget, while the device's memory serves others.

#include <torch/torch.h>

#include <cstddef>
#include <memory>
#include <vector>

namespace plimsoll::model {

/// A copy of a contiguous tensor's values. Host memory comes from the system, never from the budgeted allocator; where
/// there is none left, std::bad_alloc is thrown, which counts as out of memory. On meta there is nothing to copy. Not
/// thread-safe.
class HostCopy {
 public:
  HostCopy() = default;
  explicit HostCopy(const at::Tensor& values);
  bool holds() const { return !sizes_.empty(); }
  /// A new tensor with the values, on the device of `like`: an allocation of its own there.
  at::Tensor restore(const at::Tensor& like) const;
  void release();

 private:
  std::vector<std::int64_t> sizes_;
  at::ScalarType dtype_ = at::kFloat;
  std::size_t bytes_ = 0;
  std::unique_ptr<std::byte[]> block_;
};

}  // namespace plimsoll::model
