#include "train/feature_cache.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <filesystem>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "core/bytes.h"
#include "core/error.h"
#include "train/options.h"

namespace plimsoll::train {
namespace {

constexpr std::uint64_t kUnknown = std::numeric_limits<std::uint64_t>::max();  // when features are needed again
constexpr const char* kVersion = "1";  // of how features are made: another number where that changes

void refuse_what_would_not_hold(const Config& config, const model::VlaModel& model) {
  const auto& mode = config.cache.mode;
  if (mode == "prefix" && model.vision_blocks() > 0)
    fail(ExitCode::kUsage,
         "cache.mode = \"prefix\" needs a vision tower without adapters, and lora.targets = \"{}\" puts some there; "
         "change it, or set cache.mode = \"off\"",
         config.lora.targets);
  if (turns(config, "resolution"))
    fail(ExitCode::kUsage,
         "cache.mode = \"{}\" needs pictures of one resolution, and memory.knobs names \"resolution\"; take it out, or "
         "set cache.mode = \"off\"",
         mode);
  if (mode == "hybrid" && config.train.stage == 2 && config.cache.live_fraction == 0 && !config.cache.frozen_adapters)
    fail(ExitCode::kUsage,
         "cache.live_fraction = 0 in stage 2: the adapters would learn nothing, as cached samples give them no gradient; "
         "give more than 0, or set cache.frozen_adapters = true if that is what you want");
}

// What a size says; nothing for "auto".
std::optional<std::uint64_t> bytes_of(const Setting& size) {
  if (size.is("auto")) return std::nullopt;
  return static_cast<std::uint64_t>(size.is_string() ? parse_bytes(size.as_string(), "cache.disk_bytes")
                                                     : size.as_integer());
}

std::uint64_t host_bytes(const cache::CacheConfig& config) {
  const Setting& size = config.host_bytes;
  const auto bytes = size.is_string() ? parse_bytes(size.as_string(), "cache.host_bytes") : size.as_integer();
  if (bytes > machine_memory())
    fail(ExitCode::kUsage, "cache.host_bytes = {}: this machine has {}; give less", format_bytes(bytes),
         format_bytes(machine_memory()));
  return static_cast<std::uint64_t>(bytes);
}

// A tenth of the disk is left to others: checkpoints too want a place.
std::uint64_t free_on_disk(const std::filesystem::path& folder) {
  std::error_code error;
  const auto space = std::filesystem::space(folder, error);
  return error || space.available < space.capacity / 10 ? 0 : space.available - space.capacity / 10;
}

// Bytes that may be added to the folder, by all ranks together.
std::uint64_t room_on_disk(const Setting& disk_bytes, const cache::Store& store) {
  const auto bytes = bytes_of(disk_bytes);
  return bytes ? *bytes - std::min(*bytes, store.bytes()) : free_on_disk(store.folder());
}

std::string text_of(const Setting& size) {
  return size.is_string() ? size.as_string() : std::to_string(size.as_integer());
}

// Later processes have later names: of two records of one sample theirs counts.
std::string writer_name(int rank) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return fmt::format("{:013}-rank{}-{}", std::chrono::duration_cast<std::chrono::milliseconds>(now).count(), rank,
                     ::getpid());
}

}  // namespace

cache::Fingerprint feature_fingerprint(const Config& config, const FeatureOrigin& origin) {
  const bool states = config.cache.mode == "hybrid";
  cache::Fingerprint fingerprint;
  fingerprint.add("features", states ? "last hidden states of the language model" : "vision tower and merger");
  fingerprint.add("version", kVersion);
  fingerprint.add("model files", fmt::format("{:016x}", origin.model_files));
  fingerprint.add("dtype", config.model.dtype);
  fingerprint.add("device", origin.device);
  fingerprint.add(states ? "dataset" : "pictures", fmt::format("{:016x}", origin.pictures));
  fingerprint.add("resolution", std::to_string(config.data.resolution));
  if (states && config.cache.keep != "exact") fingerprint.add("kept", config.cache.keep);
  if (!origin.run.empty()) fingerprint.add("run", origin.run);
  return fingerprint;
}

