// Kernels that go element by element: casts, sums and activations. A thread takes eight elements.

#include <cmath>

#include "model/cuda/elements.cuh"
#include "model/cuda/kernels_cuda.h"

namespace plimsoll::model::cuda {
namespace {

constexpr int kThreads = 256;

/// body.run<grouped>(first element, how many of eight) over n elements.
template <bool kGrouped, class Body>
__global__ void __launch_bounds__(kThreads) for_groups(std::int64_t n, Body body) {
  const std::int64_t at = 8 * (std::int64_t{blockIdx.x} * kThreads + threadIdx.x);
  if (at + 8 <= n) {
    body.template run<kGrouped>(at, 8);
  } else if (at < n) {
    body.template run<false>(at, n - at);
  }
}

template <class Body, class... Pointers>
void run_groups(std::int64_t n, const Body& body, Pointers... pointers) {
  if (n == 0) return;
  const unsigned blocks = grid_size(pieces_of(n, 8 * kThreads));
  with_flag(grouped(0, pointers...), [&](auto is_grouped) {
    for_groups<decltype(is_grouped)::value><<<blocks, kThreads, 0, stream()>>>(n, body);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

/// out = value(x).
template <class X, class O, class Value>
struct Unary {
  const X* x;
  O* out;
  Value value;
  template <bool kGrouped>
  __device__ void run(std::int64_t at, std::int64_t count) const {
    F8 v = load<kGrouped>(x + at, count);
#pragma unroll
    for (float& e : v.v) e = value(e);
    store<kGrouped>(out + at, v, count);
  }
};

/// out = value(x, y); out may be x or y.
template <class T, class Value>
struct Binary {
  const T *x, *y;
  T* out;
  Value value;
  template <bool kGrouped>
  __device__ void run(std::int64_t at, std::int64_t count) const {
    F8 a = load<kGrouped>(x + at, count);
    const F8 b = load<kGrouped>(y + at, count);
#pragma unroll
    for (int i = 0; i < 8; ++i) a.v[i] = value(a.v[i], b.v[i]);
    store<kGrouped>(out + at, a, count);
  }
};

struct Same {
  __device__ float operator()(float x) const { return x; }
};
struct Sum {
  __device__ float operator()(float x, float y) const { return x + y; }
};

__device__ float sigmoid(float x) { return 1.0F / (1.0F + expf(-x)); }

struct GeluErf {
  __device__ static float value(float x) { return 0.5F * x * (1.0F + erff(x * 0.70710678F)); }
  __device__ static float slope(float x) {
    return 0.5F * (1.0F + erff(x * 0.70710678F)) + x * 0.39894228F * expf(-0.5F * x * x);
  }
};
struct GeluTanh {
  __device__ static float bent(float x) { return tanhf(0.79788456F * (x + 0.044715F * x * x * x)); }
  __device__ static float value(float x) { return 0.5F * x * (1.0F + bent(x)); }
  __device__ static float slope(float x) {
    const float t = bent(x);
    return 0.5F * (1.0F + t) + 0.5F * x * (1.0F - t * t) * 0.79788456F * (1.0F + 3.0F * 0.044715F * x * x);
  }
};
struct Silu {
  __device__ static float value(float x) { return x * sigmoid(x); }
  __device__ static float slope(float x) {
    const float s = sigmoid(x);
    return s * (1.0F + x * (1.0F - s));
  }
};

template <class Function>
struct ValueOf {
  __device__ float operator()(float x) const { return Function::value(x); }
};
template <class Function>
struct SlopeTimes {
  __device__ float operator()(float grad, float x) const { return grad * Function::slope(x); }
};
struct Gated {
  __device__ float operator()(float gate, float up) const { return Silu::value(gate) * up; }
};

template <class Body>
void with_activation(Activation kind, Body&& body) {
  switch (kind) {
    case Activation::kGeluErf:
      return body(GeluErf{});
    case Activation::kGeluTanh:
      return body(GeluTanh{});
    case Activation::kSilu:
      return body(Silu{});
  }
}

template <class T>
struct SwigluBackward {
  const T *grad, *gate, *up;
  T *dgate, *dup;
  template <bool kGrouped>
  __device__ void run(std::int64_t at, std::int64_t count) const {
    const F8 d = load<kGrouped>(grad + at, count), g = load<kGrouped>(gate + at, count),
             u = load<kGrouped>(up + at, count);
    F8 to_gate, to_up;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float x = g.v[i], s = sigmoid(x);
      to_gate.v[i] = d.v[i] * u.v[i] * s * (1.0F + x * (1.0F - s));
      to_up.v[i] = d.v[i] * x * s;
    }
    store<kGrouped>(dgate + at, to_gate, count);
    store<kGrouped>(dup + at, to_up, count);
  }
};

template <class T, class Value>
void run_binary(const Tensor& x, const Tensor& y, const Tensor& out, Value value) {
  const Binary<T, Value> body{data<T>(x), data<T>(y), data<T>(out), value};
  run_groups(x.numel(), body, body.x, body.y, body.out);
}

}  // namespace

void convert(const Tensor& x, const Tensor& out) {
  with_type(x.scalar_type(), [&](auto type) {
    with_type(out.scalar_type(), [&](auto out_type) {
      const Unary<decltype(type), decltype(out_type), Same> body{
          data<decltype(type)>(x), data<decltype(out_type)>(out), {}};
      run_groups(x.numel(), body, body.x, body.out);
    });
  });
}

Tensor Scratch::as(const Tensor& x, at::ScalarType type) {
  if (!x.defined() || x.scalar_type() == type) return x;
  const Tensor copy = make(x.sizes(), type, x);
  convert(x, copy);
  return copy;
}

void CudaKernels::cast(const Tensor& x, Tensor& out) const { convert(x, out); }

void CudaKernels::add(const Tensor& x, const Tensor& y, Tensor& out) const {
  with_type(x.scalar_type(), [&](auto type) { run_binary<decltype(type)>(x, y, out, Sum{}); });
}

void CudaKernels::swiglu_forward(const Tensor& gate, const Tensor& up, Tensor& out) const {
  with_type(gate.scalar_type(), [&](auto type) { run_binary<decltype(type)>(gate, up, out, Gated{}); });
}

void CudaKernels::swiglu_backward(const Tensor& grad, const Tensor& gate, const Tensor& up, Tensor& dgate,
                                  Tensor& dup) const {
  with_type(gate.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const SwigluBackward<T> body{data<T>(grad), data<T>(gate), data<T>(up), data<T>(dgate), data<T>(dup)};
    run_groups(gate.numel(), body, body.grad, body.gate, body.up, body.dgate, body.dup);
  });
}

void CudaKernels::activation_forward(Activation kind, const Tensor& x, Tensor& out) const {
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    with_activation(kind, [&](auto function) {
      const Unary<T, T, ValueOf<decltype(function)>> body{data<T>(x), data<T>(out), {}};
      run_groups(x.numel(), body, body.x, body.out);
    });
  });
}

void CudaKernels::activation_backward(Activation kind, const Tensor& grad, const Tensor& x, Tensor& dx) const {
  with_type(x.scalar_type(), [&](auto type) {
    with_activation(kind,
                    [&](auto function) { run_binary<decltype(type)>(grad, x, dx, SlopeTimes<decltype(function)>{}); });
  });
}

}  // namespace plimsoll::model::cuda
