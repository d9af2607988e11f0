// The operators of model/ops.h beside the ATen composition that a PyTorch program would run for the same result,
// forward and backward, with autograd on both sides. Each benchmark times the two in turn, in CPU time, so that
// a busy machine disturbs little and both alike: run it with OMP_NUM_THREADS=1. Reported time: ours; "speedup": the
// other's time over ours.

#include <benchmark/benchmark.h>
#include <torch/torch.h>

#include <ctime>
#include <functional>
#include <vector>

#include "model/ops.h"

namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;
using namespace plimsoll::model;

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double seconds(const std::function<void()>& body) {
  const double start = cpu_seconds();
  body();
  return cpu_seconds() - start;
}

/// Forward and backward of `function` on `inputs`, gradients thrown away.
void step(const std::function<Tensor(const Tensors&)>& function, const Tensors& inputs) {
  Tensors wanted;
  for (const Tensor& input : inputs) {
    if (input.requires_grad()) wanted.push_back(input);
  }
  const Tensor y = function(inputs);
  torch::autograd::grad({y}, wanted, {at::ones_like(y)});
}

void compare(benchmark::State& state, const Tensors& inputs, const std::function<Tensor(const Tensors&)>& ours,
             const std::function<Tensor(const Tensors&)>& theirs) {
  step(ours, inputs);
  step(theirs, inputs);
  double our_time = 0, their_time = 0;
  for (auto _ : state) {
    const double mine = seconds([&] { step(ours, inputs); });
    their_time += seconds([&] { step(theirs, inputs); });
    our_time += mine;
    state.SetIterationTime(mine);
  }
  state.counters["speedup"] = their_time / our_time;
}

at::ScalarType type_of(const benchmark::State& state) { return state.range(0) == 0 ? at::kFloat : at::kBFloat16; }
Tensor random(at::IntArrayRef sizes, at::ScalarType type) { return at::randn(sizes).to(type); }
Tensor trained(const Tensor& x) { return x.requires_grad_(true); }

// As PEFT does it under autocast: dropout, two small products in the compute dtype, scaled and added to the base's
// result.
void lora(benchmark::State& state) {
  const auto type = type_of(state);
  const std::int64_t width = state.range(1), n = state.range(2);
  const Tensor weight = random({width, width}, type) * 0.02, keys = at::arange(2 * n, at::kLong).view({n, 2});
  const Tensors inputs{trained(random({n, width}, type)), trained(random({8, width}, at::kFloat)),
                       trained(random({width, 8}, at::kFloat))};
  const Dropout dropout{0.05F, keys, 256};
  compare(
      state, inputs, [&](const Tensors& t) { return lora_linear(t[0], weight, {}, t[1], t[2], 2.0F, dropout, type); },
      [&](const Tensors& t) {
        const Tensor low = at::linear(at::linear(at::dropout(t[0], 0.05, true), t[1].to(type)), t[2].to(type));
        return at::linear(t[0], weight) + low * 2.0;
      });
}

void norm(benchmark::State& state) {
  const auto type = type_of(state);
  const std::int64_t width = state.range(1), n = state.range(2);
  const Tensor weight = random({width}, type);
  compare(
      state, {trained(random({n, width}, type))}, [&](const Tensors& t) { return rms_norm(t[0], weight, 1e-6); },
      [&](const Tensors& t) {
        const Tensor x = t[0].to(at::kFloat);
        return weight * (x * at::rsqrt(x.pow(2).mean(-1, true) + 1e-6)).to(t[0].scalar_type());
      });
}

void gated(benchmark::State& state) {
  const auto type = type_of(state);
  const std::int64_t width = state.range(1), n = state.range(2);
  compare(
      state, {trained(random({n, width}, type)), trained(random({n, width}, type))},
      [](const Tensors& t) { return swiglu(t[0], t[1]); }, [](const Tensors& t) { return at::silu(t[0]) * t[1]; });
}

// Two equal samples; ATen's side gets them as a padded batch of two, which costs it nothing here.
void causal_attention(benchmark::State& state) {
  const auto type = type_of(state);
  const std::int64_t width = state.range(1), n = state.range(2), d = 64 < width / 2 ? 64 : width / 4, heads = width / d;
  const auto segments = std::make_shared<const Segments>(Segments{{n / 2, n / 2}, {n / 2, n / 2}});
  const auto sizes = std::vector<std::int64_t>{n, heads, d};
  const auto batch = [&](const Tensor& t) { return t.view({2, n / 2, heads, d}).transpose(1, 2); };
  compare(
      state, {trained(random(sizes, type)), trained(random(sizes, type)), trained(random(sizes, type))},
      [&](const Tensors& t) { return attention(t[0], t[1], t[2], segments, true); },
      [&](const Tensors& t) {
        return at::scaled_dot_product_attention(batch(t[0]), batch(t[1]), batch(t[2]), {}, 0.0, true).transpose(1, 2);
      });
}

// Vision windows of 64 patches, one after another.
void window_attention(benchmark::State& state) {
  const auto type = type_of(state);
  const std::int64_t width = state.range(1), n = state.range(2), d = width / 4;
  const std::vector<std::int64_t> lengths(static_cast<std::size_t>(n / 64), 64);
  const auto segments = std::make_shared<const Segments>(Segments{lengths, lengths});
  const auto batch = [&](const Tensor& t) { return t.view({n / 64, 64, 4, d}).transpose(1, 2); };
  compare(
      state, {trained(random({n, 4, d}, type)), trained(random({n, 4, d}, type)), trained(random({n, 4, d}, type))},
      [&](const Tensors& t) { return attention(t[0], t[1], t[2], segments, false); },
      [&](const Tensors& t) {
        return at::scaled_dot_product_attention(batch(t[0]), batch(t[1]), batch(t[2])).transpose(1, 2);
      });
}

void shapes(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"bf16", "width", "rows"})->ArgsProduct({{0, 1}, {128, 1024}, {256}})->UseManualTime();
  benchmark->Unit(benchmark::kMicrosecond);
}
BENCHMARK(lora)->Apply(shapes);
BENCHMARK(norm)->Apply(shapes);
BENCHMARK(gated)->Apply(shapes);
BENCHMARK(causal_attention)->Apply(shapes);
BENCHMARK(window_attention)->Apply(shapes);

}  // namespace

BENCHMARK_MAIN();
