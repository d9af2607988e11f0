// Every operator against a plain ATen composition with autograd: values and gradients, fp32 and bf16.

#include "model/ops.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/philox.h"
#include "model/recompute.h"

namespace plimsoll::model {
namespace {

using at::ScalarType;
using Tensors = std::vector<Tensor>;
using Function = std::function<Tensors(const Tensors&)>;

double relative(const Tensor& a, const Tensor& b) {
  const auto x = a.to(at::kDouble), y = b.to(at::kDouble);
  const double norm = y.norm().item<double>();
  return (x - y).norm().item<double>() / (norm > 0 ? norm : 1.0);
}

Tensor random(at::IntArrayRef sizes, ScalarType dtype = at::kFloat) { return at::randn(sizes).to(dtype); }

double tolerance(ScalarType dtype) { return dtype == at::kFloat ? 5e-6 : 2e-2; }

/// Runs `ours` on `inputs` and `theirs` on the same in fp32, and compares outputs and all gradients.
void compare(const Tensors& inputs, const Function& ours, const Function& theirs, double allowed) {
  Tensors mine, reference;
  for (const Tensor& input : inputs) {
    const bool floating = input.is_floating_point();
    mine.push_back(input.detach().requires_grad_(floating));
    reference.push_back(floating ? input.detach().to(at::kFloat).clone().requires_grad_(true) : input);
  }
  const Tensors out = ours(mine), expected = theirs(reference);
  ASSERT_EQ(out.size(), expected.size());
  Tensors grads, reference_grads, wanted, reference_wanted;
  for (std::size_t i = 0; i < out.size(); ++i) {
    ASSERT_EQ(out[i].sizes(), expected[i].sizes());
    EXPECT_LT(relative(out[i], expected[i]), allowed) << "output " << i;
    grads.push_back(random(out[i].sizes(), out[i].scalar_type()));
    reference_grads.push_back(grads.back().to(at::kFloat));
  }
  for (std::size_t i = 0; i < mine.size(); ++i) {
    if (!mine[i].requires_grad()) continue;
    wanted.push_back(mine[i]);
    reference_wanted.push_back(reference[i]);
  }
  const auto got = torch::autograd::grad(out, wanted, grads, {}, false, true);
  const auto should = torch::autograd::grad(expected, reference_wanted, reference_grads, {}, false, true);
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].defined(), should[i].defined()) << "gradient " << i;
    if (!got[i].defined()) continue;
    EXPECT_EQ(got[i].scalar_type(), wanted[i].scalar_type());
    EXPECT_LT(relative(got[i], should[i]), allowed) << "gradient " << i;
  }
}

class Ops : public ::testing::TestWithParam<std::tuple<ScalarType, int>> {
 protected:
  void SetUp() override {
    torch::manual_seed(7);
    threads_ = at::get_num_threads();
    at::set_num_threads(std::get<1>(GetParam()));
  }
  void TearDown() override { at::set_num_threads(threads_); }
  ScalarType type() const { return std::get<0>(GetParam()); }
  void check(const Tensors& inputs, const Function& ours, const Function& theirs) {
    compare(inputs, ours, theirs, tolerance(type()));
  }

 private:
  int threads_ = 1;
};
// More threads than cores, and numbers that cut nothing evenly: where a piece begins is then no round number.
INSTANTIATE_TEST_SUITE_P(TypesAndThreads, Ops,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16),
                                            ::testing::Values(1, 2, 3, 5)),
                         [](const auto& one) {
                           return std::string(std::get<0>(one.param) == at::kFloat ? "fp32" : "bf16") + "_" +
                                  std::to_string(std::get<1>(one.param));
                         });