std::uint64_t free_for_features(const cache::CacheConfig& config) {
  if (const auto bytes = bytes_of(config.disk_bytes)) return *bytes;
  std::filesystem::path folder = std::filesystem::absolute(config.dir);
  std::error_code error;
  while (folder.has_relative_path() && !std::filesystem::exists(folder, error)) folder = folder.parent_path();
  return free_on_disk(folder);
}

CacheChoice choose_cache_mode(const Config& config, const model::VlaModel& model, const data::SampleSource& source,
                              std::int64_t steps, std::uint64_t free_bytes) {
  if (model.vision_blocks() > 0) return {"off", "adapters in the vision tower change what it makes of images"};
  if (turns(config, "resolution")) return {"off", "memory.knobs names \"resolution\", which changes the images"};
  const auto samples = std::ssize(source.training());
  if (steps * config.batch.effective <= samples) return {"off", "no sample is drawn more than once"};
  const auto row = static_cast<std::uint64_t>(model.packing_rules(0, false).hidden) *
                   (config.model.dtype == "fp32" ? sizeof(float) : sizeof(std::uint16_t));
  std::uint64_t bytes = 0;
  for (const std::int64_t index : source.training()) {
    const auto rows = static_cast<std::uint64_t>(source.shape_at(index, config.data.resolution).patches / 4);
    if (rows > 0) bytes += rows * row + cache::kRecordHeader;
  }
  if (bytes == 0) return {"off", "the samples have no images"};
  const std::string size = format_bytes(static_cast<std::int64_t>(bytes));
  if (bytes > free_bytes)
    return {"off", fmt::format("the images' features take {} and the disk of cache.dir has {} for them", size,
                               format_bytes(static_cast<std::int64_t>(free_bytes)))};
  return {"prefix", fmt::format("the images' features take {} on disk", size)};
}

FeatureCache::FeatureCache(const Config& config, const model::VlaModel& model, const data::SampleSource& source,
                           const ddp::Communicator& communicator)
    : source_(source),
      communicator_(communicator),
      config_(config),
      features_(config.cache.mode == "hybrid" ? model::Features::kStates : model::Features::kImages),
      ages_(features_ == model::Features::kStates && config.train.stage == 2),
      batch_(config.batch.effective),
      width_(model.packing_rules(0, false).hidden),
      made_as_(config.model.dtype == "fp32" ? cache::Kept::kF32 : cache::Kept::kBf16),
      kept_(features_ == model::Features::kStates && config.cache.keep == "int8" ? cache::Kept::kInt8 : made_as_),
      memory_(std::make_unique<cache::MemoryTier>(host_bytes(config.cache))),
      stream_(source.training(), static_cast<std::uint64_t>(config.run.seed)),
      live_([this](std::uint64_t position) { return stream_.at(position); }, source.size(), batch_,
            static_cast<std::int64_t>(std::llround(config.cache.live_fraction * cache::kWholeFraction))) {
  refuse_what_would_not_hold(config, model);
}

FeatureCache::~FeatureCache() {
  try {
    if (store_) store_->sync();
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch): what is not on the disk is made again
  }
}

void FeatureCache::open(const FeatureOrigin& origin, std::int64_t published, std::int64_t oldest) {
  const cache::Fingerprint fingerprint = feature_fingerprint(config_, origin);
  cache::StoreOptions options;
  options.dir = config_.cache.dir;
  options.samples = source_.size();
  options.writer = writer_name(communicator_.rank());
  if (ages_) options.latest_stamp = cache::stamp_after_step(published);
  options.oldest_stamp = oldest;
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
  for (const std::string& refused : store_->findings().refused) spdlog::warn("feature cache: {}", refused);
  if (communicator_.rank() == 0)
    spdlog::info("feature cache: {} of {} samples in {}", store_->size(), source_.size(), store_->folder().string());
}

std::vector<std::uint64_t> FeatureCache::share_of(std::int64_t step) const {
  const int rank = communicator_.rank(), world = communicator_.world();
  const std::scoped_lock lock(live_mutex_);
  if (ages_) return cache::dealt_share(step, batch_, live_.of_step(step), rank, world);
  const auto [begin, end] = data::share_of_step(step, batch_, rank, world);
  std::vector<std::uint64_t> positions(end - begin);
  std::iota(positions.begin(), positions.end(), begin);
  return positions;
}

