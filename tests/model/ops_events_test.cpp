// The list of allocations and frees of every operator, forward and backward, is the same on CPU and on meta; library
// scratch stays within what ops.h says; a failed allocation leaves nothing behind.

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <numeric>

#include "model/ops.h"
#include "model/recompute.h"
#include "tests/model/event_recorder.h"

namespace plimsoll::model {
namespace {

using at::ScalarType;
using testing::EventList;
using Tensors = std::vector<Tensor>;

/// Shapes of one transformer block over packed segments.
struct Sizes {
  std::vector<std::int64_t> lengths;
  std::int64_t heads, kv_heads, d, hidden_out;
  std::int64_t tokens() const { return std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0}); }
  std::int64_t width() const { return heads * d; }
};

const std::vector<Sizes>& all_sizes() {
  static const std::vector<Sizes> sizes{{{1}, 1, 1, 2, 3},
                                        {{3, 2}, 2, 1, 4, 24},
                                        {{17}, 4, 2, 8, 40},
                                        {{64, 64, 13}, 2, 2, 16, 48},
                                        {{130}, 3, 1, 12, 20},
                                        {{5, 0, 7}, 2, 1, 8, 16},
                                        {{33, 1, 1, 40}, 4, 4, 20, 96},
                                        {{256}, 2, 1, 32, 64},
                                        {{9, 9, 9, 9}, 8, 2, 16, 200},
                                        {{600}, 1, 1, 16, 1100},
                                        {{2, 2}, 16, 2, 4, 64},
                                        {{4}, 1, 1, 16, 8},
                                        {{7, 50}, 4, 1, 16, 33},
                                        {{100, 1, 99}, 2, 1, 24, 72},
                                        {{65}, 6, 3, 8, 128},
                                        {{12, 12, 12, 12, 12, 12}, 4, 2, 12, 17},
                                        {{300, 20}, 2, 2, 8, 40},
                                        {{1, 2, 3, 4, 5}, 3, 3, 4, 25},
                                        {{513}, 2, 1, 16, 50},
                                        {{80, 80}, 5, 1, 20, 300},
                                        {{31}, 12, 4, 8, 96}};
  return sizes;
}

/// Weights and inputs of the block on one device.
struct Block {
  Sizes sizes;
  ScalarType type = at::kFloat;
  Tensor x, keys, indices, cos, sin, cos_float, sin_float;
  Tensor q, k, v, o, norm, gate, up, down, down_bias, table;
  Tensors a, b;  ///< adapters of q, k, v, gate, up
  SegmentsPtr segments;
};

Tensor filled(at::IntArrayRef sizes, ScalarType type, at::Device device) {
  Tensor t = at::empty(sizes, at::TensorOptions().dtype(type).device(device));
  return device.is_cpu() ? t.fill_(type == at::kLong ? 0.0 : 0.03) : t;
}

Block make_block(const Sizes& s, ScalarType type, at::Device device) {
  const std::int64_t n = s.tokens(), w = s.width(), kv = s.kv_heads * s.d;
  Block block;
  block.sizes = s;
  block.type = type;
  const auto make = [&](at::IntArrayRef sizes, ScalarType t) { return filled(sizes, t, device); };
  block.x = make({n, w}, type).requires_grad_(true);
  block.keys = make({n, 2}, at::kLong);
  block.indices = make({n}, at::kLong);
  block.cos = make({n, s.d}, type);
  block.sin = make({n, s.d}, type);
  block.cos_float = make({n, s.d}, at::kFloat);
  block.sin_float = make({n, s.d}, at::kFloat);
  block.q = make({w, w}, type);
  block.k = make({kv, w}, type);
  block.v = make({kv, w}, type);
  block.o = make({w, w}, at::kFloat).requires_grad_(true);
  block.norm = make({w}, type);
  block.gate = make({s.hidden_out, w}, type);
  block.up = make({s.hidden_out, w}, type);
  block.down = make({w, s.hidden_out}, type);
  block.down_bias = make({w}, at::kFloat).requires_grad_(true);
  block.table = make({11, w}, at::kFloat).requires_grad_(true);
  for (const std::int64_t out : {w, kv, kv, s.hidden_out, s.hidden_out}) {
    block.a.push_back(make({8, w}, at::kFloat).requires_grad_(true));
    block.b.push_back(make({out, 8}, at::kFloat).requires_grad_(true));
  }
  block.segments = std::make_shared<const Segments>(Segments{s.lengths, s.lengths});
  return block;
}