TEST_P(Ops, MatrixProducts) {
  for (const auto& [n, k, m] :
       std::vector<std::array<std::int64_t, 3>>{{1, 1, 1}, {17, 33, 9}, {600, 40, 1100}, {0, 8, 8}}) {
    const Tensor a = random({n, k}, type()), b = random({m, k}, type()), bias = random({m}, type());
    const Tensor fa = a.to(at::kFloat), fb = b.to(at::kFloat);
    EXPECT_LT(relative(matmul_nt(a, b), fa.mm(fb.t())), tolerance(type()));
    EXPECT_LT(relative(matmul_nt(a, b, bias), fa.mm(fb.t()) + bias.to(at::kFloat)), tolerance(type()));
    EXPECT_LT(relative(matmul_nn(a, b.t()), fa.mm(fb.t())), tolerance(type()));
    const Tensor c = random({n, m}, type());
    EXPECT_LT(relative(matmul_tn(a, c), fa.t().mm(c.to(at::kFloat))), tolerance(type()));
    EXPECT_EQ(matmul_nt(a, b).scalar_type(), type());
  }
}

TEST_P(Ops, Linear) {
  for (const std::int64_t n : {1, 50, 700}) {
    for (const ScalarType weights : {at::kFloat, type()}) {
      const auto ours = [&](const Tensors& t) { return Tensors{linear(t[0], t[1], t[2], type())}; };
      const auto theirs = [](const Tensors& t) { return Tensors{at::linear(t[0], t[1], t[2])}; };
      check({random({n, 48}, type()), random({72, 48}, weights), random({72}, at::kFloat)}, ours, theirs);
      check({random({48, n}, type()).t(), random({72, 48}, weights), random({72}, at::kFloat)}, ours, theirs);
    }
  }
  check(
      {random({2, 5, 48}), random({72, 48})}, [&](const Tensors& t) { return Tensors{linear(t[0], t[1], {}, type())}; },
      [](const Tensors& t) { return Tensors{at::linear(t[0], t[1])}; });
}

TEST_P(Ops, FrozenLinearSavesNoInputAndGivesNoWeightGradient) {
  const Tensor x = random({5, 16}, type()).requires_grad_(true), w = random({8, 16}, type()), b = random({8}, type());
  const Tensor y = linear(x, w, b, type());
  y.backward(at::ones_like(y));
  EXPECT_FALSE(w.grad().defined());
  EXPECT_LT(relative(x.grad(), at::ones({5, 8}).mm(w.to(at::kFloat))), tolerance(type()));
}

/// The mask of ops.h's Dropout, word by word from core/philox.h.
Tensor keep_mask(const Tensor& keys, std::int64_t width, float rate, std::uint32_t site) {
  const std::int64_t n = keys.size(0);
  Tensor mask = at::empty({n, width});
  const auto threshold = static_cast<std::uint32_t>(static_cast<double>(rate) * 4294967296.0);
  const auto* key = keys.const_data_ptr<std::int64_t>();
  float* to = mask.data_ptr<float>();
  for (std::int64_t t = 0; t < n; ++t) {
    const auto packed = static_cast<std::uint64_t>(key[2 * t]);
    const auto token = static_cast<std::uint32_t>(key[2 * t + 1]);
    for (std::int64_t c = 0; c < width; ++c) {
      const auto words = philox4x32({token, static_cast<std::uint32_t>(c / 32 * 8 + c % 8), site, 0},
                                    {static_cast<std::uint32_t>(packed), static_cast<std::uint32_t>(packed >> 32)});
      to[t * width + c] = words[static_cast<std::size_t>(c % 32 / 8)] >= threshold ? 1.0F / (1.0F - rate) : 0.0F;
    }
  }
  return mask;
}

Tensor make_keys(std::int64_t n) {
  Tensor keys = at::empty({n, 2}, at::kLong);
  for (std::int64_t t = 0; t < n; ++t) {
    const auto words = mix({3, static_cast<std::uint64_t>(t / 5), 0, 256});
    keys[t][0] = static_cast<std::int64_t>(words[0] | std::uint64_t{words[1]} << 32);
    keys[t][1] = t % 5;
  }
  return keys;
}

TEST_P(Ops, LoraLinear) {
  for (const float rate : {0.0F, 0.3F}) {
    for (const std::int64_t n : {1, 13}) {
      for (const std::int64_t in : {20, 96}) {
        const Tensor keys = make_keys(n), w = random({40, in}, type()) * 0.1, bias = random({40}, type());
        const Dropout dropout{rate, keys, 260};
        const Tensor mask = rate > 0 ? keep_mask(keys, in, rate, 260) : at::ones({n, in});
        check(
            {random({n, in}, type()), random({8, in}), random({40, 8})},
            [&](const Tensors& t) { return Tensors{lora_linear(t[0], w, bias, t[1], t[2], 2.0F, dropout, type())}; },
            [&](const Tensors& t) {
              return Tensors{at::linear(t[0], w.to(at::kFloat), bias.to(at::kFloat)) +
                             2.0F * at::linear(at::linear(t[0] * mask, t[1]), t[2])};
            });
      }
    }
  }
}

