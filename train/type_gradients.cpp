#include "train/type_gradients.h"

#include <utility>

#include "core/scope.h"

namespace plimsoll::train {
namespace {

at::Tensor zeros(std::int64_t types, std::int64_t out, std::int64_t in, at::Device device) {
  const AllocationLabel label("gradients");
  return at::zeros({types, out, in}, at::TensorOptions(at::kFloat).device(device));
}

}  // namespace

TypeGradients::TypeGradients(std::size_t types, std::int64_t out, std::int64_t in, at::Device device)
    : staging_(zeros(static_cast<std::int64_t>(types), out, in, device)) {}

// Rows of a sample are neighbours, and all samples have as many.
std::function<void(const at::Tensor&, const at::Tensor&)> TypeGradients::watch(std::vector<std::uint8_t> types) {
  return [this, types = std::move(types)](const at::Tensor& rows, const at::Tensor& gradient) {
    const at::NoGradGuard no_graph;
    const auto each = gradient.size(0) / static_cast<std::int64_t>(types.size());
    for (std::size_t i = 0; i < types.size(); ++i) {
      const auto first = static_cast<std::int64_t>(i) * each;
      const at::Tensor of_output = gradient.narrow(0, first, each).to(at::kFloat);
      const at::Tensor of_input = rows.narrow(0, first, each).to(at::kFloat);
      staging_[types[i]].addmm_(of_output.t(), of_input);
    }
  };
}

void TypeGradients::commit(std::span<float> sums) {
  const at::Tensor on_host = staging_.cpu();
  const float* values = on_host.data_ptr<float>();
  for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += values[i];
  staging_.zero_();
}

}  // namespace plimsoll::train
