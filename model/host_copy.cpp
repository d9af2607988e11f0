#include "model/host_copy.h"

#include "model/ops_node.h"

namespace plimsoll::model {
namespace {

// The CPU's own memory, without asking the budgeted allocator.
at::Tensor seen_as_tensor(std::byte* block, at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::from_blob(block, sizes, at::TensorOptions(dtype));
}

}  // namespace

HostCopy::HostCopy(const at::Tensor& values)
    : sizes_(values.sizes().vec()), dtype_(values.scalar_type()), bytes_(values.nbytes()) {
  if (values.is_meta()) return;
  // Not std::make_unique: it would fill with zeros what is overwritten at once.
  block_.reset(new std::byte[bytes_]);  // NOLINT(modernize-make-unique)
  const at::NoGradGuard no_graph;
  seen_as_tensor(block_.get(), sizes_, dtype_).copy_(values);  // waits for a device
}

at::Tensor HostCopy::restore(const at::Tensor& like) const {
  at::Tensor values = make(sizes_, dtype_, like);
  const at::NoGradGuard no_graph;
  if (block_ != nullptr) values.copy_(seen_as_tensor(block_.get(), sizes_, dtype_));
  return values;
}

void HostCopy::release() {
  block_.reset();
  sizes_.clear();
}

}  // namespace plimsoll::model
