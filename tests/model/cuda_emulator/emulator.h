#pragma once
// Enough of CUDA for g++ to compile the kernels of model/cuda/ and train/cuda/ and for a CPU to run them: a block's
// threads are fibers of one thread that take turns in random order, and blocks come one after the other. So what a
// kernel computes can be compared with the CPU's kernels, and a missing barrier inside of a block shows. Races between
// blocks, cuBLAS, flash attention and speed do not.
//
// Included before anything else of such a file (g++ -include). translate.py turns launches into emulator::launch() and
// the tensor cores' instruction into emulator::multiply_add().

#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <vector_types.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

namespace emulator {

/// What threadIdx and its like are.
struct Place {
  dim3 thread, block, block_size, grid_size;
};
const Place& place();

/// Runs a kernel for every thread of every block. Throws std::invalid_argument for sizes that a device refuses.
void launch(const std::function<void()>& kernel, dim3 grid, dim3 block);

void wait_for_block();
void wait_for_warp();
/// What lane `from` of the warp passed.
std::uint32_t exchange(std::uint32_t bits, unsigned from);
unsigned lane();
bool any_in_block(bool value);
unsigned ballot(bool value);
/// mma.m16n8k16 of bf16 with fp32 sums, whose threads hold what the PTX manual says.
void multiply_add(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);

template <class T>
T exchange_as(T value, unsigned from) {
  static_assert(sizeof(T) == sizeof(std::uint32_t));
  return std::bit_cast<T>(exchange(std::bit_cast<std::uint32_t>(value), from));
}

}  // namespace emulator

#undef __device__
#undef __global__
#undef __launch_bounds__
#undef __shared__
#define __device__
#define __global__
#define __launch_bounds__(...)
#define __shared__ static
#define blockDim (emulator::place().block_size)
#define blockIdx (emulator::place().block)
#define gridDim (emulator::place().grid_size)
#define threadIdx (emulator::place().thread)

#undef C10_CUDA_CHECK
#undef C10_CUDA_KERNEL_LAUNCH_CHECK
#define C10_CUDA_CHECK(call) static_cast<void>(call)
#define C10_CUDA_KERNEL_LAUNCH_CHECK() static_cast<void>(0)
#define cudaMemcpyAsync(to, from, bytes, kind, stream) std::memcpy(to, from, bytes)
#define cudaMemsetAsync(to, value, bytes, stream) std::memset(to, value, bytes)
#define cudaStreamSynchronize(stream) 0

// Device functions, as the CUDA C++ Programming Guide describes them.
using std::isinf;
inline void __syncthreads() { emulator::wait_for_block(); }
inline void __syncwarp() { emulator::wait_for_warp(); }
inline int __syncthreads_or(int value) { return emulator::any_in_block(value != 0) ? 1 : 0; }
template <class T>
T __shfl_sync(unsigned, T value, int from) {
  return emulator::exchange_as(value, static_cast<unsigned>(from));
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::exchange_as(value, emulator::lane() ^ static_cast<unsigned>(mask));
}
inline unsigned __ballot_sync(unsigned, bool value) { return emulator::ballot(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
// Each rounded by itself, as g++ does it too: this is compiled with -ffp-contract=off.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<std::uint64_t>(a) * b) >> 32);
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(b) << 32 | a;
  unsigned out = 0;
  for (unsigned i = 0; i < 4; ++i) out |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i;
  return out;
}
template <class A, class B>
auto min(A a, B b) {
  using Common = std::common_type_t<A, B>;
  return static_cast<Common>(a) < static_cast<Common>(b) ? static_cast<Common>(a) : static_cast<Common>(b);
}
