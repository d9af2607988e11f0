#pragma once
#include <torch/torch.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/cuda/CUDAException.h>
#include <cuda_runtime_api.h>
#include <vector_types.h>
#include <cuda_bf16.h>
#include <ucontext.h>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>
#undef __shared__
#define __shared__ static
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __global__
#define __global__
#undef __device__
#define __device__
namespace emu {
struct Group { int live = 0, arrived = 0; long gen = 0; };
struct Fiber { ucontext_t ctx; dim3 tid; int linear; bool done = false; std::vector<char> stack; };
struct Block { std::vector<std::unique_ptr<Fiber>> fibers; Group all; std::vector<Group> warps; std::vector<std::array<float[4],32>> f; std::vector<std::array<std::uint32_t,32>> slot; std::vector<std::array<std::array<std::uint32_t,6>,32>> mma; int any = 0; };
extern ucontext_t main_ctx; extern Fiber* me; extern Block* block; extern dim3 block_id, block_dim, grid_dim; extern const std::function<void()>* body;
inline void yield() { swapcontext(&me->ctx, &main_ctx); }
inline void wait(Group& g) { long gen = g.gen; if (++g.arrived >= g.live) { g.arrived = 0; ++g.gen; } else while (g.gen == gen) yield(); }
inline void leave(Group& g) { --g.live; if (g.live > 0 && g.arrived >= g.live) { g.arrived = 0; ++g.gen; } }
inline int warp() { return me->linear / 32; } inline int lane() { return me->linear % 32; }
void launch(const std::function<void()>& f, dim3 grid, dim3 blk);
template <class T> T exchange(T v, int from) { std::uint32_t bits; static_assert(sizeof(T) == 4); memcpy(&bits, &v, 4); block->slot[warp()][lane()] = bits; wait(block->warps[warp()]); bits = block->slot[warp()][from]; wait(block->warps[warp()]); memcpy(&v, &bits, 4); return v; }
inline float bf(std::uint32_t w, int hi) { std::uint32_t b = hi ? (w & 0xFFFF0000u) : (w << 16); float f; memcpy(&f, &b, 4); return f; }
inline void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  auto& m = block->mma[warp()]; m[lane()] = {a[0], a[1], a[2], a[3], b0, b1}; wait(block->warps[warp()]);
  int g = lane() / 4, t = lane() % 4; float add[4];
  for (int i = 0; i < 4; ++i) { int row = g + (i >= 2 ? 8 : 0), col = 2 * t + i % 2; float s = 0;
    for (int k = 0; k < 16; ++k) { int al = (row % 8) * 4 + (k % 8) / 2, ar = (row >= 8 ? 1 : 0) + (k >= 8 ? 2 : 0); int bl = col * 4 + (k % 8) / 2; s += bf(m[al][ar], k % 2) * bf(m[bl][4 + (k >= 8)], k % 2); }
    add[i] = s; }
  wait(block->warps[warp()]); for (int i = 0; i < 4; ++i) c[i] += add[i]; }
inline void set(void* p, int v, size_t n, cudaStream_t) { memset(p, v, n); }
inline void cpy(void* p, const void* q, size_t n, cudaMemcpyKind, cudaStream_t) { memcpy(p, q, n); }
}
#define threadIdx (emu::me->tid)
#define blockIdx (emu::block_id)
#define blockDim (emu::block_dim)
#define gridDim (emu::grid_dim)
inline void __syncthreads() { emu::wait(emu::block->all); }
inline void __syncwarp() { emu::wait(emu::block->warps[emu::warp()]); }
inline int __syncthreads_or(int v) { emu::wait(emu::block->all); if (v) emu::block->any = 1; emu::wait(emu::block->all); int r = emu::block->any; emu::wait(emu::block->all); emu::block->any = 0; emu::wait(emu::block->all); return r; }
template <class T> T __shfl_xor_sync(unsigned, T v, int s) { return emu::exchange(v, emu::lane() ^ s); }
template <class T> T __shfl_sync(unsigned, T v, int s) { return emu::exchange(v, s); }
inline unsigned __ballot_sync(unsigned, bool p) { emu::block->slot[emu::warp()][emu::lane()] = p; emu::wait(emu::block->warps[emu::warp()]); unsigned r = 0; for (int i = 0; i < 32; ++i) r |= emu::block->slot[emu::warp()][i] << i; emu::wait(emu::block->warps[emu::warp()]); return r; }
inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (std::uint64_t(a) * b) >> 32; }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) { unsigned char in[8]; memcpy(in, &a, 4); memcpy(in + 4, &b, 4); unsigned r = 0; for (int i = 0; i < 4; ++i) r |= unsigned(in[(s >> 4 * i) & 7]) << 8 * i; return r; }
inline int __ffs(int x) { return __builtin_ffs(x); }
template <class A, class B> auto min(A a, B b) { using C = std::common_type_t<A, B>; return C(a) < C(b) ? C(a) : C(b); }
using std::isinf;