/// Attention and MLP with everything that ops.h has.
Tensor run_block(const Block& b, const Tensor& x) {
  const Sizes& s = b.sizes;
  const Dropout dropout{0.1F, b.keys, 0};
  const auto [rest, h] = rms_norm_fork(x, b.norm, 1e-6);
  const auto qkv =
      lora_linears(h, {{b.q, {}, b.a[0], b.b[0], 1}, {b.k, {}, b.a[1], b.b[1], 2}, {b.v, {}, b.a[2], b.b[2], 3}}, 2.0F,
                   dropout, b.type);
  const auto heads = [&](const Tensor& t, std::int64_t count) { return t.view({s.tokens(), count, s.d}); };
  const Tensor q = rotary(heads(qkv[0], s.heads), b.cos, b.sin);
  const Tensor k = rotary(heads(qkv[1], s.kv_heads), b.cos_float, b.sin_float);
  const auto [seen, seen_again] = fork(heads(qkv[2], s.kv_heads));
  const auto [q_causal, q_all] = fork(q);
  const auto [k_causal, k_all] = fork(k);
  const Tensor mixed = add_residual(attention(q_causal, k_causal, seen, b.segments, true),
                                    attention(q_all, k_all, seen_again, b.segments, false));
  const auto [y, y_again] = fork(add_residual(rest, linear(mixed.view({s.tokens(), s.width()}), b.o, {}, b.type)));
  const auto [z, z_again] = fork(rms_norm(y_again, {}, 1e-6));
  const Tensor gate = lora_linear(z, b.gate, {}, b.a[3], b.b[3], 2.0F, {0.1F, b.keys, 4}, b.type);
  const Tensor up = lora_linear(z_again, b.up, {}, b.a[4], b.b[4], 2.0F, {}, b.type);
  const auto [down, first] = fork(linear(swiglu(gelu_tanh(gate), swish(gelu_erf(up))), b.down, b.down_bias, b.type));
  const Tensor extra = cast(gather_rows(b.table, b.indices), b.type);
  return add_residual(place_rows(add_residual(y, down), b.indices.slice(0, 0, 1), first.slice(0, 0, 1)), extra);
}

Tensors trainable(const Block& b) {
  Tensors all{b.o, b.down_bias, b.table};
  all.insert(all.end(), b.a.begin(), b.a.end());
  all.insert(all.end(), b.b.begin(), b.b.end());
  return all;
}

EventList block_events(const Sizes& sizes, ScalarType type, at::Device device, bool again) {
  const Block b = make_block(sizes, type, device), second = make_block(sizes, type, device);
  const Tensor seed = filled({sizes.tokens(), sizes.width()}, type, device);
  const auto body = [&b](const Tensor& x) { return run_block(b, x); };
  return testing::events_of([&] {
    Tensor y = again ? recompute(body, b.x, trainable(b)) : run_block(b, b.x);
    y = run_block(second, y);
    torch::autograd::backward({y}, {seed});
    for (const Tensor& t : trainable(second)) t.mutable_grad().reset();
    for (const Tensor& t : trainable(b)) t.mutable_grad().reset();
    b.x.mutable_grad().reset();
  });
}