TEST_P(Ops, LoraLinearOverSeveralTiles) {
  const std::int64_t n = 530, in = 1060;
  const Tensor keys = make_keys(n), w = random({1100, in}, type()) * 0.03;
  const Dropout dropout{0.05F, keys, 256};
  const Tensor x = random({n, in}, type());
  const Tensor mask = keep_mask(keys, in, 0.05F, 256);
  check(
      {x, random({4, in}) * 0.03, random({1100, 4})},
      [&](const Tensors& t) { return Tensors{lora_linear(t[0], w, {}, t[1], t[2], 0.5F, dropout, type())}; },
      [&](const Tensors& t) {
        return Tensors{at::linear(t[0], w.to(at::kFloat)) + 0.5F * at::linear(at::linear(t[0] * mask, t[1]), t[2])};
      });
  EXPECT_NEAR(mask.mean().item<double>(), 1.0, 0.002);
}

TEST_P(Ops, LoraGroupEqualsSeparateLayers) {
  const std::int64_t n = 21, in = 64;
  const Tensor keys = make_keys(n), w1 = random({40, in}, type()) * 0.1, w2 = random({24, in}, type()) * 0.1,
               bias = random({24}, type());
  const Dropout dropout{0.25F, keys, 0};
  const Tensor m1 = keep_mask(keys, in, 0.25F, 300), m2 = keep_mask(keys, in, 0.25F, 301);
  check(
      {random({n, in}, type()), random({8, in}), random({40, 8}), random({8, in}), random({24, 8})},
      [&](const Tensors& t) {
        return lora_linears(t[0], {{w1, {}, t[1], t[2], 300}, {w2, bias, t[3], t[4], 301}, {w2, {}, {}, {}, 0}}, 0.5F,
                            dropout, type());
      },
      [&](const Tensors& t) {
        const Tensor f1 = w1.to(at::kFloat), f2 = w2.to(at::kFloat);
        return Tensors{at::linear(t[0], f1) + 0.5F * at::linear(at::linear(t[0] * m1, t[1]), t[2]),
                       at::linear(t[0], f2, bias.to(at::kFloat)) + 0.5F * at::linear(at::linear(t[0] * m2, t[3]), t[4]),
                       at::linear(t[0], f2)};
      });
}

TEST_P(Ops, GroupOfTrainableLayers) {
  check(
      {random({21, 64}, type()), random({40, 64}) * 0.1, random({40}), random({24, 64}) * 0.1},
      [&](const Tensors& t) {
        return lora_linears(t[0], {{t[1], t[2], {}, {}, 0}, {t[3], {}, {}, {}, 0}}, 1.0F, {}, type());
      },
      [](const Tensors& t) {
        return Tensors{at::linear(t[0], t[1], t[2]), at::linear(t[0], t[3])};
      });
}

TEST_P(Ops, LoraOfAnUnusedOutputAndOfAFrozenInput) {
  const Tensor x = random({6, 32}, type()), w = random({16, 32}, type());
  const Tensor a = random({4, 32}).requires_grad_(true), b = random({16, 4}).requires_grad_(true);
  const Tensor c = random({4, 32}).requires_grad_(true), d = random({16, 4}).requires_grad_(true);
  const auto y = lora_linears(x, {{w, {}, a, b, 1}, {w, {}, c, d, 2}}, 1.0F, {}, type());
  y[1].sum().backward();
  EXPECT_FALSE(a.grad().defined());
  ASSERT_TRUE(c.grad().defined());
  EXPECT_LT(relative(d.grad(), at::ones({16, 6}).mm(x.to(at::kFloat).mm(c.t()))), tolerance(type()));
}

