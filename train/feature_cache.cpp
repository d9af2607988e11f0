#include "train/feature_cache.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <filesystem>
#include <fstream>
#include <utility>

#include "core/bytes.h"
#include "core/error.h"
#include "ddp/handshake.h"

namespace plimsoll::train {
namespace {

constexpr std::size_t kPinnedPiece = std::size_t{64} << 20;

std::string text_of(const Setting& size) {
  return size.is_string() ? size.as_string() : std::to_string(size.as_integer());
}

// Later processes have later names: of two records of one sample theirs counts.
std::string writer_name(int rank) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return fmt::format("{:013}-rank{}-{}", std::chrono::duration_cast<std::chrono::milliseconds>(now).count(), rank,
                     ::getpid());
}

// Ranks of other nodes must find what this one writes. Where nobody can write there is nothing to find.
void check_shared(ddp::Communicator& communicator, const std::filesystem::path& dir) {
  if (communicator.world() == 1) return;
  const std::string name = ddp::share_text(communicator, ".shared-" + writer_name(communicator.rank())).front();
  std::error_code error;
  bool made = false;
  if (communicator.rank() == 0) {
    std::filesystem::create_directories(dir, error);
    made = std::ofstream(dir / name).put('1').flush().good();
  }
  const std::vector<std::int64_t> said = {made ? 1 : 0};
  if (ddp::share_numbers(communicator, said).front().at(0) == 0) return;
  const std::vector<std::int64_t> seen = {std::filesystem::exists(dir / name, error) ? 1 : 0};
  const auto all = ddp::share_numbers(communicator, seen);
  if (communicator.rank() == 0) std::filesystem::remove(dir / name, error);
  for (std::size_t rank = 0; rank < all.size(); ++rank)
    if (all[rank].at(0) == 0)
      fail(ExitCode::kUsage,
           "cache.dir = \"{}\": rank {} does not find there what rank 0 writes; give a folder that all nodes share, or "
           "set cache.mode = \"off\"",
           dir.string(), rank);
}

}  // namespace

FeatureCache::FeatureCache(const Config& config, const model::VlaModel& model, const data::SampleSource& source,
                           std::shared_ptr<const data::StreamOrder> order, ddp::Communicator& communicator,
                           const Device& device, std::int64_t budget)
    : source_(source),
      communicator_(communicator),
      config_(config),
      features_(config.cache.mode == "hybrid" ? model::Features::kStates : model::Features::kImages),
      ages_(features_ == model::Features::kStates && config.train.stage == 2),
      width_(model.packing_rules(0, false).hidden),
      made_as_(config.model.dtype == "fp32" ? cache::Kept::kF32 : cache::Kept::kBf16),
      kept_(features_ == model::Features::kStates && config.cache.keep == "int8" ? cache::Kept::kInt8 : made_as_),
      schedule_(config, std::move(order), source.size(), ages_, {communicator.rank(), communicator.world()}) {
  refuse_what_would_not_hold(config, model);
  const FeatureBytes all = feature_bytes(config, model, source, features_);
  all_bytes_ = all.on_disk;
  make_tiers(static_cast<std::int64_t>(all.in_memory), device, budget);
}

void FeatureCache::make_tiers(std::int64_t features, const Device& device, std::int64_t budget) {
  const cache::TierSizes sizes = choose_tier_sizes(config_, features, device, budget, communicator_);
  make_block(sizes.device, device, budget);
  host_bytes_ = sizes.host;
  memory_ = std::make_unique<cache::MemoryTier>(static_cast<std::uint64_t>(sizes.host));
  if (device.pinned && sizes.host > 0)
    pinned_ = std::make_unique<cache::HostPool>(device.pinned, kPinnedPiece, static_cast<std::size_t>(sizes.host));
  if (communicator_.rank() == 0 && device_->bytes() + sizes.host > 0)
    spdlog::info("feature cache: of {} of features each rank may keep {} on the device and {} in {}host memory",
                 format_bytes(features), format_bytes(device_->bytes()), format_bytes(sizes.host),
                 pinned_ ? "pinned " : "");
}

