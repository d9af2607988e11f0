#include "train/cache_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <system_error>
#include <vector>

#include "cache/layout.h"
#include "cache/record.h"
#include "core/bytes.h"
#include "core/error.h"
#include "ddp/handshake.h"
#include "train/options.h"

namespace plimsoll::train {
namespace {

constexpr const char* kFeatureVersion = "1";  // of how features are made: another number where that changes

// A tenth of the disk is left to others: checkpoints too want a place.
std::uint64_t free_on_disk(const std::filesystem::path& folder) {
  std::error_code error;
  const auto space = std::filesystem::space(folder, error);
  return error || space.available < space.capacity / 10 ? 0 : space.available - space.capacity / 10;
}

}  // namespace

cache::Fingerprint feature_fingerprint(const Config& config, const FeatureOrigin& origin) {
  const bool states = config.cache.mode == "hybrid";
  cache::Fingerprint fingerprint;
  fingerprint.add("features", states ? "last hidden states of the language model" : "vision tower and merger");
  fingerprint.add("version", kFeatureVersion);
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

bool keeps_features(const Config& config) {
  const bool all_live = config.cache.mode == "hybrid" && config.train.stage == 2 && config.cache.live_fraction == 1;
  return config.cache.mode != "off" && !all_live;
}

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

FeatureBytes feature_bytes(const Config& config, const model::VlaModel& model, const data::SampleSource& source,
                           model::Features which) {
  const auto row = static_cast<std::uint64_t>(model.packing_rules(0, false).hidden) *
                   (config.model.dtype == "fp32" ? sizeof(float) : sizeof(std::uint16_t));
  FeatureBytes bytes;
  for (const std::int64_t index : source.training()) {
    const SampleShape shape = source.shape_at(index, config.data.resolution);
    const std::int64_t rows = which == model::Features::kStates ? shape.tokens : shape.patches / 4;
    if (rows <= 0) continue;
    bytes.in_memory += static_cast<std::uint64_t>(rows) * row;
    bytes.on_disk += static_cast<std::uint64_t>(rows) * row + cache::kRecordHeader;
  }
  return bytes;
}

CacheChoice choose_cache_mode(const Config& config, const model::VlaModel& model, const data::SampleSource& source,
                              std::int64_t steps, std::uint64_t room) {
  if (model.vision_blocks() > 0) return {"off", "adapters in the vision tower change what it makes of images"};
  if (turns(config, "resolution")) return {"off", "memory.knobs names \"resolution\", which changes the images"};
  if (steps * config.batch.effective <= std::ssize(source.training()))
    return {"off", "no sample is drawn more than once"};
  const std::uint64_t bytes = feature_bytes(config, model, source, model::Features::kImages).on_disk;
  if (bytes == 0) return {"off", "the samples have no images"};
  const std::string size = format_bytes(static_cast<std::int64_t>(bytes));
  if (bytes > room)
    return {"off", fmt::format("the images' features take {} and the disk of cache.dir has {} for them", size,
                               format_bytes(static_cast<std::int64_t>(room)))};
  return {"prefix", fmt::format("the images' features take {} on disk", size)};
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

std::uint64_t room_left(const cache::CacheConfig& config, const cache::Store& store) {
  const auto most = bytes_or_auto(config.disk_bytes, "cache.disk_bytes");
  if (!most) return free_on_disk(store.folder());
  const auto bytes = static_cast<std::uint64_t>(*most);
  return bytes - std::min(bytes, store.bytes());
}

namespace {

// Of the machine that has most of them.
int ranks_of_a_machine(ddp::Communicator& communicator) {
  std::int64_t most = 1;
  const std::vector<std::int64_t> mine = {communicator.local_rank() + 1};
  for (const auto& theirs : ddp::share_numbers(communicator, mine)) most = std::max(most, theirs.at(0));
  return static_cast<int>(most);
}

// Of what the settings ask for, what this rank does not have; empty: nothing.
std::string missing_memory(std::optional<std::int64_t> device, std::optional<std::int64_t> host,
                           const cache::TierSizes& sizes, const cache::TierRoom& room, int rank, int ranks) {
  if (device.value_or(0) > room.budget)
    return fmt::format(
        "rank {}: cache.device_bytes = {} is more than its budget of {} (memory.budget); give less, or "
        "\"auto\"",
        rank, format_bytes(*device), format_bytes(room.budget));
  if (host.value_or(0) > machine_memory() / ranks)
    return fmt::format(
        "cache.host_bytes = {} for each of {} ranks of a machine: this one has {}; give less, or \"auto\"",
        format_bytes(*host), ranks, format_bytes(machine_memory()));
  if (host && sizes.host > room.host)
    return fmt::format(
        "rank {}: cache.host_bytes = {}: the features take {} of it, and {} of this machine's memory "
        "are free for each of its {} ranks; give less, or \"auto\"",
        rank, format_bytes(*host), format_bytes(sizes.host), format_bytes(room.host), ranks);
  return "";
}

}  // namespace

cache::TierSizes choose_tier_sizes(const Config& config, std::int64_t features, const Device& device,
                                   std::int64_t budget, ddp::Communicator& communicator) {
  const int ranks = ranks_of_a_machine(communicator);
  const cache::TierRoom room{features, budget, budget - device.memory->live(), available_memory(ranks),
                             device.place.is_cpu()};
  const auto asked = bytes_or_auto(config.cache.device_bytes, "cache.device_bytes");
  const auto host = bytes_or_auto(config.cache.host_bytes, "cache.host_bytes");
  auto sizes = cache::choose_tiers(asked, host, room);
  const std::string missing = missing_memory(asked, host, sizes, room, communicator.rank(), ranks);
  for (const std::string& text : ddp::share_text(communicator, missing))
    if (!text.empty()) throw Error(ExitCode::kUsage, text);
  const std::vector<std::int64_t> mine = {sizes.device};
  for (const auto& theirs : ddp::share_numbers(communicator, mine)) sizes.device = std::min(sizes.device, theirs.at(0));
  return sizes;
}

}  // namespace plimsoll::train
