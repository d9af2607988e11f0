#include "train/feature_cache.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "core/bytes.h"
#include "core/error.h"
#include "ddp/handshake.h"
#include "train/model_files.h"
#include "train/options.h"

namespace plimsoll::train {
namespace {

constexpr const char* kVersion = "1";  // of how features are made: another number where that changes

void refuse_what_is_not_exact(const Config& config, const model::VlaModel& model) {
  if (model.vision_blocks() > 0)
    fail(ExitCode::kUsage,
         "cache.mode = \"prefix\" needs a vision tower without adapters, and lora.targets = \"{}\" puts some there; "
         "change it, or set cache.mode = \"off\"",
         config.lora.targets);
  if (turns(config, "resolution"))
    fail(ExitCode::kUsage,
         "cache.mode = \"{}\" needs pictures of one resolution, and memory.knobs names \"resolution\"; take it out, or "
         "set cache.mode = \"off\"",
         config.cache.mode);
}

// Bytes that may be added to the folder, by all ranks together.
std::uint64_t room_on_disk(const Config& config, const cache::Store& store) {
  const Setting& setting = config.cache.disk_bytes;
  if (!setting.is("auto")) {
    const auto bytes = static_cast<std::uint64_t>(
        setting.is_string() ? parse_bytes(setting.as_string(), "cache.disk_bytes") : setting.as_integer());
    return bytes - std::min(bytes, store.bytes());
  }
  std::error_code error;
  const auto space = std::filesystem::space(store.folder(), error);
  return error ? 0 : space.available / 10 * 9;
}

std::string writer_name(int rank) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return fmt::format("rank{}-{}-{}", rank, std::chrono::duration_cast<std::chrono::milliseconds>(now).count(),
                     ::getpid());
}

}  // namespace

cache::Fingerprint prefix_fingerprint(const Config& config, std::uint64_t dataset) {
  cache::Fingerprint fingerprint;
  fingerprint.add("features", "vision tower and merger");
  fingerprint.add("version", kVersion);
  fingerprint.add("model files", fmt::format("{:016x}", hash_of_model_files(config.model.path)));
  fingerprint.add("dtype", config.model.dtype);
  fingerprint.add("dataset", fmt::format("{:016x}", dataset));
  fingerprint.add("resolution", std::to_string(config.data.resolution));
  return fingerprint;
}

PrefixCache::PrefixCache(const Config& config, const model::VlaModel& model, const data::SampleSource& source,
                         ddp::Communicator& communicator)
    : source_(source),
      width_(model.packing_rules(0, false).hidden),
      kept_(config.model.dtype == "fp32" ? cache::Kept::kF32 : cache::Kept::kBf16),
      appended_(static_cast<std::size_t>(source.size()), false) {
  refuse_what_is_not_exact(config, model);
  cache::StoreOptions options;
  options.dir = config.cache.dir;
  options.samples = source.size();
  options.writer = writer_name(communicator.rank());
  store_ = std::make_unique<cache::Store>(options, prefix_fingerprint(config, source.hash()));
  store_->set_most_appended(room_on_disk(config, *store_) / static_cast<std::uint64_t>(communicator.world()));
  for (const std::string& refused : store_->findings().refused) spdlog::warn("feature cache: {}", refused);
  if (communicator.rank() == 0)
    spdlog::info("feature cache: {} of {} samples in {}", store_->size(), source.size(), store_->folder().string());
}

PrefixCache::~PrefixCache() = default;

SampleShape PrefixCache::shape_at(std::int64_t index, std::int64_t resolution) const {
  return source_.shape_at(index, resolution);
}

// Pictures are decoded only where their features are not at hand.
Sample PrefixCache::load_at(std::int64_t index, std::int64_t resolution) const {
  const auto key = store_->find(index);
  if (key && key->kept == kept_ && key->width == width_) {
    Sample sample = source_.load_without_pixels(index, resolution);
    std::vector<std::byte> features(cache::payload_bytes(*key));
    if (key->rows == sample.vlm.feature_rows() && store_->read(*key, features)) {
      ++read_;
      sample.vlm.image_features = std::move(features);
      return sample;
    }
  }
  Sample sample = source_.load_at(index, resolution);
  if (!sample.vlm.image_grid_thw.empty()) ++missed_;
  return sample;
}

void PrefixCache::stage(std::span<const model::StreamSample> samples, const at::Tensor& features) {
  const at::Tensor on_host = features.device().is_cpu() ? features : features.cpu();
  const auto* from = static_cast<const std::byte*>(on_host.const_data_ptr());
  const auto row = static_cast<std::size_t>(width_) * c10::elementSize(on_host.scalar_type());
  for (const auto& item : samples) {
    const Sample& sample = *item.sample;
    if (!sample.vlm.image_features.empty()) continue;
    const auto rows = sample.vlm.feature_rows();
    const std::size_t bytes = static_cast<std::size_t>(rows) * row;
    if (rows > 0 && !appended_.at(static_cast<std::size_t>(sample.index)))
      staged_.push_back({{sample.index, 0, static_cast<std::uint32_t>(rows), static_cast<std::uint32_t>(width_), kept_},
                         {from, from + bytes}});
    from += bytes;
  }
}

// A cache that cannot be written is a slower run, no failed one.
void PrefixCache::commit() {
  try {
    for (const Staged& one : staged_) {
      if (!keeps_ || !store_->append(one.key, one.features)) break;
      appended_[static_cast<std::size_t>(one.key.sample)] = true;
      ++made_;
    }
  } catch (const Error& error) {
    keeps_ = false;
    spdlog::warn("feature cache: {}; the run goes on, and keeps no more features", error.what());
  }
  staged_.clear();
}

void PrefixCache::discard() { staged_.clear(); }

void PrefixCache::publish() {
  store_->publish();
  store_->refresh();
}

std::string PrefixCache::line() {
  const std::int64_t read = read_.exchange(0), missed = missed_.exchange(0), made = std::exchange(made_, 0);
  return fmt::format("feature cache: {} of {} samples loaded came with their features, {} were kept; {} on disk", read,
                     read + missed, made, format_bytes(static_cast<std::int64_t>(store_->bytes())));
}

}  // namespace plimsoll::train
