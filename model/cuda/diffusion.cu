// The diffusion's kernels: noise, the embedding of times, and the loss of a chunk (model/expert_kernels.h).

#include <algorithm>
#include <cmath>

#include "model/cuda/elements.cuh"
#include "model/cuda/kernels_cuda.h"

namespace plimsoll::model::cuda {
namespace {

constexpr int kThreads = 128;

__device__ std::int64_t thread_index() { return std::int64_t{blockIdx.x} * kThreads + threadIdx.x; }
dim3 threads_for(std::int64_t n) { return dim3(grid_size(pieces_of(n, kThreads))); }

struct Mixture {
  float signal, noise;
};

__device__ Mixture mixture_of(float time, const float* table, std::int64_t steps) {
  if (table == nullptr) return {1.0F - time, time};
  const auto step = static_cast<std::int64_t>(time);
  if (!(time >= 0.0F) || step >= steps) return {NAN, NAN};
  return {table[2 * step], table[2 * step + 1]};
}

__global__ void __launch_bounds__(kThreads)
    add_noise_kernel(const float* actions, const float* noise, const float* times, const float* mixtures,
                     std::int64_t steps, std::int64_t draws, std::int64_t chunk, std::int64_t n, float* out) {
  const std::int64_t at = thread_index();
  if (at >= n) return;
  const std::int64_t draw = at / chunk;
  const Mixture m = mixture_of(times[draw], mixtures, steps);
  out[at] = m.signal * actions[draw / draws * chunk + at % chunk] + m.noise * noise[at];
}

__global__ void __launch_bounds__(kThreads)
    embed_times_kernel(const float* times, double scale, std::int64_t n, std::int64_t half, float* out) {
  const std::int64_t at = thread_index();
  if (at >= n * half) return;
  const std::int64_t row = at / half, i = at % half;
  const double angle =
      scale * static_cast<double>(times[row]) * pow(10000.0, -static_cast<double>(i) / static_cast<double>(half));
  out[row * 2 * half + i] = static_cast<float>(cos(angle));
  out[row * 2 * half + half + i] = static_cast<float>(sin(angle));
}

template <class T>
struct Loss {
  const T* predicted;
  const float *actions, *noise, *weight;
  std::int64_t samples, draws, rows, width, predicted_rows;
  bool flow;

  __device__ std::int64_t chunk() const { return rows * width; }
  /// Where the chunk of a draw begins in `predicted`.
  __device__ std::int64_t start(std::int64_t draw) const { return ((draw + 1) * predicted_rows - rows) * width; }
  __device__ float difference(std::int64_t draw, std::int64_t i) const {
    const float e = noise[draw * chunk() + i];
    const float target = flow ? e - actions[draw / draws * chunk() + i] : e;
    return widen(predicted[start(draw) + i]) - target;
  }
  __device__ float row_weight(std::int64_t sample, std::int64_t i) const { return weight[sample * rows + i / width]; }
  /// What makes the sum over a sample the mean over what has weight.
  __device__ float mean_factor(std::int64_t sample) const {
    float total = 0.0F;
    for (std::int64_t row = 0; row < rows; ++row) total += weight[sample * rows + row];
    return total == 0.0F ? 0.0F : 1.0F / (total * static_cast<float>(width * draws));
  }
};

/// A block a sample. Each thread adds up its elements, and the block its threads' sums in order.
template <class T>
__global__ void __launch_bounds__(kThreads) chunk_loss(Loss<T> p, float* losses) {
  __shared__ float sums[kThreads];
  const std::int64_t sample = blockIdx.x, elements = p.draws * p.chunk();
  float sum = 0.0F;
  for (std::int64_t at = threadIdx.x; at < elements; at += kThreads) {
    const std::int64_t i = at % p.chunk();
    const float d = p.difference(sample * p.draws + at / p.chunk(), i);
    sum += p.row_weight(sample, i) * d * d;
  }
  sums[threadIdx.x] = sum;
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) losses[sample] = sums[0] * p.mean_factor(sample);
}

/// A thread an element of `predicted`; what lies before a chunk gets 0.
template <class T>
__global__ void __launch_bounds__(kThreads) chunk_loss_gradient(Loss<T> p, const float* grad, T* dpredicted) {
  const std::int64_t at = thread_index();
  if (at >= p.samples * p.draws * p.predicted_rows * p.width) return;
  const std::int64_t draw = at / (p.predicted_rows * p.width), sample = draw / p.draws, i = at - p.start(draw);
  float value = 0.0F;
  if (i >= 0) value = 2.0F * grad[sample] * p.mean_factor(sample) * p.row_weight(sample, i) * p.difference(draw, i);
  dpredicted[at] = narrow<T>(value);
}

template <class T>
Loss<T> loss_of(const ChunkLoss& of) {
  const std::int64_t samples = of.actions.size(0);
  return {data<T>(of.predicted),
          data<float>(of.actions),
          data<float>(of.noise),
          data<float>(of.weight),
          samples,
          of.noise.size(0) / std::max<std::int64_t>(1, samples),
          of.actions.size(1),
          of.actions.size(2),
          of.predicted.size(1),
          of.flow};
}

}  // namespace

void CudaKernels::add_noise(const Tensor& actions, const Tensor& noise, const Tensor& times, const Tensor& mixtures,
                            Tensor& out) const {
  if (out.numel() == 0) return;
  const std::int64_t draws = noise.size(0) / actions.size(0), chunk = actions.size(1) * actions.size(2);
  add_noise_kernel<<<threads_for(out.numel()), kThreads, 0, stream()>>>(
      data<float>(actions), data<float>(noise), data<float>(times), data<float>(mixtures),
      mixtures.defined() ? mixtures.size(0) : 0, draws, chunk, out.numel(), data<float>(out));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void CudaKernels::embed_times(const Tensor& times, double scale, Tensor& out) const {
  const std::int64_t half = out.size(1) / 2;
  if (times.size(0) * half == 0) return;
  embed_times_kernel<<<threads_for(times.size(0) * half), kThreads, 0, stream()>>>(
      data<float>(times), scale, times.size(0), half, data<float>(out));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void CudaKernels::chunk_loss_forward(const ChunkLoss& of, Tensor& losses) const {
  if (losses.numel() == 0) return;
  with_type(of.predicted.scalar_type(), [&](auto type) {
    chunk_loss<<<dim3(grid_size(losses.numel())), kThreads, 0, stream()>>>(loss_of<decltype(type)>(of),
                                                                           data<float>(losses));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void CudaKernels::chunk_loss_backward(const ChunkLoss& of, const Tensor& grad, Tensor& dpredicted) const {
  if (dpredicted.numel() == 0) return;
  with_type(of.predicted.scalar_type(), [&](auto type) {
    using T = decltype(type);
    chunk_loss_gradient<<<threads_for(dpredicted.numel()), kThreads, 0, stream()>>>(loss_of<T>(of), data<float>(grad),
                                                                                    data<T>(dpredicted));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace plimsoll::model::cuda
