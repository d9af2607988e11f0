#include "data/video.h"

#include <cmath>

#include "core/error.h"
#include "data/av_owned.h"

namespace plimsoll::data {
namespace {

// A frame at most this far ahead is reached by decoding on: a seek decodes about as many.
constexpr std::int64_t kDecodeOn = 8;

struct CloseInput {
  void operator()(AVFormatContext* context) const { avformat_close_input(&context); }
};

// Messages of FFmpeg's own would repeat ours without the name of the file. Pictures of other threads are not disturbed:
// this is the same value for all.
void silence_ffmpeg() {
  static const bool once = (av_log_set_level(AV_LOG_QUIET), true);
  (void)once;
}

}  // namespace

struct VideoDecoder::Parts {
  explicit Parts(const std::string& file) : path(file) {
    silence_ffmpeg();
    open_container();
    open_codec();
    packet.reset(av_packet_alloc());
    frame.reset(av_frame_alloc());
    if (!packet || !frame) refuse("no memory for it");
  }

  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) const {
    fail(ExitCode::kData, "{}: {}", path, fmt::format(text, std::forward<Args>(args)...));
  }

  void open_container() {
    AVFormatContext* raw = nullptr;
    if (const int error = avformat_open_input(&raw, path.c_str(), nullptr, nullptr); error < 0)
      refuse("cannot be opened as a video: {}; the file is missing or damaged, copy it again", av_text(error));
    container.reset(raw);
    if (const int error = avformat_find_stream_info(raw, nullptr); error < 0)
      refuse("cannot be read: {}", av_text(error));
    const int index = av_find_best_stream(raw, AVMEDIA_TYPE_VIDEO, -1, -1, nullptr, 0);
    if (index < 0) refuse("holds no video stream");
    stream = raw->streams[index];
    for (unsigned i = 0; i < raw->nb_streams; ++i)
      raw->streams[i]->discard = static_cast<int>(i) == index ? AVDISCARD_DEFAULT : AVDISCARD_ALL;
    info = {stream->codecpar->height, stream->codecpar->width, av_q2d(stream->avg_frame_rate), stream->nb_frames};
    if (!(info.average_fps > 0)) refuse("does not say how many frames a second it has");
  }

  /// libdav1d before FFmpeg's own AV1 decoder, which needs hardware.
  const AVCodec* find_codec() const {
    const AVCodec* dav1d =
        stream->codecpar->codec_id == AV_CODEC_ID_AV1 ? avcodec_find_decoder_by_name("libdav1d") : nullptr;
    return dav1d ? dav1d : avcodec_find_decoder(stream->codecpar->codec_id);
  }

  void open_codec() {
    const AVCodec* found = find_codec();
    if (!found)
      refuse("is coded as {}, which this build of FFmpeg does not decode",
             avcodec_get_name(stream->codecpar->codec_id));
    codec.reset(avcodec_alloc_context3(found));
    if (!codec || avcodec_parameters_to_context(codec.get(), stream->codecpar) < 0) refuse("no memory for its decoder");
    codec->thread_count = 1;  // the loader has threads of its own
    codec->pkt_timebase = stream->time_base;
    if (const int error = avcodec_open2(codec.get(), found, nullptr); error < 0)
      refuse("its decoder does not start: {}", av_text(error));
  }

  double seconds_of(std::int64_t pts) const { return static_cast<double>(pts) * av_q2d(stream->time_base); }
  std::int64_t number_of(std::int64_t pts) const { return std::llround(seconds_of(pts) * info.average_fps); }

  /// The next frame in order of time into `frame`, or false at the end.
  bool next_frame() {
    for (;;) {
      const int error = avcodec_receive_frame(codec.get(), frame.get());
      if (error == 0) {
        last = number_of(frame->best_effort_timestamp);
        return true;
      }
      if (error == AVERROR_EOF) return false;
      if (error != AVERROR(EAGAIN))
        refuse("does not decode after frame {}: {}; the file is damaged, copy it again", last, av_text(error));
      feed();
    }
  }

  void feed() {
    int error = av_read_frame(container.get(), packet.get());
    if (error == AVERROR_EOF) {
      avcodec_send_packet(codec.get(), nullptr);
      return;
    }
    if (error < 0) refuse("cannot be read after frame {}: {}", last, av_text(error));
    if (packet->stream_index == stream->index) error = avcodec_send_packet(codec.get(), packet.get());
    av_packet_unref(packet.get());
    if (error < 0)
      refuse("does not decode after frame {}: {}; the file is damaged, copy it again", last, av_text(error));
  }

