// FeatureCache as the sample source that the loader's threads read from.

#include <algorithm>
#include <memory>
#include <utility>

#include "train/feature_cache.h"

namespace plimsoll::train {

SampleShape FeatureCache::shape_at(std::int64_t index, std::int64_t resolution) const {
  return source_.shape_at(index, resolution);
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

HostBytes FeatureCache::known_states(const Sample& sample) const {
  return read(sample, std::nullopt).value_or(HostBytes());
}

// Pictures are decoded only where their features are not at hand.
Sample FeatureCache::load_known(std::int64_t index, std::int64_t resolution, std::optional<std::uint64_t> next) const {
  const bool states = features_ == model::Features::kStates;
  if (const auto key = store_->find(index)) {
    Sample sample = source_.load_without_pixels(index, resolution);
    const std::int64_t age = std::max<std::int64_t>(0, step_ - cache::step_of_stamp(key->stamp));
    if (auto rows = next ? device_->find(index, key->stamp, *next) : nullptr) {
      use_.read(FeaturesFrom::kDevice, age);
      (states ? sample.vlm.device_states : sample.vlm.device_features) = std::move(rows);
      return sample;
    }
    bool from_memory = false;
    if (auto features = read(sample, next, &from_memory)) {
      use_.read(from_memory ? FeaturesFrom::kMemory : FeaturesFrom::kDisk, age);
      (states ? sample.vlm.hidden_states : sample.vlm.image_features) = std::move(*features);
      return sample;
    }
  }
  Sample sample = source_.load_at(index, resolution);
  if (rows_of(sample) > 0) use_.missed();
  return sample;
}

Sample FeatureCache::load_at(std::int64_t index, std::int64_t resolution) const {
  return load_known(index, resolution, std::nullopt);
}

Sample FeatureCache::load_drawn(std::uint64_t position, std::int64_t index, std::int64_t resolution) const {
  if (!schedule_.is_live(position)) return load_known(index, resolution, next_read(position));
  memory_->forget(index);  // what is made now is what will be read
  device_->forget(index);
  return source_.load_at(index, resolution);
}

}  // namespace plimsoll::train
