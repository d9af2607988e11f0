// The operators of the towers: rows, attention, low-rank layers.

#include <fmt/format.h>

#include <array>
#include <deque>
#include <numeric>
#include <ostream>
#include <utility>

#include "tests/model/cuda_emulator/comparison.h"

namespace plimsoll::model {
namespace {

// --- rows ---

struct RowsCase {
  int rows, width;
  ScalarType type;
};

class Rows : public CudaKernelTest, public testing::WithParamInterface<RowsCase> {
 protected:
  void SetUp() override {
    CudaKernelTest::SetUp();
    x_ = random(sizes(), type());
    y_ = random(sizes(), type());
    grad_ = random(sizes(), type());
  }
  int rows() const { return GetParam().rows; }
  int width() const { return GetParam().width; }
  ScalarType type() const { return GetParam().type; }
  std::vector<std::int64_t> sizes() const { return {rows(), width()}; }
  /// One output of both: fill(kernels, out).
  void compare(const char* what, at::IntArrayRef of, ScalarType as, double most, const auto& fill) {
    Tensor ours = unwritten(of, as), theirs = unwritten(of, as);
    fill(gpu_, ours);
    fill(cpu(), theirs);
    expect_near(what, ours, theirs, most);
  }

  Tensor x_, y_, grad_;
};

void rms_norm_like_the_cpus(const Kernels& gpu, const Tensor& x, const Tensor& grad, const Tensor& weight,
                            const Tensor& residual) {
  const ScalarType type = x.scalar_type();
  const auto n = x.size(0);
  Tensor out = unwritten(x.sizes(), type), cpu_out = out.clone();
  Tensor rstd = unwritten({n}, kFloat), cpu_rstd = rstd.clone();
  gpu.rms_norm_forward(x, weight, 1e-6, out, rstd);
  cpu().rms_norm_forward(x, weight, 1e-6, cpu_out, cpu_rstd);
  expect_near("out", out, cpu_out, bound(type));
  expect_near("rstd", rstd, cpu_rstd, kFp32);
  Tensor dx = grad.clone(), cpu_dx = grad.clone();  // in place
  Tensor dweight = weight.defined() ? unwritten(weight.sizes(), type) : Tensor();
  Tensor cpu_dweight = weight.defined() ? unwritten(weight.sizes(), type) : Tensor();
  Tensor dry_dx = meta(dx), dry_dweight = meta(dweight);
  expect_same_scratch(
      "rms_norm_backward", [&] { gpu.rms_norm_backward(dx, x, weight, cpu_rstd, residual, dx, dweight); },
      [&] {
        cuda_meta_kernels().rms_norm_backward(dry_dx, meta(x), meta(weight), meta(cpu_rstd), meta(residual), dry_dx,
                                              dry_dweight);
      });
  cpu().rms_norm_backward(cpu_dx, x, weight, cpu_rstd, residual, cpu_dx, cpu_dweight);
  expect_near("dx", dx, cpu_dx, bound(type));
  if (weight.defined()) expect_near("dweight", dweight, cpu_dweight, bound(type, 8e-3));
}

TEST_P(Rows, RmsNorm) {
  rms_norm_like_the_cpus(gpu_, x_, grad_, {}, {});
  rms_norm_like_the_cpus(gpu_, x_, grad_, random({width()}, type()), y_);
}

TEST_P(Rows, SumCastAdd) {
  for (const auto out_type : {kFloat, kBFloat16}) {
    compare("sum_rows", {width()}, out_type, bound(out_type), [&](const Kernels& k, Tensor& o) { k.sum_rows(x_, o); });
    Tensor sums = unwritten({width()}, out_type), dry = meta(sums);
    expect_same_scratch(
        "sum_rows", [&] { gpu_.sum_rows(x_, sums); }, [&] { cuda_meta_kernels().sum_rows(meta(x_), dry); });
    compare("cast", sizes(), out_type, 0, [&](const Kernels& k, Tensor& o) { k.cast(x_, o); });
  }
  compare("add", sizes(), type(), 0, [&](const Kernels& k, Tensor& o) { k.add(x_, y_, o); });
}

TEST_P(Rows, Activations) {
  const double most = bound(type());
  compare("swiglu", sizes(), type(), most, [&](const Kernels& k, Tensor& o) { k.swiglu_forward(x_, y_, o); });
  Tensor other = unwritten(sizes(), type());
  compare("dgate", sizes(), type(), most,
          [&](const Kernels& k, Tensor& o) { k.swiglu_backward(grad_, x_, y_, o, other); });
  compare("dup", sizes(), type(), most,
          [&](const Kernels& k, Tensor& o) { k.swiglu_backward(grad_, x_, y_, other, o); });
  for (const auto kind : {Activation::kGeluErf, Activation::kGeluTanh, Activation::kSilu}) {
    compare("activation", sizes(), type(), most,
            [&](const Kernels& k, Tensor& o) { k.activation_forward(kind, x_, o); });
    compare("its gradient", sizes(), type(), most,
            [&](const Kernels& k, Tensor& o) { k.activation_backward(kind, grad_, x_, o); });
  }
}

TEST_P(Rows, ByIndex) {
  constexpr int kTable = 7;
  const Tensor indices = at::randint(0, kTable, {rows()}, at::kLong), table = random({kTable, width()}, type());
  const Tensor larger = random({kTable + 2, width()}, type());
  compare("gather", sizes(), type(), 0, [&](const Kernels& k, Tensor& o) { k.gather_rows(table, indices, o); });
  compare("scatter", table.sizes(), type(), 0,
          [&](const Kernels& k, Tensor& o) { k.scatter_add_rows(x_, indices, o); });
  compare("place", larger.sizes(), type(), 0,
          [&](const Kernels& k, Tensor& o) { k.place_rows(larger, indices, x_, o); });
  compare("place zeros", larger.sizes(), type(), 0,
          [&](const Kernels& k, Tensor& o) { k.place_rows(larger, indices, {}, o); });
}

std::vector<RowsCase> rows_cases() {
  std::vector<RowsCase> cases;
  for (const auto type : {kFloat, kBFloat16}) {
    for (const auto& [rows, width] :
         std::vector<std::pair<int, int>>{{5, 64}, {70, 37}, {9, 520}, {3, 2048}, {200, 264}, {2, 5000}})
      cases.push_back({rows, width, type});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Cuda, Rows, testing::ValuesIn(rows_cases()), [](const auto& of) {
  return fmt::format("N{}W{}{}", of.param.rows, of.param.width, name_of(of.param.type));
});

// --- rotary embedding and attention ---

TEST_F(CudaKernelTest, Rotary) {
  for (const auto type : {kFloat, kBFloat16}) {
    for (const auto angles : {kFloat, kBFloat16}) {
      for (const auto& [n, heads, d] :
           std::vector<std::array<std::int64_t, 3>>{{7, 3, 16}, {5, 16, 128}, {3, 2, 20}, {3, 1, 80}}) {
        const Tensor x = random({n, 3, heads, d}, type).select(1, 1);
        const Tensor cos = random({n, d}, angles), sin = random({n, d}, angles);
        for (const bool backward : {false, true}) {
          Tensor ours = unwritten({n, heads, d}, type), theirs = ours.clone();
          gpu_.rotary(x, cos, sin, backward, ours);
          cpu().rotary(x, cos, sin, backward, theirs);
          expect_near("rotary", ours, theirs, bound(type));
        }
      }
    }
  }
}

struct AttentionCase {
  const char* name;
  std::vector<std::int64_t> queries, keys;
  int heads, kv_heads, d;
  bool causal;
};

class Attention : public CudaKernelTest, public testing::WithParamInterface<AttentionCase> {};

std::int64_t total(const std::vector<std::int64_t>& lengths) {
  return std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
}

TEST_P(Attention, ForwardAndBackward) {
  const AttentionCase& c = GetParam();
  const std::int64_t n = total(c.queries), m = total(c.keys);
  const Segments segments{c.queries, c.keys};
  for (const auto type : {kFloat, kBFloat16}) {
    const double most = type == kFloat ? 5e-6 : 2e-2;
    const Tensor q = random({n, 2, c.heads, c.d}, type).select(1, 1), k = random({m, c.kv_heads, c.d}, type);
    const Tensor v = random({m, 3, c.kv_heads, c.d}, type).select(1, 2), grad = random({n, c.heads, c.d}, type);
    const AttentionTensors in{q, k, v, segments, c.causal};
    Tensor out = unwritten({n, c.heads, c.d}, type), cpu_out = out.clone();
    Tensor lse = unwritten({n, c.heads}, kFloat), cpu_lse = lse.clone();
    const Tensor dry_q = meta(q), dry_k = meta(k), dry_v = meta(v), none;
    const AttentionTensors dry{dry_q, dry_k, dry_v, segments, c.causal};
    Tensor nothing = meta(out), dry_lse = meta(lse);
    // A dry run takes the bf16 heads that suit flash attention for its; in the emulator the exact kernels serve all.
    const bool suits_flash = type == kBFloat16 && c.d % 8 == 0;
    const auto same_scratch = [&](const char* what, const std::function<void()>& real, const auto& dry_run) {
      if (!suits_flash || on_a_gpu()) {
        expect_same_scratch(what, real, dry_run);
      } else {
        real();
      }
    };
    same_scratch(
        "attention_forward", [&] { gpu_.attention_forward(in, out, lse); },
        [&] { cuda_meta_kernels().attention_forward(dry, nothing, dry_lse); });
    cpu().attention_forward(in, cpu_out, cpu_lse);
    expect_near("out", out, cpu_out, most);
    expect_near("lse", lse, cpu_lse, suits_flash && on_a_gpu() ? 2e-5 : kFp32);  // its exponentials are the fast ones
    Tensor dq = unwritten(out.sizes(), type), dk = unwritten(k.sizes(), type), dv = dk.clone();
    Tensor cpu_dq = dq.clone(), cpu_dk = dk.clone(), cpu_dv = dk.clone();
    same_scratch(
        "attention_backward", [&] { gpu_.attention_backward(in, grad, cpu_out, cpu_lse, dq, dk, dv); },
        [&] { cuda_meta_kernels().attention_backward(dry, none, none, dry_lse, nothing, nothing, nothing); });
    cpu().attention_backward(in, grad, cpu_out, cpu_lse, cpu_dq, cpu_dk, cpu_dv);
    expect_near("dq", dq, cpu_dq, most);
    expect_near("dk", dk, cpu_dk, most);
    expect_near("dv", dv, cpu_dv, most);
  }
}

INSTANTIATE_TEST_SUITE_P(Cuda, Attention,
                         testing::Values(AttentionCase{"causal", {40, 0, 3, 70}, {40, 0, 3, 70}, 4, 2, 12, true},
                                         AttentionCase{"across", {33, 5, 4, 0}, {70, 1, 0, 6}, 6, 2, 40, false},
                                         AttentionCase{"vision", {16, 5, 1}, {16, 5, 1}, 2, 2, 80, false},
                                         AttentionCase{"grouped", {1, 9, 0, 4}, {1, 9, 0, 4}, 4, 2, 128, true},
                                         AttentionCase{"single", {1, 1, 1}, {7, 1, 12}, 4, 2, 128, false},
                                         AttentionCase{"widest", {5}, {9}, 1, 1, 256, false}),
                         [](const auto& of) { return std::string(of.param.name); });

// --- low-rank layers ---

struct LoraCase {
  int rows, in;
  std::vector<int> out;  ///< of the layers over one x; the second of several has no pair
  int rank;
  ScalarType x, compute, bias;
};

std::ostream& operator<<(std::ostream& to, const LoraCase& c) {
  to << c.rows << " rows of " << c.in << ", rank " << c.rank << ", x " << name_of(c.x) << ", product "
     << name_of(c.compute) << ", layers of";
  for (const int out : c.out) to << ' ' << out;
  return to;
}

/// Layers over one x, with what they need kept alive.
struct LoraGroup {
  Tensor x;
  std::vector<Tensor> weights, biases, a, b, u, grads;

  explicit LoraGroup(const LoraCase& c) : x(random({c.rows, c.in}, c.x)) {
    for (const int out : c.out) {
      weights.push_back(random({out, c.in}, c.compute) * 0.1);
      biases.push_back(random({out}, c.bias));
      a.push_back(at::randn({c.rank, c.in}) * 0.2);
      b.push_back(at::randn({out, c.rank}) * 0.3);
      u.push_back(unwritten({c.rows, c.rank}, c.compute));
      grads.push_back(random({c.rows, out}, c.compute));
    }
  }
  bool has_pair(std::size_t layer) const { return weights.size() == 1 || layer != 1; }
};

constexpr std::uint32_t kSite = 256;
constexpr float kScale = 2.0F;

class Lora : public CudaKernelTest, public testing::WithParamInterface<LoraCase> {
 protected:
  void forward(LoraGroup& group, const Dropout& dropout) {
    const LoraCase& c = GetParam();
    for (std::size_t i = 0; i < c.out.size(); ++i) {
      const LoraTensors layer{group.weights[i], group.biases[i], group.a[i],
                              group.b[i],       kScale,          kSite + static_cast<std::uint32_t>(i)};
      Tensor u = group.u[i].clone(), y = unwritten({c.rows, c.out[i]}, c.compute), cpu_y = y.clone();
      const Tensor x = meta(group.x), weight = meta(layer.weight), bias = meta(layer.bias), a = meta(layer.a),
                   b = meta(layer.b);
      const LoraTensors dry{weight, bias, a, b, kScale, layer.site};
      Tensor dry_u = meta(u), dry_y = meta(y);
      expect_same_scratch(
          "lora_forward", [&] { gpu_.lora_forward(group.x, layer, dropout, c.compute, u, y); },
          [&] { cuda_meta_kernels().lora_forward(x, dry, dropout, c.compute, dry_u, dry_y); });
      cpu().lora_forward(group.x, layer, dropout, c.compute, group.u[i], cpu_y);
      expect_near("u", u, group.u[i], bound(c.compute, kBf16Sums));
      expect_near("y", y, cpu_y, bound(c.compute, kBf16Sums));
    }
  }

  /// The same call on tensors without data.
  static void dry_backward(const LoraGroup& group, const std::vector<LoraTensors>& layers, const Dropout& dropout,
                           const std::vector<LoraGradients>& gradients, const Tensor& dx) {
    std::deque<Tensor> kept;  // what the layers refer to
    const auto keep = [&](const Tensor& x) -> const Tensor& { return kept.emplace_back(meta(x)); };
    std::vector<LoraTensors> dry_layers;
    std::vector<LoraGradients> dry_gradients;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      dry_layers.push_back(
          {keep(layers[i].weight), keep(layers[i].bias), keep(layers[i].a), keep(layers[i].b), kScale, layers[i].site});
      dry_gradients.push_back(
          {keep(gradients[i].grad_output), keep(gradients[i].u), meta(gradients[i].da), meta(gradients[i].db)});
    }
    Tensor dry_dx = meta(dx);
    cuda_meta_kernels().lora_backward(keep(group.x), dry_layers, dropout, GetParam().compute, dry_gradients, dry_dx);
  }

  void backward(const LoraGroup& group, const Dropout& dropout) {
    const LoraCase& c = GetParam();
    const Tensor none;
    std::vector<LoraTensors> layers;
    std::vector<LoraGradients> ours, theirs;
    for (std::size_t i = 0; i < c.out.size(); ++i) {
      const bool pair = group.has_pair(i);
      layers.push_back({group.weights[i], none, pair ? group.a[i] : none, pair ? group.b[i] : none, kScale,
                        kSite + static_cast<std::uint32_t>(i)});
      for (auto* gradients : {&ours, &theirs}) {
        gradients->push_back({group.grads[i], group.u[i], pair ? unwritten({c.rank, c.in}, kFloat) : none,
                              pair ? unwritten({c.out[i], c.rank}, kFloat) : none});
      }
    }
    Tensor dx = unwritten(group.x.sizes(), c.x), cpu_dx = dx.clone();
    const std::int64_t bytes = expect_same_scratch(
        "lora_backward", [&] { gpu_.lora_backward(group.x, layers, dropout, c.compute, ours, dx); },
        [&] { dry_backward(group, layers, dropout, ours, dx); });
    EXPECT_GT(bytes, 0) << "a low-rank pair takes some";
    cpu().lora_backward(group.x, layers, dropout, c.compute, theirs, cpu_dx);
    expect_near("dx", dx, cpu_dx, bound(c.x, c.compute, kBf16Sums));
    for (std::size_t i = 0; i < c.out.size(); ++i) {
      if (!group.has_pair(i)) continue;
      expect_near("da", ours[i].da, theirs[i].da, bound(c.compute, 1e-3));
      expect_near("db", ours[i].db, theirs[i].db, bound(c.compute, 1e-3));
    }
  }
};

TEST_P(Lora, ForwardAndBackward) {
  for (const float rate : {0.0F, 0.3F}) {
    SCOPED_TRACE(rate);
    LoraGroup group(GetParam());
    const Tensor keys = at::randint(0, std::int64_t{1} << 62, {GetParam().rows, 2}, at::kLong);
    const Dropout dropout{rate, keys, 0};
    forward(group, dropout);
    backward(group, dropout);
  }
}

INSTANTIATE_TEST_SUITE_P(Cuda, Lora,
                         testing::Values(LoraCase{37, 64, {48}, 8, kFloat, kFloat, kFloat},
                                         LoraCase{37, 64, {48}, 8, kBFloat16, kBFloat16, kBFloat16},
                                         LoraCase{19, 300, {40, 33, 17}, 5, kBFloat16, kBFloat16, kFloat},
                                         LoraCase{19, 300, {40, 33, 17}, 5, kFloat, kFloat, kFloat},
                                         LoraCase{70, 1056, {264, 24}, 16, kBFloat16, kBFloat16, kBFloat16},
                                         LoraCase{33, 328, {72}, 40, kFloat, kBFloat16, kFloat},
                                         LoraCase{
                                             150, 96, {80, 64, 32, 16, 8, 24}, 72, kBFloat16, kBFloat16, kBFloat16},
                                         LoraCase{6, 40, {80}, 70, kBFloat16, kFloat, kFloat},
                                         LoraCase{0, 40, {80}, 4, kBFloat16, kBFloat16, kFloat}));

}  // namespace
}  // namespace plimsoll::model
