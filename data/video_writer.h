#pragma once
// Writing camera frames: H.264 in mp4, as LeRobot stores them, and single pictures as PNG.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/image_file.h"

namespace plimsoll::data {

/// H.264 (libx264, preset superfast, constant quality), yuv420p, a key frame every 2 frames, no reordering; frame n is
/// shown at exactly n / fps.
struct VideoOptions {
  std::int64_t height = 0, width = 0;  ///< even
  int fps = 10;
  int quality = 18;  ///< x264's constant rate factor: 0 is lossless, 23 its default, higher is smaller
};

/// One mp4 file being written. One thread.
class VideoWriter {
 public:
  /// Throws Error(kData) naming `path` when it cannot be created, Error(kUsage) for odd sides.
  VideoWriter(const std::string& path, const VideoOptions& options);
  /// A writer that was not finished leaves a file that no player opens.
  ~VideoWriter();

  /// Appends a frame of the writer's size. `key`: make it a key frame (an episode's first).
  void add(const Image& image, bool key);
  /// Writes what is buffered and the container's index. A full disk is an Error(kData) naming the file.
  void finish();
  std::int64_t frames() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

/// `image` as a PNG file in memory. Any thread.
std::vector<std::uint8_t> encode_png(const Image& image);

}  // namespace plimsoll::data
