#include "train/feature_cache.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "cache/layout.h"
#include "cache/tiers.h"
#include "core/bytes.h"
#include "core/error.h"
#include "ddp/handshake.h"
#include "train/options.h"

namespace plimsoll::train {
namespace {

constexpr std::size_t kPinnedPiece = std::size_t{64} << 20;
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
         "cache.live_fraction = 0 in stage 2: the adapters would learn nothing, as cached samples give them no "
         "gradient; give more than 0, or set cache.frozen_adapters = true if that is what you want");
  if (mode == "hybrid" && config.train.stage == 1 && config.cache.keep != "exact")
    fail(ExitCode::kUsage,
         "cache.keep = \"{}\" in stage 1: there features stay exact, and a run would learn something else from those "
         "that it finds than from those that it makes; set it to \"exact\"",
         config.cache.keep);
}

// A tenth of the disk is left to others: checkpoints too want a place.
std::uint64_t free_on_disk(const std::filesystem::path& folder) {
  std::error_code error;
  const auto space = std::filesystem::space(folder, error);
  return error || space.available < space.capacity / 10 ? 0 : space.available - space.capacity / 10;
}

// Bytes that may be added to the folder, by all ranks together.
std::uint64_t room_on_disk(const Setting& disk_bytes, const cache::Store& store) {
  const auto most = bytes_or_auto(disk_bytes, "cache.disk_bytes");
  if (!most) return free_on_disk(store.folder());
  const auto bytes = static_cast<std::uint64_t>(*most);
  return bytes - std::min(bytes, store.bytes());
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
  fingerprint.add("pictures", fmt::format("{:016x}", origin.pictures));
  if (states) fingerprint.add("dataset", fmt::format("{:016x}", origin.samples));
  fingerprint.add("resolution", std::to_string(config.data.resolution));
  if (states && config.cache.keep != "exact") fingerprint.add("kept", config.cache.keep);
  if (!origin.run.empty()) fingerprint.add("run", origin.run);
  return fingerprint;
}

std::uint64_t room_for_features(const cache::CacheConfig& config, const cache::Fingerprint& fingerprint) {
  std::error_code error;
  std::uint64_t there = 0;
  const auto folder = std::filesystem::absolute(config.dir) / cache::folder_name(fingerprint.hash());
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const auto size = entry.file_size(error);
    if (!error) there += size;
  }
  auto above = folder;
  while (above.has_relative_path() && !std::filesystem::exists(above, error)) above = above.parent_path();
  const std::uint64_t all = there + free_on_disk(above);
  const auto most = bytes_or_auto(config.disk_bytes, "cache.disk_bytes");
  return most ? std::min(all, static_cast<std::uint64_t>(*most)) : all;
}

bool keeps_features(const Config& config) {
  const bool all_live = config.cache.mode == "hybrid" && config.train.stage == 2 && config.cache.live_fraction == 1;
  return config.cache.mode != "off" && !all_live;
}

std::uint64_t feature_bytes(const Config& config, const model::VlaModel& model, const data::SampleSource& source,
                            model::Features which, bool on_disk) {
  const auto row = static_cast<std::uint64_t>(model.packing_rules(0, false).hidden) *
                   (config.model.dtype == "fp32" ? sizeof(float) : sizeof(std::uint16_t));
  std::uint64_t bytes = 0;
  for (const std::int64_t index : source.training()) {
    const SampleShape shape = source.shape_at(index, config.data.resolution);
    const std::int64_t rows = which == model::Features::kStates ? shape.tokens : shape.patches / 4;
    if (rows > 0) bytes += static_cast<std::uint64_t>(rows) * row + (on_disk ? cache::kRecordHeader : 0);
  }
  return bytes;
}