TEST_P(Ops, DropoutDoesNotDependOnTheBatch) {
  const Tensor x = random({20, 64}, type()), keys = make_keys(20), w = at::zeros({16, 64}, type());
  const Tensor a = random({8, 64}), b = random({16, 8});
  const Tensor whole = lora_linear(x, w, {}, a, b, 1.0F, {0.5F, keys, 256}, type());
  const Tensor part =
      lora_linear(x.slice(0, 5, 15), w, {}, a, b, 1.0F, {0.5F, keys.slice(0, 5, 15).contiguous(), 256}, type());
  EXPECT_LT(relative(part, whole.slice(0, 5, 15)), 1e-6);
}

TEST_P(Ops, RmsNorm) {
  for (const std::int64_t width : {5, 64, 100}) {
    const auto reference = [](const Tensors& t) {
      const Tensor y = t[0] * at::rsqrt(t[0].pow(2).mean(-1, true) + 1e-6);
      return Tensors{t.size() > 1 ? y * t[1] : y};
    };
    check(
        {random({9, width}, type()), random({width}, type())},
        [](const Tensors& t) { return Tensors{rms_norm(t[0], t[1], 1e-6)}; }, reference);
    check(
        {random({2, 7, width}, type())}, [](const Tensors& t) { return Tensors{rms_norm(t[0], {}, 1e-6)}; }, reference);
    check(
        {random({width, 9}, type()).t(), random({width}, at::kFloat)},
        [](const Tensors& t) { return Tensors{rms_norm(t[0], t[1], 1e-6)}; }, reference);
  }
}

TEST_P(Ops, ForksSumTheirGradients) {
  const Tensor w = random({24}, type());
  const auto norm = [](const Tensor& x, const Tensor& weight) {
    return x * at::rsqrt(x.pow(2).mean(-1, true) + 1e-6) * weight;
  };
  check(
      {random({9, 24}, type()), w},
      [](const Tensors& t) {
        const auto [x, y] = rms_norm_fork(t[0] * 1, t[1], 1e-6);
        return Tensors{x, y};
      },
      [&](const Tensors& t) {
        return Tensors{t[0] * 1, norm(t[0], t[1])};
      });
  check(
      {random({9, 24}, type())},
      [](const Tensors& t) {
        const auto [x, y] = fork(t[0]);
        return Tensors{add_residual(swish(x), y)};
      },
      [](const Tensors& t) { return Tensors{at::silu(t[0]) + t[0]}; });
  const Tensor x = random({3, 4}, type()).requires_grad_(true), weight = at::ones({4}, type());
  fork(x)[1].sum().backward();
  rms_norm_fork(x, weight, 1e-6)[0].sum().backward();
  EXPECT_TRUE(at::equal(x.grad(), at::full_like(x, 2)));
}

TEST_P(Ops, ForkDoesNotWriteIntoSomebodyElsesGradient) {
  const Tensor x = random({3, 4}, type()).requires_grad_(true), seed = at::ones({3, 4}, type());
  const auto [a, b] = fork(x * 1);
  const auto grads = torch::autograd::grad({a, b}, {x}, {seed, seed});
  EXPECT_TRUE(at::equal(seed, at::ones({3, 4}, type())));
  EXPECT_TRUE(at::equal(grads[0], at::full({3, 4}, 2, at::dtype(type()))));
}

TEST_P(Ops, ElementWise) {
  for (const std::int64_t width : {1, 24, 37}) {
    const Tensor x = random({11, width}, type()) * 2, y = random({11, width}, type());
    check(
        {x, y}, [](const Tensors& t) { return Tensors{swiglu(t[0], t[1])}; },
        [](const Tensors& t) { return Tensors{at::silu(t[0]) * t[1]}; });
    check(
        {x}, [](const Tensors& t) { return Tensors{gelu_erf(t[0])}; },
        [](const Tensors& t) { return Tensors{at::gelu(t[0])}; });
    check(
        {x}, [](const Tensors& t) { return Tensors{gelu_tanh(t[0])}; },
        [](const Tensors& t) { return Tensors{at::gelu(t[0], "tanh")}; });
    check(
        {x}, [](const Tensors& t) { return Tensors{swish(t[0])}; },
        [](const Tensors& t) { return Tensors{at::silu(t[0])}; });
    check(
        {x, y}, [](const Tensors& t) { return Tensors{add_residual(t[0], t[1])}; },
        [](const Tensors& t) { return Tensors{t[0] + t[1]}; });
    check(
        {x}, [](const Tensors& t) { return Tensors{cast(t[0], at::kFloat)}; },
        [](const Tensors& t) { return Tensors{t[0] * 1}; });
  }
}

