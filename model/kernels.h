#pragma once
// What a device must be able to do for the operators of ops.h: fill outputs that are already there. ops_*.cpp make
// every tensor and decide what is saved; a kernel allocates nothing that the budget counts (own scratch goes inside a
// LibraryScratch).
//
// The base class fills nothing, which is what meta tensors need: a dry run makes the same tensors in the same order.
// Their subclass (kernels_meta.h) only notes how much scratch the CPU's kernel would take. One subclass per kind of
// device; CPU and meta are built in, others are registered when their library is opened.
//
// Conventions: matrices are row-major with contiguous rows ("rows" = product of all but the last dimension) unless said
// otherwise; dtypes are fp32 or bf16, sums run in fp32. An undefined Tensor means "not wanted" or "not there".

#include <cstdint>
#include <vector>

#include "model/expert_kernels.h"
#include "model/ops.h"

namespace plimsoll::model {

/// out = alpha op(a) op(b) + bias + beta out, both operands rounded to `compute` for the product, sums in fp32.
struct Product {
  const Tensor& a;
  bool transpose_a = false;
  const Tensor& b;
  bool transpose_b = false;
  const Tensor& bias;  ///< one value per column of out, or undefined
  float beta = 0.0F;
  at::ScalarType compute = at::kFloat;
};

/// One linear layer with its low-rank pair, as lora_linear sees it.
struct LoraTensors {
  const Tensor& weight;  ///< [out, in]
  const Tensor& bias;    ///< [out] or undefined
  const Tensor& a;       ///< [r, in] fp32; a and b undefined: no pair
  const Tensor& b;       ///< [out, r] fp32
  float scale = 1.0F;
  std::uint32_t site = 0;  ///< of its dropout
  bool values = true;      ///< forward: y is wanted, else only u, and y is filled with zeros
};

/// Gradients of one layer of a group: da, db undefined when not wanted.
struct LoraGradients {
  const Tensor& grad_output;  ///< [n, out]
  const Tensor& u;            ///< [n, r] as saved by the forward; undefined without a pair
  Tensor da, db;              ///< fp32, overwritten
};

/// How rows of q, k, v lie in memory: elements from one row to the next (heads and channels are contiguous inside).
struct AttentionTensors {
  const Tensor& q;  ///< [n, heads, d], any row stride
  const Tensor& k;  ///< [m, kv_heads, d], any row stride
  const Tensor& v;
  const Segments& segments;
  bool causal = false;
};

enum class Activation { kGeluErf, kGeluTanh, kSilu };

class Kernels : public ExpertKernels {
 public:
  virtual void product(const Product&, Tensor& /*out*/) const {}
  /// u = dropout(x) a^T; y = x w^T + bias + scale u b^T. keys and rate as in Dropout, the site is the layer's.
  virtual void lora_forward(const Tensor& /*x*/, const LoraTensors&, const Dropout&, at::ScalarType /*compute*/,
                            Tensor& /*u*/, Tensor& /*y*/) const {}
  /// dx = sum over layers of g w + dropout'(scale g b a), and each layer's da = (scale g b)^T dropout(x), db = scale
  /// g^T u. x is undefined when no da is wanted.
  virtual void lora_backward(const Tensor& /*x*/, const std::vector<LoraTensors>&, const Dropout&,
                             at::ScalarType /*compute*/, std::vector<LoraGradients>&,
                             Tensor& /*dx or undefined*/) const {}
  /// out[c] = sum over rows of x[:, c].
  virtual void sum_rows(const Tensor& /*x*/, Tensor& /*out*/) const {}
  virtual void cast(const Tensor& /*x*/, Tensor& /*out*/) const {}
  /// out may be x or y.
  virtual void add(const Tensor& /*x*/, const Tensor& /*y*/, Tensor& /*out*/) const {}

  /// rstd: [rows] fp32 or undefined.
  virtual void rms_norm_forward(const Tensor& /*x*/, const Tensor& /*weight*/, double /*eps*/, Tensor& /*out*/,
                                Tensor& /*rstd*/) const {}
  /// dx = residual (or 0, when undefined) + the norm's gradient. dx, dweight undefined when not wanted; dx may be grad
  /// itself.
  virtual void rms_norm_backward(const Tensor& /*grad*/, const Tensor& /*x*/, const Tensor& /*weight*/,
                                 const Tensor& /*rstd*/, const Tensor& /*residual*/, Tensor& /*dx*/,
                                 Tensor& /*dweight*/) const {}

  virtual void swiglu_forward(const Tensor& /*gate*/, const Tensor& /*up*/, Tensor& /*out*/) const {}
  virtual void swiglu_backward(const Tensor& /*grad*/, const Tensor& /*gate*/, const Tensor& /*up*/, Tensor& /*dgate*/,
                               Tensor& /*dup*/) const {}
  virtual void activation_forward(Activation, const Tensor& /*x*/, Tensor& /*out*/) const {}
  virtual void activation_backward(Activation, const Tensor& /*grad*/, const Tensor& /*x*/, Tensor& /*dx*/) const {}

  /// x: [n, heads, d], any row stride; `backward` applies the transposed rotation.
  virtual void rotary(const Tensor& /*x*/, const Tensor& /*cos*/, const Tensor& /*sin*/, bool /*backward*/,
                      Tensor& /*out*/) const {}

  /// out: [n, heads, d]; lse: [n, heads] fp32 or undefined.
  virtual void attention_forward(const AttentionTensors&, Tensor& /*out*/, Tensor& /*lse*/) const {}
  virtual void attention_backward(const AttentionTensors&, const Tensor& /*grad*/, const Tensor& /*out*/,
                                  const Tensor& /*lse*/, Tensor& /*dq*/, Tensor& /*dk*/, Tensor& /*dv*/) const {}

  /// out[i] = table[indices[i]].
  virtual void gather_rows(const Tensor& /*table*/, const Tensor& /*indices*/, Tensor& /*out*/) const {}
  /// out = 0, then out[indices[i]] += rows[i], in order.
  virtual void scatter_add_rows(const Tensor& /*rows*/, const Tensor& /*indices*/, Tensor& /*out*/) const {}
  /// out = x, then out[indices[i]] = rows[i]; zeros when `rows` is undefined.
  virtual void place_rows(const Tensor& /*x*/, const Tensor& /*indices*/, const Tensor& /*rows*/,
                          Tensor& /*out*/) const {}
};

/// The implementation for the tensor's device. Throws Error(kUsage) when there is none.
const Kernels& kernels_for(const Tensor& tensor);

/// Adds or replaces a device's implementation, which must live as long as the program. Call before the first step.
void register_kernels(at::DeviceType device, const Kernels* kernels);

}  // namespace plimsoll::model
