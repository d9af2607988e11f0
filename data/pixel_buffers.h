#pragma once
// The pixel values of samples that have gone, as room for those of samples to come: memory of some MB that is new comes
// from the system page by page, and that takes about as long as to fill it.

#include <cstddef>
#include <cstdint>
#include <list>
#include <mutex>
#include <vector>

#include "core/bytes.h"

namespace plimsoll::data {

/// Vectors that were given back last, as many as fit. Any thread; memory is taken and freed outside the lock.
class PixelBuffers {
 public:
  /// `most_bytes`: of buffers that are kept; 0: none.
  explicit PixelBuffers(std::int64_t most_bytes) : most_bytes_(most_bytes) {}

  /// `values` values, whatever they are. They are one of the buffers kept if that has room for as many, and for a
  /// quarter more at most: the loader counts what is in a sample, not what would have room.
  std::vector<float> take(std::size_t values);
  /// Keeps `buffer` for take(), and frees those that were given longest ago where they are too many.
  void give(std::vector<float> buffer);
  /// Frees what no longer fits.
  void set_most_bytes(std::int64_t bytes);

  std::int64_t bytes() const;   ///< of the buffers that are kept now
  std::int64_t reused() const;  ///< how often take() had one of those

 private:
  using Buffers = std::list<std::vector<float>>;
  void drop_surplus(Buffers& dropped);

  mutable std::mutex mutex_;
  Buffers kept_;  // given last first
  std::int64_t most_bytes_, bytes_ = 0, reused_ = 0;
};

/// What spare_pixels() may keep: the samples of a usual step, which go together when the next one begins.
inline constexpr std::int64_t kSpareBytes = 128_MiB;

/// The one of this process: VlmProcessor takes from it what the loader's samples give back. A loader that is bounded
/// (LoaderOptions::most_bytes) lets it keep nothing.
PixelBuffers& spare_pixels();

}  // namespace plimsoll::data