CacheChoice choose_cache_mode(const Config& config, const model::VlaModel& model, const data::SampleSource& source,
                              std::int64_t steps, std::uint64_t room) {
  if (model.vision_blocks() > 0) return {"off", "adapters in the vision tower change what it makes of images"};
  if (turns(config, "resolution")) return {"off", "memory.knobs names \"resolution\", which changes the images"};
  if (steps * config.batch.effective <= std::ssize(source.training()))
    return {"off", "no sample is drawn more than once"};
  const std::uint64_t bytes = feature_bytes(config, model, source, model::Features::kImages);
  if (bytes == 0) return {"off", "the samples have no images"};
  const std::string size = format_bytes(static_cast<std::int64_t>(bytes));
  if (bytes > room)
    return {"off", fmt::format("the images' features take {} and the disk of cache.dir has {} for them", size,
                               format_bytes(static_cast<std::int64_t>(room)))};
  return {"prefix", fmt::format("the images' features take {} on disk", size)};
}

FeatureCache::FeatureCache(const Config& config, const model::VlaModel& model, const data::SampleSource& source,
                           ddp::Communicator& communicator, const Device& device, std::int64_t budget)
    : source_(source),
      communicator_(communicator),
      config_(config),
      features_(config.cache.mode == "hybrid" ? model::Features::kStates : model::Features::kImages),
      ages_(features_ == model::Features::kStates && config.train.stage == 2),
      batch_(config.batch.effective),
      width_(model.packing_rules(0, false).hidden),
      made_as_(config.model.dtype == "fp32" ? cache::Kept::kF32 : cache::Kept::kBf16),
      kept_(features_ == model::Features::kStates && config.cache.keep == "int8" ? cache::Kept::kInt8 : made_as_),
      stream_(source.training(), static_cast<std::uint64_t>(config.run.seed)),
      live_([this](std::uint64_t position) { return stream_.at(position); }, source.size(), batch_,
            static_cast<std::int64_t>(std::llround(config.cache.live_fraction * cache::kWholeFraction))) {
  refuse_what_would_not_hold(config, model);
  all_bytes_ = feature_bytes(config, model, source, features_);
  make_tiers(static_cast<std::int64_t>(feature_bytes(config, model, source, features_, false)), device, budget);
}

void FeatureCache::make_tiers(std::int64_t features, const Device& device, std::int64_t budget) {
  const int ranks = communicator_.world();
  const std::int64_t live = device.memory->live();
  const cache::TierRoom room{features, budget, budget - live, available_memory(ranks), device.place.is_cpu()};
  const auto asked = bytes_or_auto(config_.cache.device_bytes, "cache.device_bytes");
  const auto host = bytes_or_auto(config_.cache.host_bytes, "cache.host_bytes");
  if (host.value_or(0) > machine_memory() / ranks)
    fail(ExitCode::kUsage, "cache.host_bytes = {} for each of {} ranks: this machine has {}; give less",
         format_bytes(*host), ranks, format_bytes(machine_memory()));
  auto sizes = cache::choose_tiers(asked, host, room);
  // Candidates are judged by what is live on rank 0: the block is the same on all.
  const std::vector<std::int64_t> mine = {sizes.device};
  for (const auto& theirs : ddp::share_numbers(communicator_, mine))
    sizes.device = std::min(sizes.device, theirs.at(0));
  const at::ScalarType dtype = made_as_ == cache::Kept::kF32 ? at::kFloat : at::kBFloat16;
  std::string trouble;
  try {
    device_ = std::make_unique<DeviceTier>(sizes.device, width_, dtype, device.place);
  } catch (const c10::OutOfMemoryError&) {
    trouble =
        fmt::format("rank {}: cache.device_bytes = {}: the model takes {} of a budget of {} (memory.budget); give less",
                    communicator_.rank(), format_bytes(sizes.device), format_bytes(live), format_bytes(budget));
  }
  for (const auto& text : ddp::share_text(communicator_, trouble)) {
    if (text.empty()) continue;
    if (asked) throw Error(ExitCode::kUsage, text);
    device_ = std::make_unique<DeviceTier>(0, width_, dtype, device.place);
  }
  host_bytes_ = sizes.host;
  memory_ = std::make_unique<cache::MemoryTier>(static_cast<std::uint64_t>(sizes.host));
  if (device.pinned && sizes.host > 0)
    pinned_ = std::make_unique<cache::HostPool>(device.pinned, kPinnedPiece, static_cast<std::size_t>(sizes.host));
  if (communicator_.rank() == 0 && device_->bytes() + sizes.host > 0)
    spdlog::info("feature cache: of {} of features each rank may keep {} on the device and {} in {}host memory",
                 format_bytes(features), format_bytes(device_->bytes()), format_bytes(sizes.host),
                 pinned_ ? "pinned " : "");
}

