#include "data/video_writer.h"

#include "core/error.h"
#include "data/av_owned.h"

namespace plimsoll::data {
namespace {

struct CloseOutput {
  void operator()(AVFormatContext* context) const {
    if (context->pb) avio_closep(&context->pb);
    avformat_free_context(context);
  }
};

AvOwned<AVFrame> new_frame(const Image& image, AVPixelFormat format) {
  AvOwned<AVFrame> frame(av_frame_alloc());
  if (!frame) throw std::bad_alloc();
  frame->format = format;
  frame->width = static_cast<int>(image.width);
  frame->height = static_cast<int>(image.height);
  if (av_frame_get_buffer(frame.get(), 0) < 0) throw std::bad_alloc();
  return frame;
}

void copy_rows(const Image& image, AVFrame& frame) {
  const int row = static_cast<int>(image.width) * 3;
  av_image_copy_plane(frame.data[0], frame.linesize[0], image.pixels.data(), row, row, static_cast<int>(image.height));
}

}  // namespace

struct VideoWriter::Parts {
  Parts(const std::string& file, const VideoOptions& chosen) : path(file), options(chosen) {
    av_log_set_level(AV_LOG_QUIET);  // x264 prints statistics
    if (options.height % 2 != 0 || options.width % 2 != 0 || options.height <= 0 || options.width <= 0)
      fail(ExitCode::kUsage, "{}: a video of {} x {} pixels cannot be written: both sides must be even", path,
           options.height, options.width);
    open_codec();
    open_container();
    packet.reset(av_packet_alloc());
    if (!packet) throw std::bad_alloc();
  }

  void check(int error, const char* doing) const {
    if (error < 0) fail(ExitCode::kData, "{}: {}: {}", path, doing, av_text(error));
  }

  void open_codec() {
    const AVCodec* found = avcodec_find_encoder_by_name("libx264");
    if (!found)
      fail(ExitCode::kUsage,
           "{}: FFmpeg's libraries on this machine have no libx264 encoder; install Debian's libavcodec", path);
    codec.reset(avcodec_alloc_context3(found));
    if (!codec) throw std::bad_alloc();
    codec->width = static_cast<int>(options.width);
    codec->height = static_cast<int>(options.height);
    codec->pix_fmt = AV_PIX_FMT_YUV420P;
    codec->time_base = {1, options.fps};
    codec->framerate = {options.fps, 1};
    codec->gop_size = 2;
    codec->max_b_frames = 0;
    codec->thread_count = 1;  // equal files on every machine
    codec->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
    av_opt_set(codec->priv_data, "preset", "superfast", 0);
    av_opt_set(codec->priv_data, "x264-params", "scenecut=0:rc-lookahead=0:sync-lookahead=0", 0);
    av_opt_set(codec->priv_data, "forced-idr", "1", 0);
    av_opt_set_int(codec->priv_data, "crf", options.quality, 0);
    check(avcodec_open2(codec.get(), found, nullptr), "the H.264 encoder does not start");
  }

  void open_container() {
    AVFormatContext* raw = nullptr;
    check(avformat_alloc_output_context2(&raw, nullptr, "mp4", path.c_str()), "no mp4 can be made");
    container.reset(raw);
    stream = avformat_new_stream(raw, nullptr);
    if (!stream) throw std::bad_alloc();
    stream->time_base = codec->time_base;
    stream->avg_frame_rate = codec->framerate;
    check(avcodec_parameters_from_context(stream->codecpar, codec.get()), "no mp4 can be made");
    raw->flags |= AVFMT_FLAG_BITEXACT;  // no date in it: equal input gives equal files
    check(avio_open(&raw->pb, path.c_str(), AVIO_FLAG_WRITE), "cannot be created");
    check(avformat_write_header(raw, nullptr), "cannot be written");
  }

  void send(const AVFrame* frame) {
    check(avcodec_send_frame(codec.get(), frame), "does not encode");
    for (;;) {
      const int error = avcodec_receive_packet(codec.get(), packet.get());
      if (error == AVERROR(EAGAIN) || error == AVERROR_EOF) return;
      check(error, "does not encode");
      packet->duration = 1;
      av_packet_rescale_ts(packet.get(), codec->time_base, stream->time_base);
      packet->stream_index = stream->index;
      check(av_interleaved_write_frame(container.get(), packet.get()), "cannot be written");
    }
  }

  void add(const Image& image, bool key) {
    if (image.height != options.height || image.width != options.width)
      fail(ExitCode::kUsage, "{}: frame {} has {} x {} pixels, the video {} x {}", path, frames, image.height,
           image.width, options.height, options.width);
    auto rgb = new_frame(image, AV_PIX_FMT_RGB24);
    copy_rows(image, *rgb);
    auto yuv = new_frame(image, AV_PIX_FMT_YUV420P);
    auto* context = sws_getCachedContext(sws.release(), rgb->width, rgb->height, AV_PIX_FMT_RGB24, rgb->width,
                                         rgb->height, AV_PIX_FMT_YUV420P, SWS_BICUBIC, nullptr, nullptr, nullptr);
    sws.reset(context);
    if (!sws) throw std::bad_alloc();
    sws_scale(context, rgb->data, rgb->linesize, 0, rgb->height, yuv->data, yuv->linesize);
    yuv->pts = frames++;
    yuv->pict_type = key ? AV_PICTURE_TYPE_I : AV_PICTURE_TYPE_NONE;
    send(yuv.get());
  }

  void finish() {
    send(nullptr);
    check(av_write_trailer(container.get()), "cannot be written");
    check(avio_closep(&container->pb), "cannot be written");
  }

  std::string path;
  VideoOptions options;
  AvOwned<AVCodecContext> codec;
  std::unique_ptr<AVFormatContext, CloseOutput> container;
  AVStream* stream = nullptr;
  AvOwned<AVPacket> packet;
  AvOwned<SwsContext> sws;
  std::int64_t frames = 0;
};

VideoWriter::VideoWriter(const std::string& path, const VideoOptions& options)
    : parts_(std::make_unique<Parts>(path, options)) {}
VideoWriter::~VideoWriter() = default;
void VideoWriter::add(const Image& image, bool key) { parts_->add(image, key); }
void VideoWriter::finish() { parts_->finish(); }
std::int64_t VideoWriter::frames() const { return parts_->frames; }

std::vector<std::uint8_t> encode_png(const Image& image) {
  const AVCodec* found = avcodec_find_encoder(AV_CODEC_ID_PNG);
  AvOwned<AVCodecContext> codec(avcodec_alloc_context3(found));
  AvOwned<AVPacket> packet(av_packet_alloc());
  if (!found || !codec || !packet) fail(ExitCode::kUsage, "FFmpeg's libraries on this machine have no PNG encoder");
  codec->width = static_cast<int>(image.width);
  codec->height = static_cast<int>(image.height);
  codec->pix_fmt = AV_PIX_FMT_RGB24;
  codec->time_base = {1, 1};
  codec->compression_level = 1;
  codec->thread_count = 1;
  auto frame = new_frame(image, AV_PIX_FMT_RGB24);
  copy_rows(image, *frame);
  int error = avcodec_open2(codec.get(), found, nullptr);
  if (error >= 0) error = avcodec_send_frame(codec.get(), frame.get());
  if (error >= 0) error = avcodec_receive_packet(codec.get(), packet.get());
  if (error < 0)
    fail(ExitCode::kData, "a picture of {} x {} pixels does not encode as PNG: {}", image.height, image.width,
         av_text(error));
  return {packet->data, packet->data + packet->size};
}

}  // namespace plimsoll::data