TEST_P(Ops, ExtremeValuesStayWhatTheyAre) {
  const float inf = INFINITY, nan = NAN;
  const Tensor x = torch::tensor({-200.0F, -90.0F, -1e-4F, 0.0F, 1e-4F, 90.0F, 200.0F, nan}).to(type());
  for (const auto& [mine, theirs] : std::vector<std::pair<Tensor, Tensor>>{{swish(x), at::silu(x)},
                                                                           {gelu_erf(x), at::gelu(x)},
                                                                           {gelu_tanh(x), at::gelu(x, "tanh")},
                                                                           {cast(x, at::kFloat), x.to(at::kFloat)}}) {
    const Tensor a = mine.to(at::kFloat), b = theirs.to(at::kFloat);
    EXPECT_TRUE(at::allclose(a, b, 2e-2, 1e-6, true)) << a << b;
  }
  // Of infinity PyTorch's gelu makes NaN on some processors (oneDNN's kernels) and infinity on others: no oracle here.
  const Tensor above = torch::tensor({inf}).to(type());
  for (const Tensor& out : {swish(above), gelu_erf(above), gelu_tanh(above), cast(above, at::kFloat)})
    EXPECT_EQ(out.to(at::kFloat).item<float>(), inf);
  EXPECT_TRUE(at::isnan(cast(torch::tensor({nan}), at::kBFloat16)).item<bool>());
}

TEST_P(Ops, Rotary) {
  for (const ScalarType table : {at::kFloat, type()}) {
    const Tensor cos = random({6, 20}, table), sin = random({6, 20}, table);
    const auto reference = [&](const Tensors& t) {
      const auto halves = t[0].chunk(2, -1);
      return Tensors{t[0] * cos.to(at::kFloat).unsqueeze(1) +
                     at::cat({-halves[1], halves[0]}, -1) * sin.to(at::kFloat).unsqueeze(1)};
    };
    const auto ours = [&](const Tensors& t) { return Tensors{rotary(t[0], cos, sin)}; };
    check({random({6, 3, 20}, type())}, ours, reference);
    check({random({6, 9, 20}, type()).slice(1, 3, 6)}, ours, reference);
    check({random({3, 6, 20}, type()).transpose(0, 1)}, ours, reference);
  }
}

/// Dense softmax attention, segment by segment.
Tensor dense_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Segments& segments, bool causal) {
  Tensors parts;
  std::int64_t qi = 0, ki = 0;
  const std::int64_t group = q.size(1) / k.size(1);
  for (std::size_t i = 0; i < segments.queries.size(); ++i) {
    const std::int64_t nq = segments.queries[i], nk = segments.keys[i];
    const Tensor sq = q.slice(0, qi, qi + nq).transpose(0, 1);
    const Tensor sk = k.slice(0, ki, ki + nk).repeat_interleave(group, 1).transpose(0, 1);
    const Tensor sv = v.slice(0, ki, ki + nk).repeat_interleave(group, 1).transpose(0, 1);
    Tensor scores = at::matmul(sq, sk.transpose(1, 2)) / std::sqrt(static_cast<double>(q.size(2)));
    if (causal) scores = scores.masked_fill(at::ones({nq, nk}, at::kBool).triu(1), -INFINITY);
    Tensor out = at::matmul(at::softmax(scores, -1), sv).transpose(0, 1);
    parts.push_back(out);
    qi += nq;
    ki += nk;
  }
  return at::cat(parts);
}

SegmentsPtr segments(std::vector<std::int64_t> queries, std::vector<std::int64_t> keys) {
  return std::make_shared<const Segments>(Segments{std::move(queries), std::move(keys)});
}

