#include "model/host_copy.h"

#include <cstring>

#include "core/error.h"
#include "model/ops_node.h"

namespace plimsoll::model {
namespace {

// A device with memory of its own copies through its library, which registers itself when it is opened.
void require_host_device(const at::Tensor& tensor) {
  if (tensor.is_cpu() || tensor.is_meta()) return;
  fail(ExitCode::kUsage, "memory.offload: no copies to host memory from device {} yet; set memory.offload = \"off\"",
       c10::DeviceTypeName(tensor.device().type()));
}

}  // namespace

HostCopy::HostCopy(const at::Tensor& values)
    : sizes_(values.sizes().vec()), dtype_(values.scalar_type()), bytes_(values.nbytes()) {
  require_host_device(values);
  if (values.is_meta()) return;
  // Not std::make_unique: it would fill with zeros what is overwritten at once.
  block_.reset(new std::byte[bytes_]);  // NOLINT(modernize-make-unique)
  std::memcpy(block_.get(), values.const_data_ptr(), bytes_);
}

at::Tensor HostCopy::restore(const at::Tensor& like) const {
  at::Tensor values = make(sizes_, dtype_, like);
  if (block_ != nullptr) std::memcpy(values.mutable_data_ptr(), block_.get(), bytes_);
  return values;
}

void HostCopy::release() {
  block_.reset();
  sizes_.clear();
}

}  // namespace plimsoll::model
