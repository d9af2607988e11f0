#include "model/initial.h"

#include <cmath>

#include "core/philox.h"

namespace plimsoll::model {
namespace {

/// FNV-1a, 64 bits.
std::uint64_t hash_name(const std::string& name) {
  std::uint64_t hash = 0xCBF29CE484222325ULL;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ULL;
  return hash;
}

}  // namespace

at::Tensor ParameterList::make(const std::string& name, const std::vector<std::int64_t>& shape, double deviation,
                               double constant) {
  at::Tensor tensor = at::empty(shape, at::TensorOptions().dtype(at::kFloat).device(device_));
  if (!tensor.is_meta()) {
    std::vector<float> values(static_cast<std::size_t>(tensor.numel()), static_cast<float>(constant));
    if (deviation > 0) {
      const RandomKey key{seed_, hash_name(name), 0, static_cast<std::uint32_t>(RandomSite::kInit)};
      fill_normal(key, values.data(), tensor.numel());
      for (auto& value : values) value *= static_cast<float>(deviation);
    }
    tensor.copy_(torch::from_blob(values.data(), shape, at::kFloat));
  }
  tensor.set_requires_grad(true);
  all_.push_back({name, tensor, group_});
  return tensor;
}

at::Tensor ParameterList::weight(const std::string& name, std::int64_t out, std::int64_t in) {
  return make(name + ".weight", {out, in}, 1.0 / std::sqrt(static_cast<double>(in)));
}

at::Tensor ParameterList::bias(const std::string& name, std::int64_t out) { return make(name + ".bias", {out}, 0.0); }

}  // namespace plimsoll::model
