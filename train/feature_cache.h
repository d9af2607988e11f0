#pragma once
// The feature cache in a run (cache/ is what it stands on): samples come with their features where these are known and
// the mode asks for it, and features that a step had to make are kept.

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cache/host_pool.h"
#include "cache/int8.h"
#include "cache/memory_tier.h"
#include "cache/store.h"
#include "cache/upkeep.h"
#include "data/sample_source.h"
#include "ddp/communicator.h"
#include "model/vla.h"
#include "report/records.h"
#include "train/cache_choice.h"
#include "train/config.h"
#include "train/device.h"
#include "train/device_tier.h"
#include "train/feature_schedule.h"
#include "train/feature_use.h"
#include "train/step.h"

namespace plimsoll::train {

/// `cache.mode` = "prefix" or "hybrid". One per rank. Features are kept exact, in the model's compute dtype, or as
/// bytes where cache.keep says so.
class FeatureCache final : public FeatureKeeper, public data::SampleSource {
 public:
  /// `order`: what the run's stream draws of the source. `source` and `communicator` outlive it. Throws as
  /// refuse_what_would_not_hold() does. Makes its block of the device's memory (cache.device_bytes): before plans are
  /// chosen. Throws Error(kUsage) for memory that is not there. Collective.
  FeatureCache(const Config& config, const model::VlaModel& model, const data::SampleSource& source,
               std::shared_ptr<const data::StreamOrder> order, ddp::Communicator& communicator, const Device& device,
               std::int64_t budget);
  ~FeatureCache() override;

  /// Opens the folder of the run's fingerprint; before anything else is asked. Where features age, only what `known`
  /// says is read. A folder that cannot be written is read, and said once. Collective. Throws Error(kData) when the
  /// folder can neither be made nor read, Error(kUsage) when ranks have different ones.
  void open(const FeatureOrigin& origin, const cache::UpkeepState& known);

  model::Features features() const { return features_; }
  /// Whether features age: hidden states while adapters learn.
  bool ages() const { return ages_; }
  /// Positions that this rank draws in a step.
  std::vector<std::uint64_t> share_of(std::int64_t step) const;

  // What a step makes. Its thread only.

  void start_step(std::int64_t step) override { step_ = step; }
  bool can_keep(const Sample& sample) const override { return rows_of(sample) > 0; }
  model::Shown shown(std::span<const model::StreamSample> samples) override;
  /// Writes what was staged. A disk that refuses is said once, and nothing more is kept then: the step's gradients are
  /// committed already, so that nothing may be thrown.
  void commit() override;
  void discard() override;
  /// Said once, as a warning: a sample did not fit beside the block.
  std::int64_t give_up_device() override;

  /// On every rank: what all ranks have kept so far is read from here on; where features age, what `known` says of it.
  /// A folder that cannot be read any more is said once.
  void publish(const cache::UpkeepState& known = {});
  /// What is kept from now on lies in files of its own, so that older ones can be cleared.
  void end_segment() { store_->end_segment(); }
  /// Removes the files in which all is stamped before `stamp`.
  void clear_older(std::int64_t stamp);
  /// Of the device's memory, all of it live from the start.
  std::int64_t device_bytes() const { return device_->bytes(); }
  /// Of this rank's host memory, at most.
  std::int64_t host_bytes() const { return host_bytes_; }
  /// Whether anything more can be kept.
  bool has_room() const { return keeps_ && !full_; }
  /// The hidden states of a sample that are read now, [T, hidden] in the compute dtype; empty where there are none.
  HostBytes known_states(const Sample& sample) const;
  /// Copies the features of these samples, made in evaluation mode after step `step`, and writes them.
  void keep_after(std::int64_t step, std::span<const model::StreamSample> samples, const at::Tensor& features);
  /// What all ranks' caches did since it was last asked. Collective. After step `step`, so many passes over the data.
  report::CacheUseRecord use(std::int64_t step, double epoch);
  /// What the samples of a step took, for what features save.
  void took(const FeatureTimes& times) { use_.took(times); }

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
  std::int64_t pictures_of(std::int64_t index) const override { return source_.pictures_of(index); }
  std::vector<std::string> datasets() const override { return source_.datasets(); }
  std::int64_t dataset_of(std::int64_t index) const override { return source_.dataset_of(index); }
  std::vector<double> dataset_weights() const override { return source_.dataset_weights(); }
  std::int64_t episode_index_of(std::int64_t index) const override { return source_.episode_index_of(index); }
  data::SampleColumn column(const std::string& name) const override { return source_.column(name); }
  const std::vector<std::int64_t>& training() const override { return source_.training(); }
  const std::vector<std::int64_t>& held_out() const override { return source_.held_out(); }
  std::uint64_t hash() const override { return source_.hash(); }

  const cache::Store& store() const { return *store_; }

 private:
  struct Staged {
    cache::RecordKey key;
    std::vector<std::byte> features;
  };
  void make_tiers(std::int64_t features, const Device& device, std::int64_t budget);
  void make_block(std::int64_t bytes, const Device& device, std::int64_t budget);
  void warn_of_room() const;
  void allow_appends();
  std::int64_t rows_of(const Sample& sample) const;
  std::optional<HostBytes> read(const Sample& sample, std::optional<std::uint64_t> next,
                                bool* from_memory = nullptr) const;
  std::optional<HostBytes> read_from_disk(const cache::RecordKey& key, bool to_upload) const;
  Sample load_known(std::int64_t index, std::int64_t resolution, std::optional<std::uint64_t> next) const;
  std::uint64_t next_read(std::uint64_t position) const;
  std::vector<std::byte> payload_of(const std::byte* features, std::uint32_t rows);
  bool is_wanted(const Sample& sample) const;
  void keep_on_device(const model::StreamSample& item);
  void stage(std::span<const model::StreamSample> samples, const at::Tensor& features, std::int64_t stamp,
             bool in_step);
  void stop_keeping(const std::string& why);

  const data::SampleSource& source_;
  ddp::Communicator& communicator_;
  Config config_;
  model::Features features_;
  bool ages_;
  std::int64_t width_, host_bytes_ = 0;
  cache::Kept made_as_, kept_;  ///< the compute dtype, and what lies on the disk
  FeatureSchedule schedule_;
  std::unique_ptr<cache::Store> store_;
  std::unique_ptr<cache::HostPool> pinned_;  ///< what memory_ keeps lies there; null: in ordinary memory
  std::unique_ptr<cache::MemoryTier> memory_;
  std::unique_ptr<DeviceTier> device_;
  std::span<const model::StreamSample> shown_;  ///< of the micro-batch that is run
  std::vector<Staged> staged_;
  std::atomic<std::int64_t> step_ = 0;
  std::uint64_t all_bytes_ = 0;  ///< of all training samples' features, on disk
  mutable FeatureUse use_;       ///< loads are counted too
  cache::Int8Error int8_error_;  ///< of what was kept since use()
  bool keeps_ = true, full_ = false, said_full_ = false;
};

}  // namespace plimsoll::train
