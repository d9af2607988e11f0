// The flat buffers' kernels on a GPU: each is bound by memory, so each reads and writes every element once, sixteen
// bytes a thread at a time where all pointers allow it.

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "train/cuda/flat_kernels.h"

namespace plimsoll::train {
namespace {

constexpr int kThreads = 256;
constexpr int kMostBlocks = 1024;    // of a norm: as many partial sums, summed in order on the host
constexpr std::int64_t kVector = 4;  // floats of a 16-byte access

// An exponent of all ones is infinite or not a number.
constexpr std::uint32_t kExponent = 0x7f800000U;

__device__ bool is_bad(float value) { return (__float_as_uint(value) & kExponent) == kExponent; }

__device__ std::int64_t thread_index() { return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

__global__ void write_sum_kernel(const float* from, const float* gradient, float* to, std::int64_t n, bool vectors,
                                 std::uint32_t* bad) {
  const std::int64_t first = thread_index() * kVector;
  if (first >= n) return;
  bool found = false;
  if (vectors && first + kVector <= n) {
    float4 sum = *reinterpret_cast<const float4*>(gradient + first);
    if (from != nullptr) {
      const float4 old = *reinterpret_cast<const float4*>(from + first);
      sum = {old.x + sum.x, old.y + sum.y, old.z + sum.z, old.w + sum.w};
    }
    *reinterpret_cast<float4*>(to + first) = sum;
    found = is_bad(sum.x) || is_bad(sum.y) || is_bad(sum.z) || is_bad(sum.w);
  } else {
    for (std::int64_t i = first; i < min(n, first + kVector); ++i) {
      const float sum = from == nullptr ? gradient[i] : from[i] + gradient[i];
      to[i] = sum;
      found = found || is_bad(sum);
    }
  }
  if (found) *bad = 1;  // all that write write the same
}

// One element, in the order of train/adamw.cpp, without contraction: the same bits as on the host.
__device__ void update(float& p, float g, float& m, float& v, const AdamWFactors& f) {
  const float value = __fmul_rn(g, f.gradient_scale);
  m = __fadd_rn(__fmul_rn(f.b1, m), __fmul_rn(f.c1, value));
  v = __fadd_rn(__fmul_rn(f.b2, v), __fmul_rn(__fmul_rn(f.c2, value), value));
  const float root = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), f.root_correction), f.epsilon);
  p = __fsub_rn(__fmul_rn(p, f.decay), __fdiv_rn(__fmul_rn(f.step_size, m), root));
}

__global__ void adamw_kernel(float* p, const float* g, float* m, float* v, std::int64_t n, bool vectors,
                             AdamWFactors f) {
  const std::int64_t first = thread_index() * kVector;
  if (first >= n) return;
  if (vectors && first + kVector <= n) {
    auto& to = *reinterpret_cast<float4*>(p + first);
    auto& to_m = *reinterpret_cast<float4*>(m + first);
    auto& to_v = *reinterpret_cast<float4*>(v + first);
    const float4 gradient = *reinterpret_cast<const float4*>(g + first);
    float4 value = to, moment = to_m, square = to_v;
    update(value.x, gradient.x, moment.x, square.x, f);
    update(value.y, gradient.y, moment.y, square.y, f);
    update(value.z, gradient.z, moment.z, square.z, f);
    update(value.w, gradient.w, moment.w, square.w, f);
    to = value;
    to_m = moment;
    to_v = square;
  } else {
    for (std::int64_t i = first; i < min(n, first + kVector); ++i) update(p[i], g[i], m[i], v[i], f);
  }
}

// Each block sums its own contiguous part, so the result does not depend on what runs when.
__global__ void squares_kernel(const float* values, std::int64_t n, std::int64_t part, double* sums) {
  __shared__ double shared[kThreads];
  const std::int64_t begin = blockIdx.x * part, end = min(n, begin + part);
  double sum = 0;
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const double value = values[i];
    sum += value * value;
  }
  shared[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = shared[0];
}

unsigned blocks_for(std::int64_t n, std::int64_t each) {
  return static_cast<unsigned>((n + kThreads * each - 1) / (kThreads * each));
}

bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

void copy_and_wait(const void* from, void* to, std::size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return;
  C10_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, kind, stream()));
  C10_CUDA_CHECK(cudaStreamSynchronize(stream()));
}

class CudaFlatKernels final : public FlatKernels {
 public:
  CudaFlatKernels() : sums_(flat_scratch(kMostBlocks * sizeof(double))) {}

  void write_sum(const float* from, const float* gradient, float* to, std::int64_t n,
                 std::uint32_t* bad) const override {
    if (n == 0) return;
    const bool vectors = aligned(from) && aligned(gradient) && aligned(to);
    write_sum_kernel<<<blocks_for(n, kVector), kThreads, 0, stream()>>>(from, gradient, to, n, vectors, bad);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  void fill_zeros(std::span<float> to) const override {
    if (!to.empty()) C10_CUDA_CHECK(cudaMemsetAsync(to.data(), 0, to.size_bytes(), stream()));
  }
  void copy(std::span<const float> from, float* to) const override {
    if (!from.empty())
      C10_CUDA_CHECK(cudaMemcpyAsync(to, from.data(), from.size_bytes(), cudaMemcpyDeviceToDevice, stream()));
  }
  void clear(std::uint32_t* bad) const override { C10_CUDA_CHECK(cudaMemsetAsync(bad, 0, sizeof *bad, stream())); }
  bool is_set(const std::uint32_t* bad) const override {
    std::uint32_t value = 0;
    copy_and_wait(bad, &value, sizeof value, cudaMemcpyDeviceToHost);
    return value != 0;
  }
  double l2_norm(std::span<const float> values) const override {
    const auto n = static_cast<std::int64_t>(values.size());
    if (n == 0) return 0.0;
    const std::int64_t blocks = std::min<std::int64_t>(kMostBlocks, (n + kThreads - 1) / kThreads);
    const std::int64_t part = (n + blocks - 1) / blocks;
    auto* sums = static_cast<double*>(sums_.get());
    squares_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream()>>>(values.data(), n, part, sums);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    std::vector<double> on_host(static_cast<std::size_t>(blocks));
    copy_and_wait(sums, on_host.data(), on_host.size() * sizeof(double), cudaMemcpyDeviceToHost);
    double total = 0;
    for (const double sum : on_host) total += sum;
    return std::sqrt(total);
  }
  void adamw(std::span<float> parameter, std::span<const float> gradient, std::span<float> first_moment,
             std::span<float> second_moment, const AdamWFactors& factors) const override {
    const auto n = static_cast<std::int64_t>(parameter.size());
    if (n == 0) return;
    float *const p = parameter.data(), *const m = first_moment.data(), *const v = second_moment.data();
    const bool vectors = aligned(p) && aligned(gradient.data()) && aligned(m) && aligned(v);
    adamw_kernel<<<blocks_for(n, kVector), kThreads, 0, stream()>>>(p, gradient.data(), m, v, n, vectors, factors);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  void to_host(std::span<const float> from, float* host) const override {
    copy_and_wait(from.data(), host, from.size_bytes(), cudaMemcpyDeviceToHost);
  }
  void from_host(std::span<const float> host, float* to) const override {
    copy_and_wait(host.data(), to, host.size_bytes(), cudaMemcpyHostToDevice);
  }

 private:
  c10::DataPtr sums_;  // made once: the update allocates nothing
};

}  // namespace

const FlatKernels& cuda_flat_kernels() {
  static const auto* const kernels = new CudaFlatKernels;  // never destroyed: the driver may be gone by then
  return *kernels;
}

}  // namespace plimsoll::train
