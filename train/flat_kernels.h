#pragma once
// What a device must be able to do with the flat fp32 buffers of train/flat_buffers.h. Nothing here allocates on the
// device, so after the reduction nothing can run out of memory. One subclass per kind of device; the CPU's is built in,
// others are registered when their library is opened.

#include <c10/core/DeviceType.h>

#include <cstdint>
#include <span>

#include "train/adamw.h"

namespace plimsoll::train {

/// Pointers and spans are of the device's memory unless said otherwise. Calls are done in order; what returns nothing
/// may still be under way on a device that works beside the host. One thread.
class FlatKernels {
 public:
  virtual ~FlatKernels() = default;

  /// to = from + gradient, or the gradient alone when `from` is null, over n elements; `to` may be `from`. Sets `*bad`
  /// to 1 where an element of `to` is not finite, else leaves it. `to` begins a cache line.
  virtual void write_sum(const float* from, const float* gradient, float* to, std::int64_t n,
                         std::uint32_t* bad) const = 0;
  virtual void fill_zeros(std::span<float> to) const = 0;
  virtual void copy(std::span<const float> from, float* to) const = 0;
  virtual void clear(std::uint32_t* bad) const = 0;
  /// Waits for what was given before.
  virtual bool is_set(const std::uint32_t* bad) const = 0;

  /// As l2_norm and adamw_update of train/adamw.h.
  virtual double l2_norm(std::span<const float> values) const = 0;
  virtual void adamw(std::span<float> parameter, std::span<const float> gradient, std::span<float> first_moment,
                     std::span<float> second_moment, const AdamWFactors& factors) const = 0;

  /// Between host and device; both wait until it is done.
  virtual void to_host(std::span<const float> from, float* host) const = 0;
  virtual void from_host(std::span<const float> host, float* to) const = 0;
};

/// Throws Error(kUsage) when the device has none; null for meta, where nothing is done.
const FlatKernels* flat_kernels_for(c10::DeviceType device);

/// Adds or replaces a device's implementation, which must live as long as the program. Call before the first step.
void register_flat_kernels(c10::DeviceType device, const FlatKernels* kernels);

}  // namespace plimsoll::train
