// Matrix products by cuBLAS: the plain ones through its old interface, those with a bias through cublasLt, which adds
// it on the way out.

#include <ATen/cuda/Exceptions.h>

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <memory>

#include "core/error.h"
#include "model/cuda/kernels_cuda.h"

namespace plimsoll::model::cuda {
namespace {

cudaDataType_t cuda_type(const Tensor& x) { return x.scalar_type() == at::kFloat ? CUDA_R_32F : CUDA_R_16BF; }

/// Row-major c = a b is column-major c^T = b^T a^T: `first` is b, `second` is a.
struct Columns {
  int m, n, k;
  int first_stride, second_stride, out_stride;
  cublasOperation_t first_operation, second_operation;
};

int to_int(std::int64_t size) {
  TORCH_CHECK(size <= INT32_MAX, "a matrix side of ", size);
  return static_cast<int>(size);
}

Columns columns_of(const Matrix& a, const Matrix& b, const Tensor& c) {
  const auto stride = [](const Tensor& x) { return std::max(1, to_int(x.size(1))); };
  const auto operation = [](const Matrix& x) { return x.transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  return {to_int(c.size(1)), to_int(c.size(0)), to_int(a.values.size(a.transposed ? 0 : 1)),
          stride(b.values),  stride(a.values),  stride(c),
          operation(b),      operation(a)};
}

cublasHandle_t blas() {
  const cublasHandle_t handle = at::cuda::getCurrentCUDABlasHandle();
  // ATen sets the mode anew whenever it asks for the handle. Ours: fp32 is fp32, and bf16 is summed in fp32 also where
  // a sum is cut in pieces.
  const int mode = int{CUBLAS_DEFAULT_MATH} | int{CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION};
  TORCH_CUDABLAS_CHECK(cublasSetMathMode(handle, static_cast<cublasMath_t>(mode)));
  return handle;
}

template <auto kDestroy>
struct Destroy {
  template <class T>
  void operator()(T* object) const {
    kDestroy(object);
  }
};
using Description = std::unique_ptr<cublasLtMatmulDescOpaque_t, Destroy<cublasLtMatmulDescDestroy>>;
using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, Destroy<cublasLtMatrixLayoutDestroy>>;
using Preference = std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, Destroy<cublasLtMatmulPreferenceDestroy>>;

template <class Value>
void set(const Description& to, cublasLtMatmulDescAttributes_t what, Value value) {
  TORCH_CUDABLAS_CHECK(cublasLtMatmulDescSetAttribute(to.get(), what, &value, sizeof value));
}
template <class Value>
void set(const Preference& to, cublasLtMatmulPreferenceAttributes_t what, Value value) {
  TORCH_CUDABLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(to.get(), what, &value, sizeof value));
}

Description describe(const Columns& shape, const Tensor& bias) {
  cublasLtMatmulDesc_t made = nullptr;
  TORCH_CUDABLAS_CHECK(cublasLtMatmulDescCreate(&made, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  Description description(made);
  set(description, CUBLASLT_MATMUL_DESC_TRANSA, shape.first_operation);
  set(description, CUBLASLT_MATMUL_DESC_TRANSB, shape.second_operation);
  set(description, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
  set(description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.const_data_ptr());
  return description;
}

Layout layout(const Tensor& x, int rows, int columns, int stride, cublasOperation_t operation) {
  if (operation == CUBLAS_OP_T) std::swap(rows, columns);
  cublasLtMatrixLayout_t made = nullptr;
  TORCH_CUDABLAS_CHECK(cublasLtMatrixLayoutCreate(&made, cuda_type(x), static_cast<std::uint64_t>(rows),
                                                  static_cast<std::uint64_t>(columns), stride));
  return Layout(made);
}

/// The largest power of two up to 256 that divides the address, which cublasLt would else take to be 256.
std::uint32_t alignment(const Tensor& x) {
  const auto address = reinterpret_cast<std::uintptr_t>(x.const_data_ptr());
  return 1U << std::min(8, std::countr_zero(address | 256U));
}

/// One product with a bias, ready to run.
struct BiasedProduct {
  Columns shape;
  const Tensor &first, &second, &out, &bias;
  Description description;
  Layout first_layout, second_layout, out_layout;
};

BiasedProduct prepare(const Matrix& a, const Matrix& b, const Tensor& bias, const Tensor& c) {
  const Columns s = columns_of(a, b, c);
  return {s,
          b.values,
          a.values,
          c,
          bias,
          describe(s, bias),
          layout(b.values, s.m, s.k, s.first_stride, s.first_operation),
          layout(a.values, s.k, s.n, s.second_stride, s.second_operation),
          layout(c, s.m, s.n, s.out_stride, CUBLAS_OP_N)};
}

cublasLtMatmulAlgo_t choose(const BiasedProduct& p) {
  cublasLtMatmulPreference_t made = nullptr;
  TORCH_CUDABLAS_CHECK(cublasLtMatmulPreferenceCreate(&made));
  const Preference preference(made);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, at::cuda::getCUDABlasLtWorkspaceSize());
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(p.first));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(p.second));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(p.out));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(p.out));
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  TORCH_CUDABLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(at::cuda::getCurrentCUDABlasLtHandle(), p.description.get(),
                                                      p.first_layout.get(), p.second_layout.get(), p.out_layout.get(),
                                                      p.out_layout.get(), preference.get(), 1, &best, &found));
  TORCH_CHECK(found > 0, "cublasLt knows no way to multiply these");
  return best.algo;
}

