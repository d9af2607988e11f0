#pragma once
// Everything the optimiser touches lies in a few flat fp32 buffers, made before step 1. After that no step allocates
// for it.

#include <cstdint>
#include <functional>
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
template <class T>
std::span<T> part(std::span<T> buffer, const FlatRange& range) {
  return buffer.subspan(static_cast<std::size_t>(range.begin), static_cast<std::size_t>(range.end - range.begin));
}

/// One parameter's place.
struct FlatSlot {
  std::string name;
  FlatRange range;
  model::ParameterGroup group;
};

/// Values as the host sees them: where they lie in the CPU's buffers, a copy of another device's.
class HostValues {
 public:
  HostValues(std::span<const float> values, const FlatKernels& kernels, bool on_host);
  HostValues(const HostValues&) = delete;
  HostValues& operator=(const HostValues&) = delete;
  std::span<const float> span() const { return values_; }

 private:
  std::vector<float> copy_;
  std::span<const float> values_;
};

/// Owns parameters, gradients, staging and the optimiser's moments, all on the parameters' device and counted by its
/// budget; spans of them are of the device's memory. Each parameter becomes a view of the parameter buffer, and its
/// gradients go to a GradientSink instead of a .grad, which stays undefined. Parameters start at multiples of 16
/// elements; the gaps stay zero.
///
/// Gradients are summed in two buffers of the same layout. One holds what this step has committed; backward writes
/// committed + new into the other, which is staging. A commit makes staging the committed one and the other way round;
/// after a failure staging is simply written again. One thread.
class FlatBuffers {
 public:
  /// Moves `parameters` into the flat buffer (their Tensor objects stay, their storage changes). `extra` more elements
  /// follow the gradients in the reduction buffer. On meta only the shapes are made, for a dry run, and no other member
  /// but slots(), layout_hash() and discard_staging() may be called.
  FlatBuffers(const std::vector<model::Parameter>& parameters, std::int64_t extra);
  FlatBuffers(const FlatBuffers&) = delete;
  FlatBuffers& operator=(const FlatBuffers&) = delete;

  std::int64_t elements() const { return elements_; }
  const std::vector<FlatSlot>& slots() const { return slots_; }
  /// The contiguous range of a group; empty if it has no parameter.
  FlatRange group(model::ParameterGroup group) const;

  std::span<float> parameters() { return span(parameters_); }
  /// What is committed; zeros when this step has committed nothing. Other memory after each commit, so ask again.
  std::span<float> gradients() { return reduction().first(static_cast<std::size_t>(elements_)); }
  /// The extra elements, in host memory.
  std::span<float> extra() { return extra_; }
  /// [gradients | extra], one span on the device, go through `sum`, which replaces them by their sums over the ranks.
  void reduce(const std::function<void(std::span<float>)>& sum);
  std::span<float> first_moment() { return span(first_moment_); }
  std::span<float> second_moment() { return span(second_moment_); }

  /// Nothing is committed any more, the extra elements are zero, staging is discarded.
  void start_step();
  /// What backward does when it reaches the parameter of a slot; here for benchmarks and tests.
  void stage(std::size_t slot, const at::Tensor& gradient) { sinks_[slot]->add(gradient); }
  /// True if all that would be committed is finite. Costs nothing: the sinks have looked.
  bool staging_finite() const { return !kernels_->is_set(accumulation_.bad); }
  /// What is in staging becomes what is committed. No allocation; memory is moved only for parameters that no gradient
  /// reached.
  void commit_staging();
  /// The running micro-batch's gradients count no more.
  void discard_staging();
  /// Throws if a parameter's gradients no longer go to its sink: they would be lost silently.
  void check_sinks() const;
  /// Norm and update in the device's memory.
  const FlatKernels& kernels() const { return *kernels_; }
  HostValues on_host(std::span<const float> values) const { return {values, *kernels_, on_host_}; }
  /// 48-bit hash of all trainable values: equal on all ranks, or they have diverged.
  std::uint64_t weight_hash() const;
  /// 64-bit hash of names, shapes and places.
  std::uint64_t layout_hash() const;

 private:
  static std::span<float> span(const at::Tensor& t) {
    return {t.data_ptr<float>(), static_cast<std::size_t>(t.numel())};
  }
  std::span<float> reduction();
  void point_at_buffers();

  std::int64_t elements_ = 0;
  const FlatKernels* kernels_ = nullptr;  ///< null on meta
  bool on_host_ = true;
  std::vector<FlatSlot> slots_;
  std::vector<model::Parameter> owners_;
  at::Tensor parameters_, staging_, sums_, first_moment_, second_moment_, bad_;
  std::vector<float> extra_;
  Accumulation accumulation_;
  std::vector<std::shared_ptr<GradientSink>> sinks_;
};

}  // namespace plimsoll::train