/// Where two lists part, with what came before; empty when they are equal.
std::string first_difference(const EventList& cpu, const EventList& meta) {
  const auto [a, b] = std::mismatch(cpu.begin(), cpu.end(), meta.begin(), meta.end());
  if (a == cpu.end() && b == meta.end()) return "";
  auto text =
      fmt::format("event {} of {} and {}; before it, then CPU, then meta:", a - cpu.begin(), cpu.size(), meta.size());
  const auto append = [&](EventList::const_iterator first, EventList::const_iterator last) {
    text = fmt::format("{} | {}", text, fmt::join(first, last, " "));
  };
  append(a - std::min<std::ptrdiff_t>(a - cpu.begin(), 6), a);
  append(a, a + std::min<std::ptrdiff_t>(cpu.end() - a, 12));
  append(b, b + std::min<std::ptrdiff_t>(meta.end() - b, 12));
  return text;
}

class Events : public ::testing::TestWithParam<std::tuple<ScalarType, int>> {
 protected:
  void SetUp() override {
    testing::install_recorder();
    threads_ = at::get_num_threads();
    at::set_num_threads(std::get<1>(GetParam()));
  }
  void TearDown() override { at::set_num_threads(threads_); }
  ScalarType type() const { return std::get<0>(GetParam()); }

 private:
  int threads_ = 1;
};
INSTANTIATE_TEST_SUITE_P(TypesAndThreads, Events,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16),
                                            ::testing::Values(1, 2, 3, 5)),
                         [](const auto& one) {
                           return std::string(std::get<0>(one.param) == at::kFloat ? "fp32" : "bf16") + "_" +
                                  std::to_string(std::get<1>(one.param));
                         });

TEST_P(Events, AreEqualOnCpuAndMeta) {
  for (const Sizes& sizes : all_sizes()) {
    for (const bool again : {false, true}) {
      const EventList cpu = block_events(sizes, type(), at::kCPU, again),
                      meta = block_events(sizes, type(), at::kMeta, again);
      EXPECT_GT(cpu.size(), 40U);
      EXPECT_EQ(first_difference(cpu, meta), "")
          << sizes.tokens() << " tokens, width " << sizes.width() << ", recompute " << again;
      EXPECT_EQ(std::accumulate(cpu.begin(), cpu.end(), std::int64_t{0}), 0) << "something is left";
    }
  }
}

TEST_P(Events, AreEqualWithoutAGraph) {
  const at::NoGradGuard none;
  for (const Sizes& sizes : all_sizes()) {
    const Block cpu = make_block(sizes, type(), at::kCPU), meta = make_block(sizes, type(), at::kMeta);
    EXPECT_EQ(testing::events_of([&] { run_block(cpu, cpu.x); }), testing::events_of([&] { run_block(meta, meta.x); }));
  }
}

std::int64_t scratch_of(const std::function<void()>& body) {
  testing::totals().scratch_peak = 0;
  body();
  return testing::totals().scratch_peak;
}

TEST_P(Events, AttentionScratchStaysWithinItsBound) {
  const int threads = at::get_num_threads();
  int checked = 0;
  for (const std::int64_t length : {1, 7, 64, 200, 513}) {
    for (const std::int64_t d : {3, 16, 80}) {
      for (const bool causal : {false, true}) {
        const auto seg = std::make_shared<const Segments>(Segments{{length, 3, length}, {length, 3, length}});
        const Tensor q = filled({2 * length + 3, 4, d}, type(), at::kCPU).requires_grad_(true);
        const Tensor k = filled({2 * length + 3, 2, d}, type(), at::kCPU).requires_grad_(true);
        const auto used = scratch_of([&] { attention(q, k, k, seg, causal).sum().backward(); });
        EXPECT_GT(used, 0);
        EXPECT_LE(used, attention_scratch_bytes(*seg, d, type(), threads)) << length << " rows of " << d;
        ++checked;
      }
    }
  }
  EXPECT_EQ(checked, 30);
}