/// The algorithm for such a product. Asked for once: asking takes as long as a small product.
const cublasLtMatmulAlgo_t& algorithm(const BiasedProduct& p) {
  thread_local std::map<std::array<std::int64_t, 11>, cublasLtMatmulAlgo_t> known;
  const Columns& s = p.shape;
  const std::array<std::int64_t, 11> key{s.m,
                                         s.n,
                                         s.k,
                                         s.first_operation,
                                         s.second_operation,
                                         cuda_type(p.first),
                                         cuda_type(p.out),
                                         alignment(p.first),
                                         alignment(p.second),
                                         alignment(p.out),
                                         p.out.get_device()};
  const auto at = known.find(key);
  return at != known.end() ? at->second : known.emplace(key, choose(p)).first->second;
}

/// c = a b + bias; bias has c's dtype.
void gemm_with_bias(const Matrix& a, const Matrix& b, const Tensor& bias, const Tensor& c) {
  const BiasedProduct p = prepare(a, b, bias, c);
  const float one = 1.0F, zero = 0.0F;
  TORCH_CUDABLAS_CHECK(
      cublasLtMatmul(at::cuda::getCurrentCUDABlasLtHandle(), p.description.get(), &one, p.first.const_data_ptr(),
                     p.first_layout.get(), p.second.const_data_ptr(), p.second_layout.get(), &zero, c.const_data_ptr(),
                     p.out_layout.get(), c.mutable_data_ptr(), p.out_layout.get(), &algorithm(p),
                     at::cuda::getCUDABlasLtWorkspace(), at::cuda::getCUDABlasLtWorkspaceSize(), stream()));
}

/// Does cublasLt surely know this product? Odd sides and addresses are left to the old interface, which takes any.
bool suits_lt(const Matrix& a, const Matrix& b, const Tensor& bias, const Tensor& c) {
  const auto even = [](const Tensor& x) { return x.size(1) % 8 == 0 && alignment(x) >= 16; };
  return even(a.values) && even(b.values) && even(c) && alignment(bias) >= 16;
}

bool empty_product(const Matrix& a, const Tensor& c) {
  return c.numel() == 0 || a.values.size(a.transposed ? 0 : 1) == 0;
}

void multiply(const Product& p, const Matrix& a, const Matrix& b, Scratch& scratch, const Tensor& out) {
  if (!p.bias.defined()) return gemm(1.0F, a, b, p.beta, out);
  if (p.beta != 0.0F) fail(ExitCode::kUsage, "a product adds a bias or an older value, not both");
  const Tensor bias = scratch.as(p.bias, out.scalar_type());
  if (!empty_product(a, out) && suits_lt(a, b, bias, out)) return gemm_with_bias(a, b, bias, out);
  fill_bias(bias, out);
  gemm(1.0F, a, b, 1.0F, out);
}

}  // namespace

void refuse_type(at::ScalarType type) {
  fail(ExitCode::kUsage, "operators take fp32 or bf16 tensors, not {}", c10::toString(type));
}

void hold_workspaces() {
  at::cuda::getCurrentCUDABlasHandle();
  at::cuda::getCUDABlasLtWorkspace();
}

void gemm(float alpha, Matrix a, Matrix b, float beta, const Tensor& c) {
  if (c.numel() == 0) return;
  if (empty_product(a, c)) {
    if (beta == 0.0F) C10_CUDA_CHECK(cudaMemsetAsync(c.mutable_data_ptr(), 0, c.nbytes(), stream()));
    TORCH_CHECK(beta == 0.0F || beta == 1.0F, "an empty product on top of ", beta, " times its old value");
    return;
  }
  const Columns s = columns_of(a, b, c);
  TORCH_CUDABLAS_CHECK(
      cublasGemmEx(blas(), s.first_operation, s.second_operation, s.m, s.n, s.k, &alpha, b.values.const_data_ptr(),
                   cuda_type(b.values), s.first_stride, a.values.const_data_ptr(), cuda_type(a.values), s.second_stride,
                   &beta, c.mutable_data_ptr(), cuda_type(c), s.out_stride, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

void CudaKernels::product(const Product& p, Tensor& out) const {
  hold_workspaces();
  Scratch scratch;
  const Tensor first = scratch.as(p.a, p.compute), second = scratch.as(p.b, p.compute);
  const Matrix a{first, p.transpose_a}, b{second, p.transpose_b};
  if (p.compute != at::kFloat || out.scalar_type() == at::kFloat) return multiply(p, a, b, scratch, out);
  // cuBLAS does not round the product of fp32 operands to bf16 itself.
  const Tensor wide = p.beta == 0.0F ? scratch.make(out.sizes(), at::kFloat, out) : scratch.as(out, at::kFloat);
  multiply(p, a, b, scratch, wide);
  convert(wide, out);
}

}  // namespace plimsoll::model::cuda

namespace plimsoll::model {

const Kernels& cuda_kernels() {
  static const cuda::CudaKernels kernels;
  return kernels;
}

void prepare_cuda_thread() { cuda::hold_workspaces(); }

}  // namespace plimsoll::model
