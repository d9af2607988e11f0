#pragma once
// Trainable tensors as they are before the first step.

#include <torch/torch.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/options.h"

namespace plimsoll::model {

/// Makes trainable tensors one after another and keeps their list. A tensor's values depend on the seed and its name
/// alone (Philox, RandomSite::kInit), so adding or reordering layers changes no other layer, and every rank makes the
/// same. On meta nothing is filled. Not thread-safe.
class ParameterList {
 public:
  /// Everything made here belongs to `group` and lives on `device`.
  ParameterList(std::uint64_t seed, ParameterGroup group, at::Device device)
      : seed_(seed), group_(group), device_(device) {}

  /// fp32 leaf `name` of `shape`, normal with deviation `deviation`, or `constant` everywhere when the deviation is 0.
  at::Tensor make(const std::string& name, const std::vector<std::int64_t>& shape, double deviation,
                  double constant = 0.0);

  /// Weight [out, in] of a linear layer: `name` + ".weight", deviation 1 / sqrt(in), which keeps the size of its input.
  at::Tensor weight(const std::string& name, std::int64_t out, std::int64_t in);
  /// `name` + ".bias" [out], zero.
  at::Tensor bias(const std::string& name, std::int64_t out);

  const std::vector<Parameter>& all() const { return all_; }

 private:
  std::uint64_t seed_;
  ParameterGroup group_;
  at::Device device_;
  std::vector<Parameter> all_;
};

}  // namespace plimsoll::model
