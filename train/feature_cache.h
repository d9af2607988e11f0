#pragma once
// The feature cache in a run (cache/ is what it stands on): samples come with their image features where these are
// known, and features that a step had to make are kept for the next epoch.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cache/store.h"
#include "data/sample_source.h"
#include "ddp/communicator.h"
#include "model/vla.h"
#include "train/config.h"
#include "train/step.h"

namespace plimsoll::train {

/// `cache.mode` = "prefix". One per rank. Features are those of vision tower and merger, exact in the model's compute
/// dtype.
class PrefixCache final : public FeatureKeeper, public data::SampleSource {
 public:
  /// Opens the folder of the run's fingerprint (prefix_fingerprint; `model_files` and `device` as there). `source`
  /// outlives it. A folder that cannot be written is read, and said once. Throws Error(kUsage) for settings under which
  /// features would not stay exact (an adapter in the vision tower, resolution among memory.knobs), Error(kData) when
  /// the folder can neither be made nor read.
  PrefixCache(const Config& config, const model::VlaModel& model, const data::SampleSource& source,
              const ddp::Communicator& communicator, std::uint64_t model_files, at::Device device);
  ~PrefixCache() override;

  // What a step makes. Its thread only.

  /// Copies the features of the samples that came without theirs, of one micro-batch.
  void stage(std::span<const model::StreamSample> samples, const at::Tensor& features) override;
  /// Writes what was staged. A disk that refuses is said once, and nothing more is kept then.
  void commit() override;
  void discard() override;

  /// At the end of an epoch, on every rank: what all ranks have kept so far is read from here on. A folder that cannot
  /// be read any more is said once.
  void publish();
  /// "1,203 of 1,204 samples came with their features, 1 was made and kept; 2.3 GiB of features on disk": since it was
  /// last asked.
  std::string line();

  // The source that the loader reads from: any thread. load() gives features in place of pixels where it can.

  std::int64_t size() const override { return source_.size(); }
  data::SampleDims dims() const override { return source_.dims(); }
  SampleShape shape_of(std::int64_t index) const override { return source_.shape_of(index); }
  SampleShape shape_at(std::int64_t index, std::int64_t resolution) const override;
  Sample load(std::int64_t index) const override { return load_at(index, source_.own_resolution()); }
  Sample load_at(std::int64_t index, std::int64_t resolution) const override;
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
  void open(const Config& config, const ddp::Communicator& communicator, const cache::Fingerprint& fingerprint);
  void allow_appends();
  bool is_wanted(const Sample& sample) const;
  void stop_keeping(const std::string& why);

  const data::SampleSource& source_;
  Setting disk_bytes_;
  int world_;
  std::int64_t width_;
  cache::Kept kept_;
  std::unique_ptr<cache::Store> store_;
  std::vector<Staged> staged_;
  mutable std::atomic<std::int64_t> read_ = 0, missed_ = 0;
  std::int64_t made_ = 0;
  bool keeps_ = true, full_ = false, said_full_ = false;
};

/// What cached image features depend on. `pictures`: SampleSource::pictures_hash(); `model_files`:
/// hash_of_model_files(); `device`: "cpu" or "cuda", whose kernels round differently.
cache::Fingerprint prefix_fingerprint(const Config& config, std::uint64_t pictures, std::uint64_t model_files,
                                      const std::string& device);

}  // namespace plimsoll::train
