// The flat buffers' kernels on a GPU: what a call reads goes there, as far behind a cache line as it lies here, and
// what it wrote comes back.

#include <cstdint>
#include <span>

#include "tests/model/cuda_emulator/comparison.h"
#include "tests/model/cuda_emulator/on_a_gpu.h"

namespace plimsoll::train {
namespace {

const FlatKernels& real() { return model::gpu().library->flat_kernels(); }

at::TensorOptions there(at::ScalarType type) { return at::TensorOptions(model::gpu().place).dtype(type); }

/// n floats of the host's; nothing is copied of null.
class FloatsThere {
 public:
  FloatsThere(const float* host, std::size_t n)
      : n_(n),
        behind_(reinterpret_cast<std::uintptr_t>(host) % kLine / sizeof(float)),
        memory_(at::empty({static_cast<std::int64_t>(n + kLine)}, there(at::kFloat))) {
    if (host != nullptr) real().from_host({host, n}, data());
  }
  explicit FloatsThere(std::span<const float> host) : FloatsThere(host.data(), host.size()) {}

  float* data() { return memory_.mutable_data_ptr<float>() + behind_; }
  std::span<float> span() { return {data(), n_}; }
  void back(float* host) { real().to_host(span(), host); }

 private:
  static constexpr std::size_t kLine = 64;  // bytes; memory there begins one
  std::size_t n_, behind_;
  at::Tensor memory_;
};

class FlagThere {
 public:
  explicit FlagThere(std::uint32_t value) : memory_(at::full({1}, std::int64_t{value}, there(at::kInt))) {}
  std::uint32_t* data() { return reinterpret_cast<std::uint32_t*>(memory_.mutable_data_ptr<std::int32_t>()); }
  std::uint32_t value() const { return static_cast<std::uint32_t>(memory_.item<std::int32_t>()); }

 private:
  at::Tensor memory_;
};

class TravellingFlatKernels final : public FlatKernels {
 public:
  void write_sum(const float* from, const float* gradient, float* to, std::int64_t n,
                 std::uint32_t* bad) const override {
    const auto count = static_cast<std::size_t>(n);
    FloatsThere old(from, count), more(gradient, count), sum(to, count);
    FlagThere flag(*bad);
    const float* added = from == to ? sum.data() : old.data();
    real().write_sum(from == nullptr ? nullptr : added, more.data(), sum.data(), n, flag.data());
    sum.back(to);
    *bad = flag.value();
  }
  void fill_zeros(std::span<float> to) const override {
    FloatsThere memory(to);
    real().fill_zeros(memory.span());
    memory.back(to.data());
  }
  void copy(std::span<const float> from, float* to) const override {
    FloatsThere source(from), target(to, from.size());
    real().copy(source.span(), target.data());
    target.back(to);
  }
  void clear(std::uint32_t* bad) const override {
    FlagThere flag(*bad);
    real().clear(flag.data());
    *bad = flag.value();
  }
  bool is_set(const std::uint32_t* bad) const override {
    FlagThere flag(*bad);
    return real().is_set(flag.data());
  }
  double l2_norm(std::span<const float> values) const override {
    FloatsThere memory(values);
    return real().l2_norm(memory.span());
  }
  void adamw(std::span<float> parameter, std::span<const float> gradient, std::span<float> first_moment,
             std::span<float> second_moment, const AdamWFactors& factors) const override {
    FloatsThere p(parameter), g(gradient), m(first_moment), v(second_moment);
    real().adamw(p.span(), g.span(), m.span(), v.span(), factors);
    p.back(parameter.data());
    m.back(first_moment.data());
    v.back(second_moment.data());
  }
  void to_host(std::span<const float> from, float* host) const override {
    FloatsThere memory(from);
    real().to_host(memory.span(), host);
  }
  void from_host(std::span<const float> host, float* to) const override {
    FloatsThere memory(to, host.size());
    real().from_host(host, memory.data());
    memory.back(to);
  }
};

}  // namespace

const FlatKernels& flat_kernels_under_test() {
  static const TravellingFlatKernels kernels;
  return kernels;
}

}  // namespace plimsoll::train
