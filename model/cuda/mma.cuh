#pragma once
// The tensor cores' bf16 product of 16 x 16 by 16 x 8 with fp32 sums, as one warp issues it.
//
// Which thread holds what (PTX manual, mma.m16n8k16), g = lane / 4, t = lane % 4: of a, four pairs: rows g, g + 8, g,
// g + 8 at columns 2t, 2t, 2t + 8, 2t + 8 (and the next); of b, two pairs: column g at rows 2t and 2t + 8 (and the
// next); of the sums: row g at columns 2t, 2t + 1, then row g + 8 at the same.

#include "model/cuda/elements.cuh"

namespace plimsoll::model::cuda {

/// Eight values in bf16, two a word.
struct Packed8 {
  std::uint32_t pair[4];
};

__device__ inline Packed8 packed(const F8& x) {
  return {{pack(x.v[0], x.v[1]), pack(x.v[2], x.v[3]), pack(x.v[4], x.v[5]), pack(x.v[6], x.v[7])}};
}

struct Left16 {
  std::uint32_t pair[4];
};

__device__ inline void multiply_add(float (&sums)[4], const Left16& a, std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "r"(b0), "r"(b1));
}

}  // namespace plimsoll::model::cuda