FeatureCache::~FeatureCache() {
  try {
    if (store_) store_->sync();
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch): what is not on the disk is made again
  }
}

void FeatureCache::open(const FeatureOrigin& origin, const cache::UpkeepState& known) {
  const cache::Fingerprint fingerprint = feature_fingerprint(config_, origin);
  check_shared();
  cache::StoreOptions options;
  options.dir = config_.cache.dir;
  options.samples = source_.size();
  options.writer = writer_name(communicator_.rank());
  if (ages_) options.latest_stamp = known.published;
  if (ages_) options.oldest_stamp = known.oldest;
  if (ages_) options.unfinished_stamp = known.unfinished();
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
  if (ages_ && communicator_.rank() == 0) warn_of_room();
}

// Twice, while a rebuild makes the new beside the old.
void FeatureCache::warn_of_room() const {
  const std::uint64_t room = room_on_disk(config_.cache.disk_bytes, *store_) + store_->bytes();
  if (2 * all_bytes_ <= room) return;
  spdlog::warn(
      "feature cache: the features of all samples take {}, twice that in a rebuild, and there is room for {} "
      "(cache.disk_bytes); samples without features run the whole model, so that another room, or another number of "
      "ranks, will learn something else",
      format_bytes(static_cast<std::int64_t>(all_bytes_)), format_bytes(static_cast<std::int64_t>(room)));
}