  void seek(std::int64_t number) {
    const auto pts = static_cast<std::int64_t>(
        std::floor(static_cast<double>(number) / info.average_fps / av_q2d(stream->time_base)));
    if (const int error = av_seek_frame(container.get(), stream->index, pts, AVSEEK_FLAG_BACKWARD); error < 0)
      refuse("cannot seek to frame {}: {}", number, av_text(error));
    avcodec_flush_buffers(codec.get());
    last = -1;
    fresh = true;
  }

  /// Decodes until frame `number` or the first one after it; false when the video ends before.
  bool decode_until(std::int64_t number) {
    while (next_frame()) {
      fresh = false;
      if (last >= number) return true;
    }
    return false;
  }

  /// Puts frame `number` into `frame` if there is one. A seek may land behind it where frames are reordered: then once
  /// more from further back.
  bool find(std::int64_t number) {
    if (!fresh && last < number && number - last <= kDecodeOn && decode_until(number)) return last == number;
    for (std::int64_t back = 0;; back = 2 * back + 16) {
      seek(std::max<std::int64_t>(0, number - back));
      const bool reached = decode_until(number);
      if ((reached && last == number) || back > number || !reached) return reached && last == number;
    }
  }

  /// Limited-range BT.601 unless the frame says otherwise.
  SwsContext* scaler() {
    const auto format = static_cast<AVPixelFormat>(frame->format);
    auto* fresh_or_same =
        sws_getCachedContext(sws.release(), frame->width, frame->height, format, frame->width, frame->height,
                             AV_PIX_FMT_RGB24, SWS_BILINEAR, nullptr, nullptr, nullptr);
    sws.reset(fresh_or_same);
    if (!sws) refuse("its pixel format {} does not convert to RGB", frame->format);
    const int* coefficients = sws_getCoefficients(frame->colorspace);
    const int full_range =
        frame->color_range == AVCOL_RANGE_JPEG || format == AV_PIX_FMT_YUVJ420P || format == AV_PIX_FMT_YUVJ444P;
    sws_setColorspaceDetails(sws.get(), coefficients, full_range, coefficients, 1, 0, 1 << 16, 1 << 16);
    return sws.get();
  }

  /// Where libswscale writes RGB: its vector code may write past a row's end, so it has rows of its own. Kept from
  /// picture to picture.
  AVFrame& converted() {
    if (rgb && rgb->width == frame->width && rgb->height == frame->height) return *rgb;
    AvOwned<AVFrame> made(av_frame_alloc());
    if (!made) refuse("no memory for a picture");
    made->format = AV_PIX_FMT_RGB24;
    made->width = frame->width;
    made->height = frame->height;
    if (av_frame_get_buffer(made.get(), 64) < 0) refuse("no memory for a picture");
    rgb = std::move(made);
    return *rgb;
  }

  Image to_rgb() {
    Image image{frame->height, frame->width, {}};
    SwsContext* context = scaler();
    const AVFrame& made = converted();
    sws_scale(context, frame->data, frame->linesize, 0, frame->height, made.data, made.linesize);
    const auto row = static_cast<std::size_t>(frame->width) * 3;
    image.pixels.reserve(row * static_cast<std::size_t>(frame->height));
    for (int y = 0; y < frame->height; ++y) {
      const std::uint8_t* from = made.data[0] + static_cast<std::ptrdiff_t>(y) * made.linesize[0];
      image.pixels.insert(image.pixels.end(), from, from + row);
    }
    return image;
  }

  std::string path;
  std::unique_ptr<AVFormatContext, CloseInput> container;
  AVStream* stream = nullptr;
  AvOwned<AVCodecContext> codec;
  AvOwned<AVPacket> packet;
  AvOwned<AVFrame> frame, rgb;
  AvOwned<SwsContext> sws;
  VideoInfo info;
  std::int64_t last = -1;  // number of the frame decoded last
  bool fresh = true;       // nothing decoded since the last seek
};

VideoDecoder::VideoDecoder(const std::string& path) : parts_(std::make_unique<Parts>(path)) {}
VideoDecoder::~VideoDecoder() = default;
VideoDecoder::VideoDecoder(VideoDecoder&&) noexcept = default;

const VideoInfo& VideoDecoder::info() const { return parts_->info; }

Image VideoDecoder::frame_at(double seconds, double tolerance) {
  Parts& video = *parts_;
  const std::int64_t number = std::llround(seconds * video.info.average_fps);
  if (!video.find(number))
    video.refuse("has no frame at {:.6f} s (frame {} of {}); the video is shorter than its parquet says, or damaged",
                 seconds, number, video.info.frames);
  const double found = video.seconds_of(video.frame->best_effort_timestamp);
  if (!(std::abs(found - seconds) < tolerance))
    video.refuse(
        "the frame nearest to {:.6f} s is at {:.6f} s, further than the tolerance of {} s; the dataset's timestamps do "
        "not fit the video",
        seconds, found, tolerance);
  return video.to_rgb();
}

}  // namespace plimsoll::data