void FeatureCache::allow_appends() {
  store_->set_most_appended(room_on_disk(config_.cache.disk_bytes, *store_) /
                            static_cast<std::uint64_t>(communicator_.world()));
}

void FeatureCache::stop_keeping(const std::string& why) {
  if (keeps_) spdlog::warn("feature cache: {}; the run goes on, and keeps no more features", why);
  keeps_ = false;
}

SampleShape FeatureCache::shape_at(std::int64_t index, std::int64_t resolution) const {
  return source_.shape_at(index, resolution);
}

std::int64_t FeatureCache::rows_of(const Sample& sample) const {
  return features_ == model::Features::kStates ? std::ssize(sample.vlm.input_ids) : sample.vlm.feature_rows();
}

// In the compute dtype; nothing where they are not known, or not for such a sample. `next`: when they are needed again.
std::optional<std::vector<std::byte>> FeatureCache::read(const Sample& sample, std::uint64_t next) const {
  const auto key = store_->find(sample.index);
  if (!key || key->kept != kept_ || key->width != width_ || key->rows != rows_of(sample)) return std::nullopt;
  cache::Payload payload = memory_->find(key->sample, key->stamp, next);
  if (!payload) {
    auto read = std::make_shared<std::vector<std::byte>>(cache::payload_bytes(*key));
    if (!store_->read(*key, *read)) return std::nullopt;
    payload = std::move(read);
    memory_->keep(key->sample, key->stamp, payload, next);
  }
  return kept_ == cache::Kept::kInt8 ? cache::decode_int8(*payload, key->rows, key->width, made_as_) : *payload;
}

// The position at which the sample is drawn in the epoch after that of `position`.
std::uint64_t FeatureCache::next_draw(std::uint64_t position, std::int64_t index) const {
  const auto length = static_cast<std::uint64_t>(stream_.epoch_length());
  const std::uint64_t epoch = position / length + 1;
  auto& places = places_[epoch];
  if (places.empty()) {
    places.resize(static_cast<std::size_t>(source_.size()));
    for (std::uint64_t i = 0; i < length; ++i)
      places[static_cast<std::size_t>(stream_.at(epoch * length + i))] = static_cast<std::uint32_t>(i);
  }
  const std::uint64_t next = epoch * length + places[static_cast<std::size_t>(index)];
  while (places_.size() > 2) places_.erase(places_.begin());
  return next;
}

std::vector<std::byte> FeatureCache::payload_of(const std::byte* features, std::uint32_t rows) {
  const auto width = static_cast<std::uint32_t>(width_);
  const std::span<const std::byte> values(features, cache::payload_bytes({0, 0, rows, width, made_as_}));
  if (kept_ == cache::Kept::kInt8) return cache::encode_int8(values, rows, width, made_as_, int8_error_);
  return {values.begin(), values.end()};
}

// Pictures are decoded only where their features are not at hand.
Sample FeatureCache::load_known(std::int64_t index, std::int64_t resolution, std::uint64_t next) const {
  if (store_->find(index)) {
    Sample sample = source_.load_without_pixels(index, resolution);
    if (auto features = read(sample, next)) {
      ++read_;
      const bool states = features_ == model::Features::kStates;
      (states ? sample.vlm.hidden_states : sample.vlm.image_features) = std::move(*features);
      return sample;
    }
  }
  Sample sample = source_.load_at(index, resolution);
  if (rows_of(sample) > 0) ++missed_;
  return sample;
}

Sample FeatureCache::load_at(std::int64_t index, std::int64_t resolution) const {
  return load_known(index, resolution, kUnknown);
}

Sample FeatureCache::load_drawn(std::uint64_t position, std::int64_t index, std::int64_t resolution) const {
  std::uint64_t next = 0;
  {
    const std::scoped_lock lock(live_mutex_);
    if (ages_ && live_.at(position)) return source_.load_at(index, resolution);
    if (memory_->keeps()) next = next_draw(position, index);
  }
  return load_known(index, resolution, next);
}

