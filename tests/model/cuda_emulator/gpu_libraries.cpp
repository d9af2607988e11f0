// What there is on a GPU alone: cuBLAS's products, flash attention over segments as long as a model's, weights that are
// copied there.

#include <array>
#include <cstddef>
#include <filesystem>
#include <ostream>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/safetensors.h"
#include "model/weights.h"
#include "tests/model/cuda_emulator/comparison.h"
#include "tests/model/cuda_emulator/on_a_gpu.h"

namespace plimsoll::model {
namespace {

struct ProductCase {
  std::int64_t m, n, k;
  bool transpose_a, transpose_b;
  ScalarType operands, compute, out;
};

std::ostream& operator<<(std::ostream& to, const ProductCase& c) {
  return to << c.m << " x " << c.k << (c.transpose_a ? " (transposed)" : "") << " by " << c.k << " x " << c.n
            << (c.transpose_b ? " (transposed)" : "") << ", " << name_of(c.operands) << " as " << name_of(c.compute)
            << " into " << name_of(c.out);
}

class Products : public CudaKernelTest, public testing::WithParamInterface<ProductCase> {
 protected:
  void compare(const char* what, const Tensor& bias, float beta) {
    const ProductCase& c = GetParam();
    const Tensor a = c.transpose_a ? random({c.k, c.m}, c.operands) : random({c.m, c.k}, c.operands);
    const Tensor b = c.transpose_b ? random({c.n, c.k}, c.operands) : random({c.k, c.n}, c.operands);
    const Product product{a, c.transpose_a, b, c.transpose_b, bias, beta, c.compute};
    Tensor ours = beta == 0.0F ? unwritten({c.m, c.n}, c.out) : random({c.m, c.n}, c.out), theirs = ours.clone();
    const Tensor dry_a = meta(a), dry_b = meta(b), dry_bias = meta(bias);
    const Product dry{dry_a, c.transpose_a, dry_b, c.transpose_b, dry_bias, beta, c.compute};
    Tensor dry_out = meta(ours);
    expect_same_scratch(
        what, [&] { gpu_.product(product, ours); }, [&] { cuda_meta_kernels().product(dry, dry_out); });
    cpu().product(product, theirs);
    expect_near(what, ours, theirs, bound(c.compute, c.out, kBf16Sums));
  }
};

TEST_P(Products, AreTheCpus) {
  compare("plain", {}, 0.0F);
  compare("on top", {}, 1.0F);
  compare("on top of half", {}, 0.5F);
  for (const auto type : {kFloat, kBFloat16}) compare("with a bias", random({GetParam().n}, type), 0.0F);
}

std::vector<ProductCase> product_cases() {
  std::vector<ProductCase> cases;
  // Sides that suit cublasLt, which adds a bias itself; odd ones; a single row.
  for (const auto& [m, n, k] : std::vector<std::array<std::int64_t, 3>>{{64, 48, 128}, {37, 33, 19}, {1, 264, 72}}) {
    for (const bool transpose_a : {false, true}) {
      for (const bool transpose_b : {false, true}) {
        cases.push_back({m, n, k, transpose_a, transpose_b, kBFloat16, kBFloat16, kBFloat16});
        cases.push_back({m, n, k, transpose_a, transpose_b, kFloat, kFloat, kFloat});
      }
    }
    cases.push_back({m, n, k, false, true, kBFloat16, kBFloat16, kFloat});  // a gradient of fp32
    cases.push_back({m, n, k, false, true, kFloat, kBFloat16, kBFloat16});  // operands are cast
    cases.push_back({m, n, k, false, true, kFloat, kFloat, kBFloat16});     // the result is
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Cuda, Products, testing::ValuesIn(product_cases()));

struct FlashCase {
  std::vector<std::int64_t> lengths;
  std::int64_t heads, kv_heads, d;
  bool causal;
};

class FlashAttention : public CudaKernelTest {
 protected:
  struct Result {
    Tensor out, lse, dq, dk, dv;
  };
  /// Backward from what forward made.
  Result run(const FlashCase& c, const std::vector<Tensor>& qkv, const Tensor& grad) const {
    const ScalarType type = grad.scalar_type();
    const Segments segments{c.lengths, c.lengths};
    const AttentionTensors in{qkv[0], qkv[1], qkv[2], segments, c.causal};
    Result r{unwritten(grad.sizes(), type), unwritten({grad.size(0), c.heads}, kFloat), unwritten(grad.sizes(), type),
             unwritten(qkv[1].sizes(), type), unwritten(qkv[2].sizes(), type)};
    gpu_.attention_forward(in, r.out, r.lse);
    gpu_.attention_backward(in, grad, r.out, r.lse, r.dq, r.dk, r.dv);
    return r;
  }
  void compare(const FlashCase& c) {
    std::int64_t n = 0;
    for (const std::int64_t length : c.lengths) n += length;
    const std::vector<Tensor> halves = {random({n, c.heads, c.d}, kBFloat16), random({n, c.kv_heads, c.d}, kBFloat16),
                                        random({n, c.kv_heads, c.d}, kBFloat16)};
    std::vector<Tensor> wholes;
    for (const Tensor& half : halves) wholes.push_back(half.to(kFloat));
    const Tensor grad = random({n, c.heads, c.d}, kBFloat16);
    const Result flash = run(c, halves, grad), again = run(c, halves, grad);
    const Result exact = run(c, wholes, grad.to(kFloat));  // fp32 goes through the exact kernels
    expect_near("out", flash.out, exact.out, 1e-2);
    expect_near("lse", flash.lse, exact.lse, 2e-5);
    expect_near("dq", flash.dq, exact.dq, 2e-2);
    expect_near("dk", flash.dk, exact.dk, 2e-2);
    expect_near("dv", flash.dv, exact.dv, 2e-2);
    EXPECT_TRUE(at::equal(flash.dq, again.dq)) << "its backward is asked to be deterministic";
    EXPECT_TRUE(at::equal(flash.dk, again.dk) && at::equal(flash.dv, again.dv));
  }
};

TEST_F(FlashAttention, OfALanguageModel) { compare({{600, 37, 1, 613}, 16, 2, 128, true}); }
TEST_F(FlashAttention, OfAVisionTower) { compare({{64, 64, 16, 1024}, 16, 16, 80, false}); }
TEST_F(FlashAttention, OfTheWidestHeads) { compare({{130, 7}, 2, 1, 256, true}); }

TEST(WeightsOnAGpu, AreThoseOfTheFile) {
  const std::filesystem::path dir = testing::TempDir() + "plimsoll-weights-on-a-gpu";
  std::filesystem::create_directories(dir);
  const std::string name = "model.visual.some.weight";
  const std::vector<std::int64_t> shape = {33, 7};
  for (const auto& [stored, dtype] : {std::pair(kFloat, "F32"), std::pair(kBFloat16, "BF16")}) {
    const Tensor values = random(shape, stored);
    const std::span bytes(static_cast<const std::byte*>(values.const_data_ptr()), values.nbytes());
    write_safetensors(dir / "model.safetensors", {{name, dtype, shape, bytes}});
    for (const auto wanted : {kFloat, kBFloat16}) {
      const Tensor there = WeightSource(dir.string(), wanted, gpu().place).get(name, shape);
      EXPECT_TRUE(there.is_cuda());
      EXPECT_TRUE(at::equal(there.cpu(), values.to(wanted))) << dtype << " as " << name_of(wanted);
    }
  }
}

}  // namespace
}  // namespace plimsoll::model
