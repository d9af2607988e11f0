#pragma once
// Everything the optimiser touches lies in a few flat fp32 buffers, made before step 1. After that no step allocates
// for it.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/options.h"
#include "train/gradient_sink.h"

namespace plimsoll::train {

/// Elements [begin, end) of the flat buffers.
struct FlatRange {
  std::int64_t begin = 0, end = 0;
};

/// A range of one of the buffers.
inline std::span<float> part(std::span<float> buffer, const FlatRange& range) {
  return buffer.subspan(static_cast<std::size_t>(range.begin), static_cast<std::size_t>(range.end - range.begin));
}

/// One parameter's place.
struct FlatSlot {
  std::string name;
  FlatRange range;
  model::ParameterGroup group;
};

/// Owns parameters, gradients, staging and the optimiser's moments, all on the parameters' device (here: CPU, counted
/// by its budget). Each parameter becomes a view of the parameter buffer, and its gradients go to a GradientSink
/// instead of a .grad, which stays undefined. Parameters start at multiples of 16 elements; the gaps stay zero.
///
/// Gradients are summed in two buffers of the same layout. One holds what this step has committed; backward writes
/// committed + new into the other, which is staging. A commit makes staging the committed one and the other way round;
/// after a failure staging is simply written again. One thread.
class FlatBuffers {
 public:
  /// Moves `parameters` into the flat buffer (their Tensor objects stay, their storage changes). `extra` more elements
  /// follow the gradients in the reduction buffer. On meta only the shapes are made, for a dry run, and no other member
  /// but slots() and discard_staging() may be called.
  FlatBuffers(const std::vector<model::Parameter>& parameters, std::int64_t extra);
  FlatBuffers(const FlatBuffers&) = delete;
  FlatBuffers& operator=(const FlatBuffers&) = delete;

  std::int64_t elements() const { return elements_; }
  const std::vector<FlatSlot>& slots() const { return slots_; }
  /// The contiguous range of a group; empty if it has no parameter.
  FlatRange group(model::ParameterGroup group) const;

  std::span<float> parameters() { return span(parameters_); }
  /// [gradients | extra]: what the ranks sum. Zeros and the extra elements when this step has committed nothing. Other
  /// memory after each commit, so ask again.
  std::span<float> reduction();
  std::span<float> gradients() { return reduction().first(static_cast<std::size_t>(elements_)); }
  std::span<float> extra() { return span(sums_).subspan(static_cast<std::size_t>(elements_)); }
  std::span<float> first_moment() { return span(first_moment_); }
  std::span<float> second_moment() { return span(second_moment_); }

  /// Nothing is committed any more, the extra elements are zero, staging is discarded.
  void start_step();
  /// What backward does when it reaches the parameter of a slot; here for benchmarks and tests.
  void stage(std::size_t slot, const at::Tensor& gradient) { sinks_[slot]->add(gradient); }
  /// True if all that would be committed is finite. Costs nothing: the sinks have looked.
  bool staging_finite() const { return accumulation_.finite; }
  /// What is in staging becomes what is committed. No allocation; memory is moved only for parameters that no gradient
  /// reached, and for the extra elements.
  void commit_staging();
  /// The running micro-batch's gradients count no more.
  void discard_staging();
  /// Throws if a parameter's gradients no longer go to its sink: they would be lost silently.
  void check_sinks() const;
  /// 48-bit hash of all trainable values: equal on all ranks, or they have diverged.
  std::uint64_t weight_hash() const;
  /// 64-bit hash of names, shapes and places.
  std::uint64_t layout_hash() const;

 private:
  static std::span<float> span(const at::Tensor& t) {
    return {t.data_ptr<float>(), static_cast<std::size_t>(t.numel())};
  }
  void point_at_buffers();

  std::int64_t elements_ = 0;
  std::vector<FlatSlot> slots_;
  std::vector<model::Parameter> owners_;
  at::Tensor parameters_, staging_, sums_, first_moment_, second_moment_;
  Accumulation accumulation_;
  std::vector<std::shared_ptr<GradientSink>> sinks_;
};

}  // namespace plimsoll::train
