#pragma once
// Decoded frames of videos, kept for a while: what comes again soon (a sample that is drawn several times within a few
// steps, or probed while it is trained on) is copied in place of sought and decoded.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "core/bytes.h"
#include "data/image_file.h"

namespace plimsoll::data {

/// A camera's frame of an open dataset: the row says which file it is in, and which of its frames it is.
struct FrameKey {
  std::uint64_t dataset = 0;  ///< of FrameCache::new_dataset()
  std::size_t camera = 0;
  std::int64_t row = 0;

  bool operator<(const FrameKey& other) const {
    return std::tie(dataset, camera, row) < std::tie(other.dataset, other.camera, other.row);
  }
};

/// The frames that were used last, as many as fit. Any thread; decoding and copying happen outside the lock.
class FrameCache {
 public:
  /// `most_bytes`: of pixels that are kept; 0: none.
  explicit FrameCache(std::int64_t most_bytes) : most_bytes_(most_bytes) {}

  /// The frame of `key`, from decode() where it is not kept. What decode() throws is passed on, and nothing kept.
  Image get(const FrameKey& key, const std::function<Image()>& decode);

  /// A number that no other dataset has: a dataset that is opened again may have other frames.
  std::uint64_t new_dataset();
  /// Drops that dataset's frames.
  void forget(std::uint64_t dataset);
  /// Drops what no longer fits.
  void set_most_bytes(std::int64_t bytes);

  std::int64_t most_bytes() const;
  std::int64_t bytes() const;   ///< of the frames that are kept now
  std::int64_t hits() const;    ///< how often get() found its frame
  std::int64_t misses() const;  ///< how often it did not

 private:
  struct Kept {
    FrameKey key;
    std::shared_ptr<const Image> frame;
  };
  using Order = std::list<Kept>;
  std::shared_ptr<const Image> find(const FrameKey& key);
  void keep(const FrameKey& key, const Image& frame);
  void drop(Order::iterator item, Order& dropped);
  void drop_surplus(Order& dropped);

  mutable std::mutex mutex_;
  Order order_;  // most recently used first
  std::map<FrameKey, Order::iterator> places_;
  std::int64_t most_bytes_, bytes_ = 0, hits_ = 0, misses_ = 0;
  std::uint64_t datasets_ = 0;
};

/// What decoded_frames() may keep, unless the loader is given less: some 70 pictures of 640 x 480, more than the frames
/// of a usual step, and little beside the samples that are loaded ahead.
inline constexpr std::int64_t kFrameBytes = 64_MiB;

/// The one of this process. Not one for each dataset: what they keep together must not grow with their number, and the
/// loader counts it among the bytes that it holds (data/loader.h).
FrameCache& decoded_frames();

/// The frames of one open dataset; they go with it. Any thread.
class DatasetFrames {
 public:
  explicit DatasetFrames(FrameCache& cache) : cache_(cache), dataset_(cache.new_dataset()) {}
  ~DatasetFrames() { cache_.forget(dataset_); }
  DatasetFrames(const DatasetFrames&) = delete;
  DatasetFrames& operator=(const DatasetFrames&) = delete;

  Image get(std::size_t camera, std::int64_t row, const std::function<Image()>& decode) {
    return cache_.get({dataset_, camera, row}, decode);
  }

 private:
  FrameCache& cache_;
  std::uint64_t dataset_;
};

}  // namespace plimsoll::data