/// What linear layers are made of, on a device.
struct LinearSizes {
  std::int64_t n, in, out;
  ScalarType weights;
};

void run_linear(const LinearSizes& size, ScalarType compute, at::Device device) {
  const Tensor x = filled({size.n, size.in}, compute, device).requires_grad_(true);
  const Tensor w = filled({size.out, size.in}, size.weights, device).requires_grad_(true);
  linear(x, w, filled({size.out}, compute, device), compute).sum().backward();
}

/// Two layers that share their input, one with a bias.
void run_adapted(const LinearSizes& size, ScalarType compute, at::Device device) {
  const Tensor x = filled({size.n, size.in}, compute, device).requires_grad_(true);
  const Tensor w = filled({size.out, size.in}, size.weights, device), bias = filled({size.out}, compute, device);
  const Tensor a = filled({8, size.in}, at::kFloat, device).requires_grad_(true);
  const Tensor b = filled({size.out, 8}, at::kFloat, device).requires_grad_(true);
  const Dropout dropout{0.1F, filled({size.n, 2}, at::kLong, device), 0};
  const auto y = lora_linears(x, {{w, bias, a, b, 1}, {w, {}, a, b, 2}}, 1.0F, dropout, compute);
  at::add(y[0], y[1]).sum().backward();
}

TEST_P(Events, ADryRunNotesExactlyTheScratchThatLinearLayersTake) {
  int scratched = 0;
  for (const std::int64_t n : {1, 520}) {
    for (const std::int64_t in : {8, 1100}) {
      for (const std::int64_t out : {16, 1200}) {
        for (const ScalarType weights : {at::kFloat, type()}) {
          for (const auto run : {run_linear, run_adapted}) {
            const LinearSizes size{n, in, out, weights};
            ScratchNote::largest() = 0;
            run(size, type(), at::kMeta);
            const std::int64_t noted = ScratchNote::largest();
            EXPECT_EQ(scratch_of([&] { run(size, type(), at::kCPU); }), noted) << n << " x " << in << " -> " << out;
            scratched += noted > 0 ? 1 : 0;
          }
        }
      }
    }
  }
  EXPECT_GE(scratched, 16);
}

TEST_P(Events, AFailedAllocationLeavesNothingBehind) {
  const Sizes sizes{{9, 20}, 4, 2, 8, 40};
  const Block b = make_block(sizes, type(), at::kCPU);
  const Tensor seed = filled({sizes.tokens(), sizes.width()}, type(), at::kCPU);
  testing::Totals& totals = testing::totals();
  Tensors gradients;
  for (const Tensor& t : trainable(b)) t.mutable_grad() = at::zeros_like(t);
  const auto step = [&] {
    Tensor y = recompute([&b](const Tensor& x) { return run_block(b, x); }, b.x.detach(), trainable(b));
    y = run_block(b, y);
    torch::autograd::backward({y}, {seed});
  };
  const auto clear = [&] {
    for (const Tensor& t : trainable(b)) t.mutable_grad().zero_();
  };
  step();
  const Tensor expected = b.a[0].grad().clone();
  clear();
  const std::int64_t before = totals.count;
  step();
  const std::int64_t allocations = totals.count - before, live = totals.live;
  int caught = 0;
  for (std::int64_t i = 1; i <= allocations; ++i) {
    clear();
    totals.fail_at = totals.count + i;
    try {
      step();
    } catch (const c10::OutOfMemoryError&) {
      ++caught;
    }
    totals.fail_at = 0;
    const Tensor one = at::zeros({1}).requires_grad_(true);
    (one * 2).backward();
    ASSERT_EQ(totals.live, live) << "after a failure at allocation " << i << " of " << allocations;
    ASSERT_EQ(totals.scratch, 0);
  }
  EXPECT_EQ(caught, allocations);
  clear();
  step();
  EXPECT_TRUE(at::equal(b.a[0].grad(), expected));
}

}  // namespace
}  // namespace plimsoll::model
