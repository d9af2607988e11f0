#pragma once
// What the operators share: graph nodes of their own instead of torch::autograd::Function, which costs several times as
// much per call (type-erased arguments, maps of saved data) and cannot keep plain C++ state.

#include <ATen/EmptyTensor.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/torch.h>

#include <array>

#include "core/error.h"
#include "model/kernels.h"

namespace plimsoll::model {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

/// True when autograd must remember an operator over these inputs.
template <class... Tensors>
bool wants_graph(const Tensors&... inputs) {
  return at::GradMode::is_enabled() && ((inputs.defined() && inputs.requires_grad()) || ...);
}

/// An uninitialised tensor on `like`'s device: the only way an operator makes memory.
inline Tensor make(at::IntArrayRef sizes, at::ScalarType dtype, const Tensor& like) {
  if (like.is_cpu()) return Tensor(at::detail::empty_cpu(sizes, dtype));
  return at::empty(sizes, like.options().dtype(dtype).requires_grad(false));
}
inline Tensor make_like(const Tensor& x) { return make(x.sizes(), x.scalar_type(), x); }

/// [rows, columns] over the same memory, without a graph; x itself when it is a matrix already.
inline Tensor as_matrix(const Tensor& x) {
  if (!x.defined() || x.dim() == 2) return x;
  const std::int64_t width = x.size(-1);
  return x.detach().view({width == 0 ? 0 : x.numel() / width, width});
}

/// Heads of q, k, v: contiguous inside a row, any distance between rows (a slice of a fused projection stays as it is).
inline Tensor contiguous_heads(const Tensor& x) {
  return x.stride(2) == 1 && x.stride(1) == x.size(2) ? x : x.contiguous();
}

/// True when nobody else can see this tensor's memory, so that a backward may write its result there. Counts
/// references, which are the same on CPU and meta.
inline bool is_ours(const Tensor& x) {
  return x.defined() && x.is_contiguous() && x.use_count() == 1 && x.storage().use_count() == 1;
}

/// The same memory as another variable without history, for an output that passes an input through.
inline Tensor pass_through(const Tensor& x) { return x.variable_data(); }

/// A node whose last output is cheap to make again, to the bit, from what the node has saved. A linear layer that reads
/// the output keeps this node, which its graph edge does anyhow, instead of the output: of a transformer's activations
/// a third.
class Remakable {
 public:
  virtual ~Remakable() = default;
  /// The last output once more, in memory of its own. Only while the node's own backward has not run.
  virtual Tensor remake() = 0;
};

/// The node that can make x again, or null.
inline std::shared_ptr<torch::autograd::Node> maker_of(const Tensor& x) {
  const auto& node = x.grad_fn();
  if (node == nullptr || dynamic_cast<Remakable*>(node.get()) == nullptr) return nullptr;
  return x.output_nr() + 1 == node->num_inputs() ? node : nullptr;
}

/// A graph node with N saved tensors. Derived gives `variable_list backward(const variable_list& grads)`; it is not
/// called when no gradient arrives.
template <std::size_t N>
class OpNode : public torch::autograd::Node {
 public:
  void release_variables() override {
    for (auto& variable : saved_) variable.reset_data();
  }

 protected:
  virtual variable_list backward(const variable_list& grads) = 0;

  variable_list apply(variable_list&& grads) final {
    for (const auto& grad : grads) {
      if (grad.defined()) return backward(grads);
    }
    return variable_list(num_outputs());
  }
  /// Is this input's gradient asked for in the running pass?
  bool needs(std::size_t input) { return task_should_compute_output(input); }
  Tensor saved(std::size_t i) { return saved_[i].unpack(shared_from_this()); }
  void save(std::size_t i, const Tensor& tensor, bool is_output = false) {
    saved_[i] = SavedVariable(tensor, is_output);
  }

  std::array<SavedVariable, N> saved_;
};

/// Makes a node whose gradients go to `inputs` (undefined ones and those that require none get none).
template <class Node, class... Tensors>
std::shared_ptr<Node> make_node(const Tensors&... inputs) {
  std::shared_ptr<Node> node(new Node(), torch::autograd::deleteNode);
  node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  return node;
}

}  // namespace plimsoll::model
