#include "train/feature_cache.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <filesystem>
#include <utility>

#include "core/bytes.h"
#include "core/error.h"
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

// Bytes that may be added to the folder, by all ranks together. A tenth of the disk is left to others: checkpoints too
// want a place.
std::uint64_t room_on_disk(const Setting& disk_bytes, const cache::Store& store) {
  if (!disk_bytes.is("auto")) {
    const auto bytes = static_cast<std::uint64_t>(
        disk_bytes.is_string() ? parse_bytes(disk_bytes.as_string(), "cache.disk_bytes") : disk_bytes.as_integer());
    return bytes - std::min(bytes, store.bytes());
  }
  std::error_code error;
  const auto space = std::filesystem::space(store.folder(), error);
  return error || space.available < space.capacity / 10 ? 0 : space.available - space.capacity / 10;
}

// Later processes have later names: of two records of one sample theirs counts.
std::string writer_name(int rank) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return fmt::format("{:013}-rank{}-{}", std::chrono::duration_cast<std::chrono::milliseconds>(now).count(), rank,
                     ::getpid());
}

}  // namespace

cache::Fingerprint prefix_fingerprint(const Config& config, std::uint64_t pictures, std::uint64_t model_files,
                                      const std::string& device) {
  cache::Fingerprint fingerprint;
  fingerprint.add("features", "vision tower and merger");
  fingerprint.add("version", kVersion);
  fingerprint.add("model files", fmt::format("{:016x}", model_files));
  fingerprint.add("dtype", config.model.dtype);
  fingerprint.add("device", device);
  fingerprint.add("pictures", fmt::format("{:016x}", pictures));
  fingerprint.add("resolution", std::to_string(config.data.resolution));
  return fingerprint;
}

PrefixCache::PrefixCache(const Config& config, const model::VlaModel& model, const data::SampleSource& source,
                         const ddp::Communicator& communicator, std::uint64_t model_files, at::Device device)
    : source_(source),
      disk_bytes_(config.cache.disk_bytes),
      world_(communicator.world()),
      width_(model.packing_rules(0, false).hidden),
      kept_(config.model.dtype == "fp32" ? cache::Kept::kF32 : cache::Kept::kBf16) {
  refuse_what_is_not_exact(config, model);
  open(config, communicator,
       prefix_fingerprint(config, source.pictures_hash(), model_files, device.is_cpu() ? "cpu" : "cuda"));
  for (const std::string& refused : store_->findings().refused) spdlog::warn("feature cache: {}", refused);
  if (communicator.rank() == 0)
    spdlog::info("feature cache: {} of {} samples in {}", store_->size(), source.size(), store_->folder().string());
}

PrefixCache::~PrefixCache() {
  try {
    store_->sync();
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch): what is not on the disk is made again
  }
}

void PrefixCache::open(const Config& config, const ddp::Communicator& communicator,
                       const cache::Fingerprint& fingerprint) {
  cache::StoreOptions options;
  options.dir = config.cache.dir;
  options.samples = source_.size();
  options.writer = writer_name(communicator.rank());
  const bool there = std::filesystem::is_directory(options.dir);
  try {
    store_ = std::make_unique<cache::Store>(options, fingerprint);
  } catch (const Error& error) {
    if (!there) throw;  // a new folder that cannot be made is a mistake in cache.dir
    options.writer.clear();
    store_ = std::make_unique<cache::Store>(options, fingerprint);
    stop_keeping(error.what());
  }
  allow_appends();
}

void PrefixCache::allow_appends() {
  store_->set_most_appended(room_on_disk(disk_bytes_, *store_) / static_cast<std::uint64_t>(world_));
}

void PrefixCache::stop_keeping(const std::string& why) {
  if (keeps_) spdlog::warn("feature cache: {}; the run goes on, and keeps no more features", why);
  keeps_ = false;
}

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

bool PrefixCache::is_wanted(const Sample& sample) const {
  return sample.vlm.image_features.empty() && sample.vlm.feature_rows() > 0 && !store_->is_appended(sample.index) &&
         !store_->find(sample.index);
}

void PrefixCache::stage(std::span<const model::StreamSample> samples, const at::Tensor& features) {
  const bool wanted =
      std::any_of(samples.begin(), samples.end(), [&](const auto& item) { return is_wanted(*item.sample); });
  if (!keeps_ || full_ || !wanted) return;
  const at::Tensor on_host = features.device().is_cpu() ? features : features.cpu();
  const auto* from = static_cast<const std::byte*>(on_host.const_data_ptr());
  const auto row = static_cast<std::size_t>(width_) * c10::elementSize(on_host.scalar_type());
  for (const auto& item : samples) {
    const Sample& sample = *item.sample;
    if (!sample.vlm.image_features.empty()) continue;
    const auto rows = sample.vlm.feature_rows();
    const std::size_t bytes = static_cast<std::size_t>(rows) * row;
    if (is_wanted(sample))
      staged_.push_back({{sample.index, 0, static_cast<std::uint32_t>(rows), static_cast<std::uint32_t>(width_), kept_},
                         {from, from + bytes}});
    from += bytes;
  }
}

// A cache that cannot be written is a slower run, no failed one.
void PrefixCache::commit() {
  try {
    for (const Staged& one : staged_) {
      if (store_->is_appended(one.key.sample)) continue;  // drawn twice where one epoch ends and the next begins
      full_ = full_ || !store_->append(one.key, one.features);
      if (full_) break;
      ++made_;
    }
    if (full_ && !std::exchange(said_full_, true))
      spdlog::warn(
          "feature cache: {} holds {} and may take no more (cache.disk_bytes = {}); what is not in it is made "
          "in every epoch",
          store_->folder().string(), format_bytes(static_cast<std::int64_t>(store_->bytes())),
          disk_bytes_.is_string() ? disk_bytes_.as_string() : std::to_string(disk_bytes_.as_integer()));
  } catch (const Error& error) {
    stop_keeping(error.what());
  }
  staged_.clear();
}

void PrefixCache::discard() { staged_.clear(); }

void PrefixCache::publish() {
  try {
    store_->publish();
    store_->refresh();
    allow_appends();
    full_ = false;
  } catch (const std::exception& error) {
    stop_keeping(error.what());
  }
}

std::string PrefixCache::line() {
  const std::int64_t read = read_.exchange(0), missed = missed_.exchange(0), made = std::exchange(made_, 0);
  return fmt::format("feature cache: {} of {} samples loaded came with their features, {} were kept; {} on disk", read,
                     read + missed, made, format_bytes(static_cast<std::int64_t>(store_->bytes())));
}

}  // namespace plimsoll::train
