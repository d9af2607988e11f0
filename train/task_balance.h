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

/// Rounded to 12 bits of mantissa: by at most 2^-12 of the value.
double coarse(double value);

/// The weights after the step: one step of gradient descent on the sum over the types of |G - mean G x r^alpha|, where
/// G is a type's norm, r its loss by its first one relative to the mean of these, and mean G x r^alpha counts as a
/// constant; then scaled so that they sum to the number of types again. A type without samples in the step takes no
/// part, also in the means, and keeps its weight. No weight comes out below a thousandth: one that the scaling would
/// bring below that has a thousandth, and the others are scaled to what is left. Losses and norms that are not finite,
/// and losses that are not above 0, change nothing. Where the mean of r^alpha is above 1, which it is for alpha above 1
/// unless all train alike, not all norms can be at mean G x r^alpha at once: the descent ends where none is above it.
///
/// What is exact: all ranks of a run have the same weights to the bit, since they make them of the same sums. Under
/// another plan or world size the counts are the same, and losses and norms are the same sums in another order, so that
/// their last bits differ. They are taken by coarse(), which mostly gives the same number for both, and then the
/// weights are equal to the bit. It cannot always: a value that lies between two such numbers, no further from their
/// middle than the last bits reach, is rounded to either of them, and they are up to 2^-11 of it apart. A first loss
/// keeps that for the whole run; a norm or a later loss can turn the sign of G - mean G x r^alpha where that is nearly
/// 0. A weight then goes the other way in that step and, before the scaling, ends up to 2 x learning_rate x G / weight
/// from where it would have been. Later steps take both runs to the same balance, around which weights always swing by
/// such steps. So with tasks.gradnorm, training under another plan or world size may differ by more than the order of
/// summation: that is not promised. No zone around the balance in which weights rest is there to prevent it: at its
/// edges a step would hang on the last bits as its direction does at the balance now, and the steps within would not be
/// the paper's, to which tests/oracle/test_task_balance.py holds these. All else is promised with tasks.gradnorm too:
/// under given weights losses, gradients and norms are the same sums (tests/train/invariance_matrix.cpp).
BalanceState balanced(const BalanceState& before, const BalanceInput& step, const BalanceOptions& options);

std::string to_json(const BalanceState& state);
/// An empty text is the state of a run's beginning. Throws Error(kCheckpoint) for what is none.
BalanceState balance_from_json(std::string_view text);

}  // namespace plimsoll::train
