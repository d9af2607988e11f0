#pragma once
// GradNorm: weights of the types' losses that are learned so that all types train at a like pace (Chen, Badrinarayanan,
// Lee and Rabinovich, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks", ICML
// 2018, algorithm 1). Pure, without torch; the same on every rank.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace plimsoll::train {

/// What a run knows of its types; kept in its checkpoints. Empty before the first step that is balanced.
struct BalanceState {
  std::vector<double> weights;       ///< of each type; they sum to the number of types
  std::vector<double> first_losses;  ///< of each type's first step; 0: it has had none
  friend bool operator==(const BalanceState&, const BalanceState&) = default;
};

/// Of one step, by type: samples over all ranks, mean losses without any weight, and norms of the shared layer's
/// gradients with all weights in them.
struct BalanceInput {
  std::span<const std::int64_t> counts;
  std::span<const double> losses, norms;
};

struct BalanceOptions {
  double alpha = 1.5;            ///< tasks.alpha
  double learning_rate = 0.025;  ///< tasks.balance_lr
};

/// Rounded to 12 bits of mantissa.
double coarse(double value);

/// The weights after the step: one step of gradient descent on the sum over the types of |G - mean G x r^alpha|, where
/// G is a type's norm, r its loss by its first one relative to the mean of these, and mean G x r^alpha counts as a
/// constant; then scaled so that they sum to the number of types again. A type without samples in the step takes no
/// part and keeps its weight. No weight falls below a thousandth; losses and norms that are not finite change nothing.
/// Losses and norms are taken by coarse(): their last bits hang on how the step was cut.
BalanceState balanced(const BalanceState& before, const BalanceInput& step, const BalanceOptions& options);

std::string to_json(const BalanceState& state);
/// An empty text is the state of a run's beginning. Throws Error(kCheckpoint) for what is none.
BalanceState balance_from_json(std::string_view text);

}  // namespace plimsoll::train
