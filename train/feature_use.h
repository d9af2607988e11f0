#pragma once
// What a rank's feature cache was good for: counted while samples are loaded and steps run, told by epochs.

#include <cstdint>
#include <mutex>

#include "ddp/communicator.h"
#include "report/records.h"
#include "train/step.h"

namespace plimsoll::train {

/// Where a sample's features came from.
enum class FeaturesFrom { kDevice, kMemory, kDisk };

/// read() and missed() by any thread, all else by the step's.
class FeatureUse {
 public:
  /// A sample was loaded with features that were made so many steps ago.
  void read(FeaturesFrom from, std::int64_t age);
  /// A sample was loaded without those that it might have.
  void missed();
  /// A sample's features were made and kept.
  void kept() { ++kept_; }
  /// What the samples of a step took, for what features save.
  void took(const FeatureTimes& times);

  /// Of all ranks, since it was last asked; `memory_bytes` and `device_bytes` are this rank's. Step, epoch, disk and
  /// int8_error are left to the caller. Collective.
  report::CacheUseRecord take(ddp::Communicator& communicator, std::int64_t memory_bytes, std::int64_t device_bytes);

 private:
  struct Loads {
    std::int64_t read = 0, missed = 0, age = 0, from_memory = 0, from_device = 0;  ///< age: steps, over all
  };
  Loads take_loads();
  std::int64_t saved_us(std::int64_t came_with) const;

  std::mutex mutex_;  ///< of what follows
  Loads loads_;
  std::int64_t kept_ = 0, came_with_ = 0;
  FeatureTimes times_;  ///< of all steps
};

}  // namespace plimsoll::train