// What ages is kept whenever it was made anew.
bool FeatureCache::is_wanted(const Sample& sample) const {
  const auto& there = features_ == model::Features::kStates ? sample.vlm.hidden_states : sample.vlm.image_features;
  return there.empty() && rows_of(sample) > 0 &&
         (ages_ || (!store_->is_appended(sample.index) && !store_->find(sample.index)));
}

model::Shown FeatureCache::shown(std::span<const model::StreamSample> samples) {
  const auto stage_them = [this, samples](const at::Tensor& features) {
    stage(samples, features, ages_ ? cache::stamp_in_step(step_) : 0);
  };
  model::Shown shown;
  (features_ == model::Features::kStates ? shown.hidden_states : shown.image_features) = stage_them;
  return shown;
}

void FeatureCache::stage(std::span<const model::StreamSample> samples, const at::Tensor& features,
                         std::int64_t stamp) {
  const bool wanted =
      std::any_of(samples.begin(), samples.end(), [&](const auto& item) { return is_wanted(*item.sample); });
  if (!keeps_ || full_ || !wanted) return;
  const at::Tensor on_host = features.device().is_cpu() ? features : features.cpu();
  const auto* from = static_cast<const std::byte*>(on_host.const_data_ptr());
  const auto row = static_cast<std::size_t>(width_) * c10::elementSize(on_host.scalar_type());
  for (const auto& item : samples) {
    const Sample& sample = *item.sample;
    if (features_ == model::Features::kImages && !sample.vlm.image_features.empty()) continue;
    const auto rows = static_cast<std::uint32_t>(rows_of(sample));
    if (is_wanted(sample))
      staged_.push_back(
          {{sample.index, stamp, rows, static_cast<std::uint32_t>(width_), kept_}, payload_of(from, rows)});
    from += rows * row;
  }
}

std::vector<std::byte> FeatureCache::known_states(const Sample& sample) const {
  return read(sample, kUnknown).value_or(std::vector<std::byte>());
}

void FeatureCache::keep_after(std::int64_t step, std::span<const model::StreamSample> samples,
                              const at::Tensor& features) {
  stage(samples, features, ages_ ? cache::stamp_after_step(step) : 0);
  commit();
}

// A cache that cannot be written is a slower run, no failed one.
void FeatureCache::commit() {
  try {
    for (const Staged& one : staged_) {
      if (!ages_ && store_->is_appended(one.key.sample)) continue;  // drawn twice where one epoch ends and the next begins
      full_ = full_ || !store_->append(one.key, one.features);
      if (full_) break;
      ++made_;
    }
    if (full_ && !std::exchange(said_full_, true))
      spdlog::warn(
          "feature cache: {} holds {} and may take no more (cache.disk_bytes = {}); what is not in it is made "
          "in every epoch",
          store_->folder().string(), format_bytes(static_cast<std::int64_t>(store_->bytes())),
          text_of(config_.cache.disk_bytes));
  } catch (const Error& error) {
    stop_keeping(error.what());
  }
  staged_.clear();
}

void FeatureCache::discard() { staged_.clear(); }

void FeatureCache::publish(std::int64_t step, std::int64_t oldest) {
  try {
    store_->publish(ages_ ? cache::stamp_after_step(step) : 0, oldest);
    allow_appends();
    full_ = false;
  } catch (const std::exception& error) {
    stop_keeping(error.what());
  }
}

std::string FeatureCache::line() {
  const std::int64_t read = read_.exchange(0), missed = missed_.exchange(0), made = std::exchange(made_, 0);
  const auto error = std::exchange(int8_error_, {});
  std::string text =
      fmt::format("feature cache: {} of {} samples loaded came with their features, {} were kept; {} on disk", read,
                  read + missed, made, format_bytes(static_cast<std::int64_t>(store_->bytes())));
  if (memory_->hits() + memory_->misses() > 0)
    text += fmt::format(", {} in memory, which has served {} of {}",
                        format_bytes(static_cast<std::int64_t>(memory_->bytes())), memory_->hits(),
                        memory_->hits() + memory_->misses());
  if (error.squared_values > 0) text += fmt::format("; as bytes, with an error of {:.4f}", error.relative());
  return text;
}

}  // namespace plimsoll::train
