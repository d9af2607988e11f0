#include "model/recompute.h"

#include <torch/csrc/autograd/autograd.h>

#include "model/ops_node.h"

namespace plimsoll::model {
namespace {

/// Inputs x and the block's trainable tensors.
class RecomputeNode final : public torch::autograd::Node {
 public:
  void keep(std::function<Tensor(const Tensor&)> block, const Tensor& x, const std::vector<Tensor>& trainable,
            const std::shared_ptr<HostChain>& on_host, std::size_t place) {
    block_ = std::move(block);
    on_host_ = on_host;
    place_ = place;
    if (!on_host) x_ = SavedVariable(x, false);
    for (const Tensor& tensor : trainable) trainable_.emplace_back(tensor, false);
  }
  void release_variables() override {
    x_.reset_data();
    release_host();
    for (auto& variable : trainable_) variable.reset_data();
    block_ = nullptr;
  }

 protected:
  variable_list apply(variable_list&& grads) override {
    variable_list out(1 + trainable_.size());
    if (!grads[0].defined()) return out;
    const Tensor kept = on_host_ ? on_host_->restore(place_, grads[0]) : x_.unpack().detach();
    release_host();
    const Tensor& x = kept.requires_grad_(task_should_compute_output(0));
    variable_list wanted;
    std::vector<std::size_t> places;
    const auto want = [&](const Tensor& tensor, std::size_t place) {
      if (!task_should_compute_output(place)) return;
      wanted.push_back(tensor);
      places.push_back(place);
    };
    want(x, 0);
    for (std::size_t i = 0; i < trainable_.size(); ++i) want(trainable_[i].unpack(), 1 + i);
    if (wanted.empty()) return out;
    variable_list found = run_again(x, grads[0], wanted);
    for (std::size_t i = 0; i < places.size(); ++i) out[places[i]] = std::move(found[i]);
    return out;
  }

 private:
  variable_list run_again(const Tensor& x, const Tensor& grad, const variable_list& wanted) {
    Tensor y;
    {
      const at::AutoGradMode with_graph(true);
      y = block_(x);
    }
    return torch::autograd::grad({y}, wanted, {grad}, /*retain_graph=*/false, /*create_graph=*/false,
                                 /*allow_unused=*/true);
  }

  void release_host() {
    if (on_host_) on_host_->release(place_);
    on_host_ = nullptr;
  }

  std::function<Tensor(const Tensor&)> block_;
  SavedVariable x_;
  std::shared_ptr<HostChain> on_host_;  ///< where it keeps x in place of x_
  std::size_t place_ = 0;
  std::vector<SavedVariable> trainable_;
};

bool any_requires_grad(const std::vector<Tensor>& tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const Tensor& t) { return t.defined() && t.requires_grad(); });
}

}  // namespace

Tensor recompute(std::function<Tensor(const Tensor& x)> block, const Tensor& x, const std::vector<Tensor>& trainable,
                 const std::shared_ptr<HostChain>& on_host, std::function<Tensor(const Tensor& x)> again) {
  if (!at::GradMode::is_enabled() || !(x.requires_grad() || any_requires_grad(trainable))) return block(x);
  // Before the block, so that it hides the copy.
  const std::size_t place = on_host ? on_host->keep(x.is_contiguous() ? x : x.contiguous()) : 0;
  Tensor y;
  {
    const at::NoGradGuard no_graph;
    y = block(x);
  }
  if (on_host) on_host->let_go();
  variable_list inputs{x};
  inputs.insert(inputs.end(), trainable.begin(), trainable.end());
  auto node = make_node<RecomputeNode>(inputs);
  node->keep(again ? std::move(again) : std::move(block), x, trainable, on_host, place);
  torch::autograd::set_history(y, node);
  return y;
}

}  // namespace plimsoll::model