// What cache.device_bytes asks for must be there; what "auto" comes to is done without, on all ranks alike.
void FeatureCache::make_block(std::int64_t bytes, const Device& device, std::int64_t budget) {
  const at::ScalarType dtype = made_as_ == cache::Kept::kF32 ? at::kFloat : at::kBFloat16;
  const std::int64_t live = device.memory->live();
  std::string trouble;
  try {
    device_ = std::make_unique<DeviceTier>(bytes, width_, dtype, device.place);
  } catch (const c10::OutOfMemoryError&) {
    trouble =
        fmt::format("rank {}: cache.device_bytes = {}: the model takes {} of a budget of {} (memory.budget); give less",
                    communicator_.rank(), format_bytes(bytes), format_bytes(live), format_bytes(budget));
  }
  for (const auto& text : ddp::share_text(communicator_, trouble)) {
    if (text.empty()) continue;
    if (!config_.cache.device_bytes.is("auto")) throw Error(ExitCode::kUsage, text);
    device_ = std::make_unique<DeviceTier>(0, width_, dtype, device.place);
  }
}

FeatureCache::~FeatureCache() {
  try {
    if (store_) store_->sync();
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch): what is not on the disk is made again
  }
}

void FeatureCache::open(const FeatureOrigin& origin, const cache::UpkeepState& known) {
  const cache::Fingerprint fingerprint = feature_fingerprint(config_, origin);
  check_shared(communicator_, config_.cache.dir);
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
  const std::uint64_t room = room_left(config_.cache, *store_) + store_->bytes();
  if (2 * all_bytes_ <= room) return;
  spdlog::warn(
      "feature cache: the features of all samples take {}, twice that in a rebuild, and there is room for {} "
      "(cache.disk_bytes); samples without features run the whole model, so that another room, or another number of "
      "ranks, will learn something else",
      format_bytes(static_cast<std::int64_t>(all_bytes_)), format_bytes(static_cast<std::int64_t>(room)));
}

void FeatureCache::allow_appends() {
  store_->set_most_appended(room_left(config_.cache, *store_) / static_cast<std::uint64_t>(communicator_.world()));
}

void FeatureCache::stop_keeping(const std::string& why) {
  if (keeps_) spdlog::warn("feature cache: {}; the run goes on, and keeps no more features", why);
  keeps_ = false;
}

std::vector<std::uint64_t> FeatureCache::share_of(std::int64_t step) const { return schedule_.share_of(step); }

std::int64_t FeatureCache::rows_of(const Sample& sample) const {
  return features_ == model::Features::kStates ? std::ssize(sample.vlm.input_ids) : sample.vlm.feature_rows();
}

// As the schedule has it; where no tier asks, it is not looked up.
std::uint64_t FeatureCache::next_read(std::uint64_t position) const {
  return memory_->keeps() || device_->keeps() ? schedule_.next_read(position) : 0;
}

std::vector<std::byte> FeatureCache::payload_of(const std::byte* features, std::uint32_t rows) {
  const auto width = static_cast<std::uint32_t>(width_);
  const std::span<const std::byte> values(features, cache::payload_bytes({0, 0, rows, width, made_as_}));
  if (kept_ == cache::Kept::kInt8) return cache::encode_int8(values, rows, width, made_as_, int8_error_);
  return {values.begin(), values.end()};
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
    return is_wanted(*item.sample) && (!ages_ || !in_step || schedule_.is_last_in_step(item.position));
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
      use_.kept();
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
  const std::uint64_t next = next_read(item.position);
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

report::CacheUseRecord FeatureCache::use(std::int64_t step, double epoch) {
  auto record = use_.take(communicator_, static_cast<std::int64_t>(memory_->bytes()), device_->bytes());
  record.step = step;
  record.epoch = epoch;
  record.disk_bytes = static_cast<std::int64_t>(store_->bytes());
  if (!ages_) record.age.reset();
  if (int8_error_.squared_values > 0) record.int8_error = std::exchange(int8_error_, {}).relative();
  return record;
}

}  // namespace plimsoll::train
