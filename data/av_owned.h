#pragma once
// FFmpeg's objects with owners, and its error numbers as text. For .cpp files of this room only.

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/imgutils.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>
}

#include <memory>
#include <string>

namespace plimsoll::data {

/// FFmpeg frees through the address of a pointer, and sets it to null.
struct AvFree {
  void operator()(AVCodecContext* context) const { avcodec_free_context(&context); }
  void operator()(AVPacket* packet) const { av_packet_free(&packet); }
  void operator()(AVFrame* frame) const { av_frame_free(&frame); }
  void operator()(SwsContext* context) const { sws_freeContext(context); }
};
template <class T>
using AvOwned = std::unique_ptr<T, AvFree>;

/// What FFmpeg says about one of its negative error numbers.
inline std::string av_text(int error) {
  char text[AV_ERROR_MAX_STRING_SIZE] = {};
  return av_strerror(error, text, sizeof text) == 0 ? text : "error " + std::to_string(error);
}

}  // namespace plimsoll::data
