#pragma once
// The feature cache in a run (cache/ is what it stands on): samples come with their features where these are known and
// the mode asks for it, and features that a step had to make are kept.

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cache/int8.h"
#include "cache/live_samples.h"
#include "cache/memory_tier.h"
#include "cache/store.h"
#include "data/sample_source.h"
#include "data/sample_stream.h"
#include "ddp/communicator.h"
#include "model/vla.h"
#include "train/config.h"
#include "train/step.h"

namespace plimsoll::train {

/// What a cache's files depend on beside the configuration.
struct FeatureOrigin {
  std::uint64_t pictures = 0;     ///< SampleSource::pictures_hash(), or hash() for hidden states
  std::uint64_t model_files = 0;  ///< hash_of_model_files()
  std::string device;             ///< "cpu" or "cuda", whose kernels round differently
  std::string run;                ///< RunState::run where features age as the run learns; else empty
};
cache::Fingerprint feature_fingerprint(const Config& config, const FeatureOrigin& origin);

/// What cache.mode = "auto" comes to, and why: "prefix", or "off".
struct CacheChoice {
  std::string mode, reason;
};
/// `steps`: of the whole run. `free_bytes`: what the disk of cache.dir has to give (free_for_features). Pure.
CacheChoice choose_cache_mode(const Config& config, const model::VlaModel& model, const data::SampleSource& source,
                              std::int64_t steps, std::uint64_t free_bytes);
/// By cache.disk_bytes, of the disk where cache.dir is or will be.
std::uint64_t free_for_features(const cache::CacheConfig& config);

/// `cache.mode` = "prefix" or "hybrid". One per rank. Features are kept exact, in the model's compute dtype.
class FeatureCache final : public FeatureKeeper, public data::SampleSource {
 public:
  /// `source` and `communicator` outlive it. Throws Error(kUsage) for settings under which features would not stay
  /// exact (prefix: an adapter in the vision tower; resolution among memory.knobs), or with which adapters would learn
  /// nothing.
  FeatureCache(const Config& config, const model::VlaModel& model, const data::SampleSource& source,
               const ddp::Communicator& communicator);
  ~FeatureCache() override;

  /// Opens the folder of the run's fingerprint; before anything else is asked. `published`: the step whose end the run
  /// goes on from, as far as the cache is concerned: what was made later is not read. A folder that cannot be written is
  /// read, and said once. Throws Error(kData) when the folder can neither be made nor read.
  /// What is stamped before `oldest` is not read either.
  void open(const FeatureOrigin& origin, std::int64_t published, std::int64_t oldest = 0);

  model::Features features() const { return features_; }
  /// Whether features age: hidden states while adapters learn.
  bool ages() const { return ages_; }
  /// Positions that this rank draws in a step.
  std::vector<std::uint64_t> share_of(std::int64_t step) const;

  // What a step makes. Its thread only.

  void start_step(std::int64_t step) override { step_ = step; }
  model::Shown shown(std::span<const model::StreamSample> samples) override;
  /// Writes what was staged. A disk that refuses is said once, and nothing more is kept then.
  void commit() override;
  void discard() override;

  /// After step `step`, on every rank: what all ranks have kept so far is read from here on. A folder that cannot be
  /// read any more is said once.
  /// From then on nothing that is stamped before `oldest` is read.
  void publish(std::int64_t step, std::int64_t oldest = 0);
  /// The hidden states of a sample that are read now, [T, hidden] in the compute dtype; empty where there are none.
  std::vector<std::byte> known_states(const Sample& sample) const;
  /// Copies the features of these samples, made in evaluation mode after step `step`, and writes them.
  void keep_after(std::int64_t step, std::span<const model::StreamSample> samples, const at::Tensor& features);
  /// "1,203 of 1,204 samples came with their features, 1 was made and kept; 2.3 GiB of features on disk": since it was
  /// last asked.
  std::string line();

  // The source that the loader reads from: any thread. load() gives features where it can; load_drawn() where the draw
  // is not to be live.

  std::int64_t size() const override { return source_.size(); }
  data::SampleDims dims() const override { return source_.dims(); }
  SampleShape shape_of(std::int64_t index) const override { return source_.shape_of(index); }
  SampleShape shape_at(std::int64_t index, std::int64_t resolution) const override;
  Sample load(std::int64_t index) const override { return load_at(index, source_.own_resolution()); }
  Sample load_at(std::int64_t index, std::int64_t resolution) const override;
  Sample load_drawn(std::uint64_t position, std::int64_t index, std::int64_t resolution) const override;
  std::int64_t own_resolution() const override { return source_.own_resolution(); }
  std::vector<std::string> tasks() const override { return source_.tasks(); }
  std::int64_t task_of(std::int64_t index) const override { return source_.task_of(index); }
  const std::vector<std::int64_t>& training() const override { return source_.training(); }
  const std::vector<std::int64_t>& held_out() const override { return source_.held_out(); }
  std::uint64_t hash() const override { return source_.hash(); }

  const cache::Store& store() const { return *store_; }

 private:
  struct Staged {
    cache::RecordKey key;
    std::vector<std::byte> features;
  };
  void allow_appends();
  std::int64_t rows_of(const Sample& sample) const;
  std::optional<std::vector<std::byte>> read(const Sample& sample, std::uint64_t next) const;
  Sample load_known(std::int64_t index, std::int64_t resolution, std::uint64_t next) const;
  std::uint64_t next_draw(std::uint64_t position, std::int64_t index) const;
  std::vector<std::byte> payload_of(const std::byte* features, std::uint32_t rows);
  bool is_wanted(const Sample& sample) const;
  void stage(std::span<const model::StreamSample> samples, const at::Tensor& features, std::int64_t stamp);
  void stop_keeping(const std::string& why);

  const data::SampleSource& source_;
  const ddp::Communicator& communicator_;
  Config config_;
  model::Features features_;
  bool ages_;
  std::int64_t batch_, width_;
  cache::Kept made_as_, kept_;  ///< the compute dtype, and what lies on the disk
  std::unique_ptr<cache::Store> store_;
  std::unique_ptr<cache::MemoryTier> memory_;
  mutable std::mutex live_mutex_;  ///< of what follows
  mutable data::SampleStream stream_;
  mutable std::map<std::uint64_t, std::vector<std::uint32_t>> places_;  ///< of two epochs: of each sample within it
  mutable cache::LiveSamples live_;  ///< where features age
  std::vector<Staged> staged_;
  std::int64_t step_ = 0;
  mutable std::atomic<std::int64_t> read_ = 0, missed_ = 0;
  std::int64_t made_ = 0;
  cache::Int8Error int8_error_;  ///< of what was kept since line()
  bool keeps_ = true, full_ = false, said_full_ = false;
};

}  // namespace plimsoll::train
