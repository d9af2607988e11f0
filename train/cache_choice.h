#pragma once
// Whether a run keeps features, under which settings they hold, what they take and what room there is for them.

#include <cstdint>
#include <string>

#include "cache/config.h"
#include "cache/fingerprint.h"
#include "cache/store.h"
#include "cache/tiers.h"
#include "data/sample_source.h"
#include "ddp/communicator.h"
#include "model/vla.h"
#include "train/config.h"
#include "train/device.h"

namespace plimsoll::train {

/// What a cache's files depend on beside the configuration.
struct FeatureOrigin {
  std::uint64_t pictures = 0;     ///< SampleSource::pictures_hash()
  std::uint64_t samples = 0;      ///< SampleSource::hash(): hidden states depend on words too
  std::uint64_t model_files = 0;  ///< hash_of_model_files()
  std::string device;             ///< "cpu" or "cuda", whose kernels round differently
  std::string run;                ///< RunState::run where features age as the run learns; else empty
};
cache::Fingerprint feature_fingerprint(const Config& config, const FeatureOrigin& origin);

/// Whether a run under these settings keeps features: with every sample live nothing would ever be read.
bool keeps_features(const Config& config);
/// Throws Error(kUsage) for settings under which features would not stay exact (prefix: an adapter in the vision tower;
/// resolution among memory.knobs), or with which adapters would learn nothing.
void refuse_what_would_not_hold(const Config& config, const model::VlaModel& model);

/// Bytes of all training samples' features, in the compute dtype.
struct FeatureBytes {
  std::uint64_t in_memory = 0;
  std::uint64_t on_disk = 0;  ///< with a header each
};
FeatureBytes feature_bytes(const Config& config, const model::VlaModel& model, const data::SampleSource& source,
                           model::Features which);

/// What cache.mode = "auto" comes to, and why: "prefix", or "off".
struct CacheChoice {
  std::string mode, reason;
};
/// `steps`: of the whole run. `room`: what the disk of cache.dir has to give, what is there already included
/// (room_for_features). Pure.
CacheChoice choose_cache_mode(const Config& config, const model::VlaModel& model, const data::SampleSource& source,
                              std::int64_t steps, std::uint64_t room);

/// By cache.disk_bytes and the disk where cache.dir is or will be: for features of this fingerprint.
std::uint64_t room_for_features(const cache::CacheConfig& config, const cache::Fingerprint& fingerprint);
/// By the same, bytes that all ranks together may add to what the store holds.
std::uint64_t room_left(const cache::CacheConfig& config, const cache::Store& store);

/// By cache.device_bytes, cache.host_bytes and what is free, of `features` bytes: this rank's host memory, and the
/// device's, which is the same on all ranks, as candidates are judged by what is live on rank 0. Collective. Throws
/// Error(kUsage) naming rank and key, on every rank, where one asks for memory that it does not have.
cache::TierSizes choose_tier_sizes(const Config& config, std::int64_t features, const Device& device,
                                   std::int64_t budget, ddp::Communicator& communicator);

}  // namespace plimsoll::train
