#pragma once
// Everything the optimiser touches lies in a few flat fp32 buffers, made before step 1. After that no step allocates
// for it.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/options.h"

namespace plimsoll::train {

/// Elements [begin, end) of the flat buffers.
struct FlatRange {
  std::int64_t begin = 0, end = 0;
};

/// One parameter's place.
struct FlatSlot {
  std::string name;
  FlatRange range;
  model::ParameterGroup group;
};

/// Owns parameters, staging, the reduction buffer and the optimiser's moments, all on the parameters' device (here:
/// CPU, counted by its budget). Each parameter becomes a view of the parameter buffer and its .grad a view of staging;
/// nobody may call zero_grad. Parameters start at multiples of 16 elements; the gaps stay zero.
class FlatBuffers {
 public:
  /// Moves `parameters` into the flat buffer (their Tensor objects stay, their storage changes). `extra` more elements
  /// follow the gradients in the reduction buffer. On meta only the shapes are made, for a dry run, and no other member
  /// but slots() may be called.
  FlatBuffers(const std::vector<model::Parameter>& parameters, std::int64_t extra);

  std::int64_t elements() const { return elements_; }
  const std::vector<FlatSlot>& slots() const { return slots_; }
  /// The contiguous range of a group; empty if it has no parameter.
  FlatRange group(model::ParameterGroup group) const;

  std::span<float> parameters() { return span(parameters_); }
  std::span<float> staging() { return span(staging_); }
  /// [gradients | extra]: what the ranks sum.
  std::span<float> reduction() { return span(reduction_); }
  std::span<float> gradients() { return reduction().first(static_cast<std::size_t>(elements_)); }
  std::span<float> extra() { return reduction().subspan(static_cast<std::size_t>(elements_)); }
  std::span<float> first_moment() { return span(first_moment_); }
  std::span<float> second_moment() { return span(second_moment_); }

  /// True if all of staging is finite. No allocation.
  bool staging_finite() const;
  /// gradients += staging; staging = 0. No allocation.
  void commit_staging();
  void clear_staging();
  void clear_reduction();
  /// Throws if a .grad no longer is the view of staging that it was: its gradient would be lost silently.
  void check_views() const;
  /// 48-bit hash of all trainable values: equal on all ranks, or they have diverged.
  std::uint64_t weight_hash() const;
  /// 64-bit hash of names, shapes and places.
  std::uint64_t layout_hash() const;

 private:
  static std::span<float> span(const at::Tensor& t) {
    return {t.data_ptr<float>(), static_cast<std::size_t>(t.numel())};
  }

  std::int64_t elements_ = 0;
  std::vector<FlatSlot> slots_;
  std::vector<model::Parameter> owners_;
  at::Tensor parameters_, staging_, reduction_, first_moment_, second_moment_;
};

}  // namespace plimsoll::train
