#pragma once
// Features of some samples in the device's memory, so that a step neither reads nor uploads them. They lie in one block
// that is made when the run begins: it is part of what is live before a step, so that plans leave it its place.

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>

#include "model/device_rows.h"

namespace plimsoll::train {

/// Keeps what is needed soonest: who is needed last makes room. find(), forget() and keeps() may be called by any
/// thread, all else by the step's.
class DeviceTier {
 public:
  /// Rows of `width` values, as many as fit `bytes`; 0: nothing is kept. Throws c10::OutOfMemoryError beyond the
  /// budget.
  DeviceTier(std::int64_t bytes, std::int64_t width, at::ScalarType dtype, at::Device device);
  ~DeviceTier();
  DeviceTier(const DeviceTier&) = delete;
  DeviceTier& operator=(const DeviceTier&) = delete;
  /// What of so many bytes the block is made of: whole rows.
  static std::int64_t whole_rows(std::int64_t bytes, std::int64_t width, at::ScalarType dtype);

  /// The rows of the sample made at `stamp`, or null; from now on they are needed next at `next`, a position of the
  /// stream. Rows of another stamp are forgotten.
  std::shared_ptr<const model::DeviceRows> find(std::int64_t sample, std::int64_t stamp, std::uint64_t next);
  /// Copies rows of the dtype's bytes to the device, to be kept until what is needed sooner wants their place; not at
  /// all where there is none for them. Replaces older ones of the sample.
  void keep(std::int64_t sample, std::int64_t stamp, std::span<const std::byte> rows, std::uint64_t next);

  /// They will not be asked for again.
  void forget(std::int64_t sample);
  /// Gives the block back to the device for good, and returns its bytes. Rows that are in use keep their values, in
  /// host memory that is not the device's. Not while a micro-batch runs.
  std::int64_t give_up();

  bool keeps() const { return state_ != nullptr && !gone_; }
  std::int64_t bytes() const;  ///< of the block, whatever lies in it

 private:
  std::optional<std::int64_t> take_rows(std::int64_t count, std::uint64_t next);

  struct State;
  std::shared_ptr<State> state_;    ///< rows that are in use outlive the tier; null: nothing is kept
  std::atomic<bool> gone_ = false;  ///< the block was given up
};

}  // namespace plimsoll::train
