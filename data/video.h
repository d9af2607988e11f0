#pragma once
// Frames of a video file by their time, as LeRobot's readers choose them.

#include <cstdint>
#include <memory>
#include <string>

#include "data/image_file.h"

namespace plimsoll::data {

/// What the container says about its video stream, without decoding.
struct VideoInfo {
  std::int64_t height = 0, width = 0;
  double average_fps = 0;   ///< frames per second
  std::int64_t frames = 0;  ///< 0 when the container does not say
};

/// One open video file (H.264, AV1 and whatever else FFmpeg's libraries decode). One thread at a time; decodes on that
/// thread.
class VideoDecoder {
 public:
  /// Throws Error(kData) naming `path` when it cannot be opened or holds no video that this build decodes.
  explicit VideoDecoder(const std::string& path);
  ~VideoDecoder();
  VideoDecoder(VideoDecoder&&) noexcept;

  const VideoInfo& info() const;

  /// The frame number round(seconds * average_fps), whose time may differ from `seconds` by at most `tolerance`
  /// seconds. Seeks to the key frame before it, or decodes on if that is nearer. RGB as libswscale's default conversion
  /// makes it (what LeRobot's decoders use too: equal bit by bit). Throws Error(kData) naming file and time when there
  /// is no such frame.
  Image frame_at(double seconds, double tolerance = 1e-4);

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace plimsoll::data