// Ranks of other nodes must find what this one writes. Where nobody can write there is nothing to find.
void FeatureCache::check_shared() {
  if (communicator_.world() == 1) return;
  const std::filesystem::path dir = config_.cache.dir;
  const std::string name = ddp::share_text(communicator_, ".shared-" + writer_name(communicator_.rank())).front();
  std::error_code error;
  bool made = false;
  if (communicator_.rank() == 0) {
    std::filesystem::create_directories(dir, error);
    made = std::ofstream(dir / name).put('1').flush().good();
  }
  const std::vector<std::int64_t> said = {made ? 1 : 0};
  if (ddp::share_numbers(communicator_, said).front().at(0) == 0) return;
  const std::vector<std::int64_t> seen = {std::filesystem::exists(dir / name, error) ? 1 : 0};
  const auto all = ddp::share_numbers(communicator_, seen);
  if (communicator_.rank() == 0) std::filesystem::remove(dir / name, error);
  for (std::size_t rank = 0; rank < all.size(); ++rank)
    if (all[rank].at(0) == 0)
      fail(ExitCode::kUsage,
           "cache.dir = \"{}\": rank {} does not find there what rank 0 writes; give a folder that all nodes share, or "
           "set cache.mode = \"off\"",
           config_.cache.dir, rank);
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

// In the compute dtype; nothing where they are not known, or not for such a sample. `next`: when they are needed again,
// where memory is to keep them until then.
std::optional<HostBytes> FeatureCache::read(const Sample& sample, std::optional<std::uint64_t> next,
                                            bool* from_memory) const {
  const auto key = store_->find(sample.index);
  if (!key || key->kept != kept_ || key->width != width_ || key->rows != rows_of(sample)) return std::nullopt;
  std::optional<HostBytes> payload = next ? memory_->find(key->sample, key->stamp, *next) : std::nullopt;
  if (from_memory != nullptr) *from_memory = payload.has_value();
  if (!payload) {
    payload = read_from_disk(*key, next.has_value());
    if (!payload) return std::nullopt;
    if (next) memory_->keep(key->sample, key->stamp, *payload, *next);
  }
  if (kept_ != cache::Kept::kInt8) return payload;
  return cache::decode_int8({payload->data(), payload->size()}, key->rows, key->width, made_as_);
}

// Into pinned memory where a step will upload it and there is room.
std::optional<HostBytes> FeatureCache::read_from_disk(const cache::RecordKey& key, bool to_upload) const {
  const std::size_t size = cache::payload_bytes(key);
  std::shared_ptr<std::byte[]> block = to_upload && pinned_ ? pinned_->take(size) : nullptr;
  if (!block) block = std::make_shared_for_overwrite<std::byte[]>(size);
  if (!store_->read(key, {block.get(), size})) return std::nullopt;
  return HostBytes(std::move(block), size);
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

// The same, where it will be read then: a live draw reads nothing, and what is made by then replaces what is there.
std::uint64_t FeatureCache::next_read(std::uint64_t position, std::int64_t index) const {
  if (!memory_->keeps() && !device_->keeps()) return 0;
  const std::uint64_t next = next_draw(position, index);
  return ages_ && live_.at(next) ? std::numeric_limits<std::uint64_t>::max() : next;
}

std::vector<std::byte> FeatureCache::payload_of(const std::byte* features, std::uint32_t rows) {
  const auto width = static_cast<std::uint32_t>(width_);
  const std::span<const std::byte> values(features, cache::payload_bytes({0, 0, rows, width, made_as_}));
  if (kept_ == cache::Kept::kInt8) return cache::encode_int8(values, rows, width, made_as_, int8_error_);
  return {values.begin(), values.end()};
}

// Pictures are decoded only where their features are not at hand.
Sample FeatureCache::load_known(std::int64_t index, std::int64_t resolution, std::optional<std::uint64_t> next) const {
  if (const auto key = store_->find(index)) {
    Sample sample = source_.load_without_pixels(index, resolution);
    const auto count = [&](std::int64_t Loads::*from) {
      const std::scoped_lock lock(loads_mutex_);
      ++loads_.read;
      if (from != nullptr) ++(loads_.*from);
      loads_.age += std::max<std::int64_t>(0, step_ - cache::step_of_stamp(key->stamp));
    };
    if (auto rows = next ? device_->find(index, key->stamp, *next) : nullptr) {
      count(&Loads::from_device);
      (features_ == model::Features::kStates ? sample.vlm.device_states : sample.vlm.device_features) = std::move(rows);
      return sample;
    }
    bool from_memory = false;
    if (auto features = read(sample, next, &from_memory)) {
      count(from_memory ? &Loads::from_memory : nullptr);
      const bool states = features_ == model::Features::kStates;
      (states ? sample.vlm.hidden_states : sample.vlm.image_features) = std::move(*features);
      return sample;
    }
  }
  Sample sample = source_.load_at(index, resolution);
  if (rows_of(sample) > 0) {
    const std::scoped_lock lock(loads_mutex_);
    ++loads_.missed;
  }
  return sample;
}

Sample FeatureCache::load_at(std::int64_t index, std::int64_t resolution) const {
  return load_known(index, resolution, std::nullopt);
}

Sample FeatureCache::load_drawn(std::uint64_t position, std::int64_t index, std::int64_t resolution) const {
  std::optional<std::uint64_t> next;
  {
    const std::scoped_lock lock(live_mutex_);
    if (!ages_ || !live_.at(position)) next = next_read(position, index);
  }
  if (!next) {  // what is made now is what will be read
    memory_->forget(index);
    device_->forget(index);
    return source_.load_at(index, resolution);
  }
  return load_known(index, resolution, next);
}

// Of two draws of a sample in one step, which runs across the end of an epoch, the later one's features are kept: which
// that is, no plan and no number of ranks changes.
bool FeatureCache::is_last_in_step(const model::StreamSample& item) const {
  const auto batch = static_cast<std::uint64_t>(batch_), length = static_cast<std::uint64_t>(stream_.epoch_length());
  const std::uint64_t end = (item.position / batch + 1) * batch;
  if ((end - batch) / length == (end - 1) / length) return true;
  const std::scoped_lock lock(live_mutex_);
  for (std::uint64_t position = item.position + 1; position < end; ++position)
    if (stream_.at(position) == item.sample->index) return false;
  return true;
}

// What ages is kept whenever it was made anew.
bool FeatureCache::is_wanted(const Sample& sample) const {
  const bool there = features_ == model::Features::kStates ? sample.vlm.has_states() : sample.vlm.has_features();
  return !there && rows_of(sample) > 0 &&
         (ages_ || (!store_->is_appended(sample.index) && !store_->find(sample.index)));
}

model::Shown FeatureCache::shown(std::span<const model::StreamSample> samples) {
  const auto stage_them = [this, samples](const at::Tensor& features) {
    stage(samples, features, ages_ ? cache::stamp_in_step(step_) : 0, true);
  };
  shown_ = samples;
  model::Shown shown;
  (features_ == model::Features::kStates ? shown.hidden_states : shown.image_features) = stage_them;
  return shown;
}

void FeatureCache::stage(std::span<const model::StreamSample> samples, const at::Tensor& features, std::int64_t stamp,
                         bool in_step) {
  const auto is_to_keep = [&](const model::StreamSample& item) {
    return is_wanted(*item.sample) && (!ages_ || !in_step || is_last_in_step(item));
  };
  const bool wanted = std::any_of(samples.begin(), samples.end(), is_to_keep);
  if (!keeps_ || full_ || !wanted) return;
  const at::Tensor on_host = features.device().is_cpu() ? features : features.cpu();
  const auto* from = static_cast<const std::byte*>(on_host.const_data_ptr());
  const auto row = static_cast<std::size_t>(width_) * c10::elementSize(on_host.scalar_type());
  for (const auto& item : samples) {
    const Sample& sample = *item.sample;
    if (features_ == model::Features::kImages && sample.vlm.has_features()) continue;
    const auto rows = static_cast<std::uint32_t>(rows_of(sample));
    if (is_to_keep(item))
      staged_.push_back(
          {{sample.index, stamp, rows, static_cast<std::uint32_t>(width_), kept_}, payload_of(from, rows)});
    from += rows * row;
  }
}

HostBytes FeatureCache::known_states(const Sample& sample) const {
  return read(sample, std::nullopt).value_or(HostBytes());
}

void FeatureCache::keep_after(std::int64_t step, std::span<const model::StreamSample> samples,
                              const at::Tensor& features) {
  stage(samples, features, ages_ ? cache::stamp_after_step(step) : 0, false);
  commit();
}

// A cache that cannot be written is a slower run, no failed one.
void FeatureCache::commit() {
  try {
    for (const auto& item : std::exchange(shown_, {})) keep_on_device(item);
    for (const Staged& one : staged_) {
      if (!ages_ && store_->is_appended(one.key.sample))
        continue;  // drawn twice where one epoch ends and the next begins
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
  } catch (const std::exception& error) {
    stop_keeping(error.what());
  }
  staged_.clear();
}

void FeatureCache::discard() {
  staged_.clear();
  shown_ = {};
}

std::int64_t FeatureCache::give_up_device() {
  const std::int64_t bytes = device_->give_up();
  if (bytes > 0)
    spdlog::warn(
        "feature cache: rank {} gives its {} of the device's memory up, beside which one sample did not fit; features "
        "come from host memory and the disk from here on",
        communicator_.rank(), format_bytes(bytes));
  return bytes;
}

// What came from the host, for the next time.
void FeatureCache::keep_on_device(const model::StreamSample& item) {
  if (!device_->keeps()) return;
  const VlmInput& vlm = item.sample->vlm;
  const auto& rows = features_ == model::Features::kStates ? vlm.hidden_states : vlm.image_features;
  const auto key = rows.empty() ? std::nullopt : store_->find(item.sample->index);
  if (!key) return;
  std::uint64_t next = 0;
  {
    const std::scoped_lock lock(live_mutex_);
    next = next_read(item.position, item.sample->index);
  }
  device_->keep(key->sample, key->stamp, {rows.data(), rows.size()}, next);
}

void FeatureCache::publish(const cache::UpkeepState& known) {
  try {
    ages_ ? store_->publish(known.published, known.oldest, known.unfinished()) : store_->publish(0);
    allow_appends();
    full_ = false;
  } catch (const std::exception& error) {
    stop_keeping(error.what());
  }
}

void FeatureCache::clear_older(std::int64_t stamp) {
  if (!ages_) return;
  const auto start = std::chrono::steady_clock::now();
  const cache::Cleared cleared = store_->clear_older(stamp, communicator_.rank() == 0);
  if (cleared.segments == 0) return;
  spdlog::info("feature cache: cleared {} features that are read no more, {} in {} files, in {:.2f} s", cleared.records,
               format_bytes(static_cast<std::int64_t>(cleared.bytes)), cleared.segments,
               std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  allow_appends();
  full_ = false;
}

void FeatureCache::took(const FeatureTimes& times) {
  times_.with += times.with;
  times_.with_us += times.with_us;
  times_.without += times.without;
  times_.without_us += times.without_us;
  with_ += times.came_with;
}

report::CacheUseRecord FeatureCache::use(std::int64_t step, double epoch) {
  const std::int64_t with = std::exchange(with_, 0);
  std::int64_t saved = -1;  // microseconds, where both kinds were timed
  if (times_.with > 0 && times_.without > 0) {
    const auto mean = [](std::int64_t us, std::int64_t samples) {
      return static_cast<double>(us) / static_cast<double>(samples);
    };
    const double each = mean(times_.without_us, times_.without) - mean(times_.with_us, times_.with);
    saved = std::max<std::int64_t>(0, std::llround(each * static_cast<double>(with)));
  }
  Loads loads;
  {
    const std::scoped_lock lock(loads_mutex_);
    loads = std::exchange(loads_, {});
  }
  const std::vector<std::int64_t> mine = {
      loads.read, loads.missed, loads.from_memory, std::exchange(made_, 0), static_cast<std::int64_t>(memory_->bytes()),
      loads.age,  saved,        loads.from_device, device_->bytes()};
  std::vector<std::int64_t> sums(mine.size());
  std::int64_t timed = 0;
  for (const auto& theirs : ddp::share_numbers(communicator_, mine)) {
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += std::max<std::int64_t>(0, theirs.at(i));
    timed += theirs.at(6) >= 0 ? 1 : 0;
  }
  report::CacheUseRecord record;
  record.step = step;
  record.epoch = epoch;
  record.loaded = sums[0] + sums[1];
  record.from_device = sums[7];
  record.from_memory = sums[2];
  record.from_disk = sums[0] - record.from_memory - record.from_device;
  record.kept = sums[3];
  record.memory_bytes = sums[4];
  record.device_bytes = sums[8];
  record.disk_bytes = static_cast<std::int64_t>(store_->bytes());
  if (ages_ && sums[0] > 0) record.age = static_cast<double>(sums[5]) / static_cast<double>(sums[0]);
  if (timed > 0) record.saved_ms = static_cast<double>(sums[6]) / static_cast<double>(timed) / 1000.0;
  if (int8_error_.squared_values > 0) record.int8_error = std::exchange(int8_error_, {}).relative();
  return record;
}

}  // namespace plimsoll::train