TEST_P(Ops, Attention) {
  struct Case {
    std::vector<std::int64_t> queries, keys;
    std::int64_t heads, kv_heads, d;
    bool causal;
  };
  for (const Case& c : std::vector<Case>{{{5, 1, 12}, {5, 1, 12}, 4, 2, 16, true},
                                         {{300}, {300}, 2, 1, 24, true},
                                         {{4, 0, 9, 150}, {4, 0, 9, 150}, 6, 2, 20, true},
                                         {{64, 64, 30}, {64, 64, 30}, 4, 4, 80, false},
                                         {{3, 16, 140}, {11, 150, 2}, 4, 2, 32, false},
                                         {{1}, {1}, 1, 1, 3, true}}) {
    const auto seg = segments(c.queries, c.keys);
    const auto n = std::accumulate(c.queries.begin(), c.queries.end(), std::int64_t{0});
    const auto m = std::accumulate(c.keys.begin(), c.keys.end(), std::int64_t{0});
    const auto ours = [&](const Tensors& t) { return Tensors{attention(t[0], t[1], t[2], seg, c.causal)}; };
    const auto theirs = [&](const Tensors& t) { return Tensors{dense_attention(t[0], t[1], t[2], *seg, c.causal)}; };
    check(
        {random({n, c.heads, c.d}, type()), random({m, c.kv_heads, c.d}, type()), random({m, c.kv_heads, c.d}, type())},
        ours, theirs);
  }
}

TEST_P(Ops, AttentionReadsSlicesOfAFusedProjection) {
  const auto seg = segments({7, 5}, {7, 5});
  check(
      {random({12, 3, 4, 16}, type())},
      [&](const Tensors& t) {
        const auto parts = t[0].unbind(1);
        return Tensors{attention(parts[0], parts[1], parts[2], seg, false)};
      },
      [&](const Tensors& t) {
        const auto parts = t[0].unbind(1);
        return Tensors{dense_attention(parts[0], parts[1], parts[2], *seg, false)};
      });
}

TEST_P(Ops, AttentionWithoutKeysIsZero) {
  const Tensor q = random({5, 2, 8}, type()).requires_grad_(true), k = random({3, 1, 8}, type()).requires_grad_(true);
  const Tensor y = attention(q, k, k, segments({2, 3}, {0, 3}), false);
  EXPECT_EQ(y.slice(0, 0, 2).abs().sum().item<float>(), 0.0F);
  y.sum().backward();
  EXPECT_EQ(q.grad().slice(0, 0, 2).abs().sum().item<float>(), 0.0F);
  EXPECT_TRUE(at::isfinite(k.grad()).all().item<bool>());
}

TEST_P(Ops, AttentionOfASegmentDependsOnNothingElse) {
  const Tensor q = random({160, 4, 32}, type()), k = random({160, 2, 32}, type()), v = random({160, 2, 32}, type());
  const int threads = at::get_num_threads();
  const Tensor whole = attention(q, k, v, segments({30, 100, 30}, {30, 100, 30}), true);
  at::set_num_threads(1);
  const auto cut = [](const Tensor& t) { return t.slice(0, 30, 130); };
  const Tensor alone = attention(cut(q), cut(k), cut(v), segments({100}, {100}), true);
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(alone, cut(whole)));
}

TEST_P(Ops, Rows) {
  const Tensor indices = torch::tensor({3, 0, 3, 7}, at::kLong), places = torch::tensor({1, 4}, at::kLong);
  check(
      {random({8, 33}, type())}, [&](const Tensors& t) { return Tensors{gather_rows(t[0], indices)}; },
      [&](const Tensors& t) { return Tensors{at::index_select(t[0], 0, indices)}; });
  check(
      {random({6, 33}, type()), random({2, 33}, type())},
      [&](const Tensors& t) { return Tensors{place_rows(t[0], places, t[1])}; },
      [&](const Tensors& t) { return Tensors{at::index_copy(t[0], 0, places, t[1])}; });
}

