#include "train/gradient_sink.h"

#include <ATen/ops/add.h>
#include <ATen/ops/from_blob.h>

#include <limits>

namespace plimsoll::train {

// The sequence number is AccumulateGrad's: of the nodes that are ready, the sinks go first and free the gradients.
GradientSink::GradientSink(const at::Tensor& parameter, std::int64_t begin, Accumulation& into)
    : Node(std::numeric_limits<std::uint64_t>::max()), begin_(begin), elements_(parameter.numel()), into_(into) {
  add_input_metadata(parameter);
}

torch::autograd::variable_list GradientSink::apply(torch::autograd::variable_list&& gradients) {
  if (gradients.at(0).defined()) add(gradients[0]);
  return {};
}

void GradientSink::add(const at::Tensor& gradient) {
  if (gradient.is_meta()) return;
  float* to = into_.staging + begin_;
  const float* from = filled_ ? to : into_.empty ? nullptr : into_.sums + begin_;
  filled_ = true;
  at::Tensor strided;  // its sum, for a gradient whose memory is in another order: rare, and a second pass
  if (!gradient.is_contiguous()) {
    strided = at::from_blob(to, gradient.sizes(), gradient.options());
    if (from == nullptr) {
      strided.copy_(gradient);
    } else {
      at::add_out(strided, at::from_blob(const_cast<float*>(from), gradient.sizes(), gradient.options()), gradient);
    }
    from = nullptr;
  }
  into_.kernels->write_sum(from, strided.defined() ? to : gradient.const_data_ptr<float>(), to, elements_, into_.bad);
}

void GradientSink::complete() {
  if (filled_) return;
  const auto n = static_cast<std::size_t>(elements_);
  float* to = into_.staging + begin_;
  if (into_.empty) {
    into_.kernels->fill_zeros({to, n});
  } else {
    into_.kernels->copy({into_.sums + begin_, n}, to);
  }
}

}  // namespace plimsoll::train
