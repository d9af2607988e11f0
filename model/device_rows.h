#pragma once
// Cached features that lie in the device's memory already.

#include <torch/torch.h>

#include <functional>
#include <utility>

namespace plimsoll::model {

/// Rows [n, hidden] in the compute dtype, a part of a larger tensor. They keep their values while this lives, but not
/// their place: whoever runs steps may move them to host memory between two micro-batches. `release` is called when it
/// ends, on any thread.
struct DeviceRows {
  DeviceRows(at::Tensor those, std::function<void()> then) : rows(std::move(those)), release(std::move(then)) {}
  ~DeviceRows() { release(); }
  DeviceRows(const DeviceRows&) = delete;
  DeviceRows& operator=(const DeviceRows&) = delete;

  at::Tensor rows;
  std::function<void()> release;
};

}  // namespace plimsoll::model