TEST(Recompute, GradientsAreEqualToTheBit) {
  torch::manual_seed(3);
  const Tensor w = random({64, 64}) * 0.1, keys = make_keys(40);
  for (const bool x_requires : {true, false}) {
    const Tensor x = random({40, 64}).requires_grad_(x_requires);
    const Tensor a = random({8, 64}).requires_grad_(true), b = random({64, 8}).requires_grad_(true);
    const auto block = [w, keys, a, b](const Tensor& h) {
      return add_residual(h,
                          swish(lora_linear(rms_norm(h, {}, 1e-6), w, {}, a, b, 2.0F, {0.1F, keys, 256}, at::kFloat)));
    };
    const auto grads_of = [&](const Tensor& y) {
      Tensors wanted{a, b};
      if (x_requires) wanted.push_back(x);
      return torch::autograd::grad({(y * y).sum()}, wanted);
    };
    const auto plain = grads_of(block(x)), again = grads_of(recompute(block, x, {a, b}));
    ASSERT_EQ(plain.size(), again.size());
    for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(at::equal(plain[i], again[i])) << i;
  }
}

TEST(Recompute, WithoutTheValuesOfItsLastLayerGradientsAreEqualToTheBit) {
  torch::manual_seed(4);
  const Tensor w = random({48, 64}) * 0.1, bias = random({48}), keys = make_keys(40);
  const Tensor x = random({40, 64}).requires_grad_(true);
  const Tensor a = random({8, 64}).requires_grad_(true), b = random({48, 8}).requires_grad_(true);
  for (const auto compute : {at::kFloat, at::kBFloat16}) {
    const auto block = [=](bool values) {
      return [=](const Tensor& h) {
        return lora_linear(swish(h).to(compute), w.to(compute), bias, a, b, 2.0F, {0.1F, keys, 256}, compute, values);
      };
    };
    EXPECT_EQ(block(false)(x).abs().max().item<double>(), 0.0);
    const auto grads_of = [&](const Tensor& y) { return torch::autograd::grad({(y * y).sum()}, Tensors{x, a, b}); };
    const auto plain = grads_of(block(true)(x));
    const auto again = grads_of(recompute(block(true), x, {a, b}, nullptr, block(false)));
    for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(at::equal(plain[i], again[i])) << i;
  }
}

TEST(Recompute, TrainsABlockWhoseInputNeedsNoGradient) {
  const Tensor x = random({4, 8}), w = random({8, 8}).requires_grad_(true);
  recompute([w](const Tensor& h) { return linear(h, w, {}, at::kFloat); }, x, {w}).sum().backward();
  EXPECT_TRUE(w.grad().defined());
  EXPECT_FALSE(
      recompute([w](const Tensor& h) { return linear(h, w.detach(), {}, at::kFloat); }, x, {}).requires_grad());
}

TEST(BadInput, IsAnErrorThatNamesIt) {
  const Tensor x = random({4, 8});
  EXPECT_THROW(linear(x, random({3, 9}), {}, at::kFloat), Error);
  EXPECT_THROW(linear(x, random({3, 8}), random({4}), at::kFloat), Error);
  EXPECT_THROW(lora_linear(x, random({3, 8}), {}, random({2, 8}), random({2, 3}), 1.0F, {}, at::kFloat), Error);
  EXPECT_THROW(lora_linear(x, random({3, 8}), {}, random({2, 8}), random({3, 2}), 1.0F, {0.5F, {}, 0}, at::kFloat),
               Error);
  EXPECT_THROW(swiglu(x, random({4, 9})), Error);
  EXPECT_THROW(rms_norm(x, random({9}), 1e-6), Error);
  EXPECT_THROW(rms_norm(x.to(at::kDouble), {}, 1e-6), Error);
  EXPECT_THROW(gather_rows(x, torch::tensor({4}, at::kLong)), Error);
  EXPECT_THROW(place_rows(x, torch::tensor({-1}, at::kLong), random({1, 8})), Error);
  EXPECT_THROW(attention(x.view({4, 2, 4}), x.view({4, 2, 4}), x.view({4, 2, 4}), segments({3}, {3}), true), Error);
  EXPECT_THROW(attention(x.view({4, 2, 4}), x.view({4, 2, 4}), x.view({4, 2, 4}), segments({4, 0}, {2, 2}), true),
               Error);
  EXPECT_THROW(add_residual(x, random({4, 9})), Error);
}

}  // namespace
}  // namespace plimsoll::model
