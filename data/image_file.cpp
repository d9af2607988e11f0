#include "data/image_file.h"

extern "C" {
#include <libavutil/pixdesc.h>
}
#include <turbojpeg.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include "core/error.h"
#include "core/file.h"
#include "data/av_owned.h"

namespace plimsoll::data {

namespace {

// The sides' product at most: a damaged header must not ask for all memory.
constexpr std::int64_t kMostPixels = std::int64_t{1} << 28;

/// An encoded picture and what to call it in errors.
struct Source {
  std::span<const std::uint8_t> bytes;
  std::string name;

  [[noreturn]] void refuse(const std::string& reason) const {
    fail(ExitCode::kData, "{}: does not decode as an image ({} bytes): {}; replace it or take it out of the data", name,
         bytes.size(), reason);
  }
  bool starts_with(std::string_view magic, std::size_t at = 0) const {
    return bytes.size() >= at + magic.size() && std::memcmp(bytes.data() + at, magic.data(), magic.size()) == 0;
  }
  void check_size(std::int64_t height, std::int64_t width) const {
    if (height <= 0 || width <= 0) refuse(fmt::format("it has {} x {} pixels", height, width));
    if (height > kMostPixels / width) refuse(fmt::format("{} x {} pixels are too many", height, width));
  }
};

using namespace std::string_view_literals;

constexpr auto kPng = "\x89PNG\r\n\x1a\n"sv;

bool is_jpeg(const Source& source) { return source.starts_with("\xFF\xD8\xFF"sv); }
bool is_tiff(const Source& source) { return source.starts_with("II*\0"sv) || source.starts_with("MM\0*"sv); }
bool is_webp(const Source& source) { return source.starts_with("RIFF"sv) && source.starts_with("WEBP"sv, 8); }

AVCodecID codec_of(const Source& source) {
  if (source.starts_with(kPng)) return AV_CODEC_ID_PNG;
  if (is_webp(source)) return AV_CODEC_ID_WEBP;
  if (is_tiff(source)) return AV_CODEC_ID_TIFF;
  if (source.starts_with("BM"sv)) return AV_CODEC_ID_BMP;
  if (source.starts_with("P5"sv)) return AV_CODEC_ID_PGM;
  if (source.starts_with("P6"sv)) return AV_CODEC_ID_PPM;
  source.refuse("it is none of PNG, JPEG, WebP, TIFF, BMP, PGM, PPM");
}

AvOwned<AVPacket> packet_of(const Source& source) {
  AvOwned<AVPacket> packet(av_packet_alloc());
  if (!packet || av_new_packet(packet.get(), static_cast<int>(source.bytes.size())) < 0)
    source.refuse("no memory for it");
  std::memcpy(packet->data, source.bytes.data(), source.bytes.size());
  return packet;
}

AvOwned<AVFrame> decode_frame(const Source& source) {
  // What is wrong is told by our own error, once.
  [[maybe_unused]] static const bool silenced = (av_log_set_level(AV_LOG_QUIET), true);
  const AVCodec* codec = avcodec_find_decoder(codec_of(source));
  if (!codec) source.refuse("this build of FFmpeg has no decoder for it");
  AvOwned<AVCodecContext> context(avcodec_alloc_context3(codec));
  context->thread_count = 1;  // loaders run in threads of their own
  context->err_recognition = AV_EF_CRCCHECK | AV_EF_BITSTREAM | AV_EF_BUFFER | AV_EF_EXPLODE;
  context->max_pixels = kMostPixels;
  int status = avcodec_open2(context.get(), codec, nullptr);
  const AvOwned<AVPacket> packet = packet_of(source);
  AvOwned<AVFrame> frame(av_frame_alloc());
  if (status >= 0) status = avcodec_send_packet(context.get(), packet.get());
  if (status >= 0) status = avcodec_send_packet(context.get(), nullptr);
  if (status >= 0) status = avcodec_receive_frame(context.get(), frame.get());
  if (status < 0) source.refuse(av_text(status));
  if (frame->decode_error_flags != 0 || (frame->flags & AV_FRAME_FLAG_CORRUPT) != 0) source.refuse("it is damaged");
  return frame;
}

Image blank(const AVFrame& frame) {
  return {
      frame.height, frame.width,
      std::vector<std::uint8_t>(static_cast<std::size_t>(frame.height) * static_cast<std::size_t>(frame.width) * 3)};
}

/// Grey and RGB of any depth: component by component, exact for 8 bits; deeper ones keep their upper 8.
Image copy_components(const AVFrame& frame, const AVPixFmtDescriptor& format) {
  Image image = blank(frame);
  std::vector<std::uint16_t> line(frame.width);
  for (int c = 0; c < 3; ++c) {
    const int component = format.nb_components < 3 ? 0 : c, depth = format.comp[component].depth;
    for (int y = 0; y < frame.height; ++y) {
      av_read_image_line2(line.data(), const_cast<const std::uint8_t**>(frame.data), frame.linesize, &format, 0, y,
                          component, frame.width, 0, 2);
      std::uint8_t* out = image.pixels.data() + static_cast<std::size_t>(y) * frame.width * 3 + c;
      for (std::size_t x = 0; x < line.size(); ++x)
        out[x * 3] =
            static_cast<std::uint8_t>(depth >= 8 ? line[x] >> (depth - 8) : line[x] * 255 / ((1 << depth) - 1));
    }
  }
  return image;
}

/// Indices into a table of 0xAARRGGBB.
Image copy_palette(const AVFrame& frame) {
  Image image = blank(frame);
  std::array<std::uint32_t, 256> colours;
  std::memcpy(colours.data(), frame.data[1], sizeof colours);
  std::uint8_t* out = image.pixels.data();
  for (int y = 0; y < frame.height; ++y) {
    const std::uint8_t* in = frame.data[0] + static_cast<std::ptrdiff_t>(y) * frame.linesize[0];
    for (int x = 0; x < frame.width; ++x)
      for (const int shift : {16, 8, 0}) *out++ = static_cast<std::uint8_t>(colours[in[x]] >> shift);
  }
  return image;
}

/// Packed 8-bit RGB, with or without a fourth value to drop: the usual PNG, worth a path without component arithmetic.
Image copy_packed(const AVFrame& frame, int step) {
  Image image = blank(frame);
  std::uint8_t* out = image.pixels.data();
  for (int y = 0; y < frame.height; ++y) {
    const std::uint8_t* in = frame.data[0] + static_cast<std::ptrdiff_t>(y) * frame.linesize[0];
    for (int x = 0; x < frame.width; ++x, in += step, out += 3) std::copy_n(in, 3, out);
  }
  return image;
}

/// Lossy WebP and the like: colour conversion by libswscale.
Image convert_colours(const AVFrame& frame, const Source& source) {
  Image image = blank(frame);
  const auto format = static_cast<AVPixelFormat>(frame.format);
  const int flags = SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT | SWS_FULL_CHR_H_INP;
  const AvOwned<SwsContext> context(sws_getContext(frame.width, frame.height, format, frame.width, frame.height,
                                                   AV_PIX_FMT_RGB24, flags, nullptr, nullptr, nullptr));
  if (!context) source.refuse(fmt::format("its pixel format {} is unknown", av_get_pix_fmt_name(format)));
  std::uint8_t* planes[] = {image.pixels.data()};
  const int strides[] = {frame.width * 3};
  sws_scale(context.get(), frame.data, frame.linesize, 0, frame.height, planes, strides);
  return image;
}

Image to_rgb(const AVFrame& frame, const Source& source) {
  source.check_size(frame.height, frame.width);
  if (frame.format == AV_PIX_FMT_RGB24) return copy_packed(frame, 3);
  if (frame.format == AV_PIX_FMT_RGBA) return copy_packed(frame, 4);
  if (frame.format == AV_PIX_FMT_PAL8) return copy_palette(frame);
  const AVPixFmtDescriptor* format = av_pix_fmt_desc_get(static_cast<AVPixelFormat>(frame.format));
  if (!format) source.refuse("its pixel format is unknown");
  const bool rgb = (format->flags & AV_PIX_FMT_FLAG_RGB) != 0, grey = format->nb_components < 3;
  const bool floating = (format->flags & AV_PIX_FMT_FLAG_FLOAT) != 0, inverted = frame.format == AV_PIX_FMT_MONOWHITE;
  return (rgb || grey) && !floating && !inverted ? copy_components(frame, *format) : convert_colours(frame, source);
}

/// libjpeg-turbo, as Pillow uses it: FFmpeg's own decoder rounds differently.
class Jpeg {
 public:
  explicit Jpeg(const Source& source) : source_(source), handle_(tjInitDecompress()) {
    int subsampling = 0;
    if (!handle_ || tjDecompressHeader3(handle_, data(), size(), &width_, &height_, &subsampling, &colours_) < 0) {
      const std::string reason = tjGetErrorStr2(handle_);
      close();
      source_.refuse(reason);
    }
  }
  ~Jpeg() { close(); }
  Jpeg(const Jpeg&) = delete;
  Jpeg& operator=(const Jpeg&) = delete;

  ImageSize image_size() const {
    source_.check_size(height_, width_);
    return {height_, width_};
  }

  Image decode() {
    source_.check_size(height_, width_);
    Image image{height_, width_, std::vector<std::uint8_t>(pixels() * 3)};
    if (colours_ != TJCS_CMYK && colours_ != TJCS_YCCK) {
      decompress(image.pixels.data(), TJPF_RGB);
      return image;
    }
    std::vector<std::uint8_t> cmyk(pixels() * 4);
    decompress(cmyk.data(), TJPF_CMYK);
    // Adobe's files, the only CMYK ones in use, hold inverted inks: what is left of the light is their product.
    for (std::size_t i = 0; i < pixels(); ++i)
      for (int c = 0; c < 3; ++c)
        image.pixels[i * 3 + c] = static_cast<std::uint8_t>((cmyk[i * 4 + c] * cmyk[i * 4 + 3] + 127) / 255);
    return image;
  }

 private:
  const unsigned char* data() const { return source_.bytes.data(); }
  unsigned long size() const { return static_cast<unsigned long>(source_.bytes.size()); }
  std::size_t pixels() const { return static_cast<std::size_t>(height_) * static_cast<std::size_t>(width_); }
  void close() {
    if (handle_) tjDestroy(handle_);
    handle_ = nullptr;
  }
  void decompress(std::uint8_t* out, int format) {
    if (tjDecompress2(handle_, data(), size(), out, width_, 0, height_, format, 0) == 0) return;
    const std::string reason = tjGetErrorStr2(handle_);
    // A warning about stray bytes leaves a whole picture; one about a premature end does not.
    const bool whole = tjGetErrorCode(handle_) == TJERR_WARNING && reason.find("remature end") == std::string::npos;
    if (!whole) source_.refuse(reason);
  }

  const Source& source_;
  tjhandle handle_;
  int width_ = 0, height_ = 0, colours_ = 0;
};

std::int64_t big_endian(const std::uint8_t* bytes) {
  return std::int64_t{bytes[0]} << 24 | std::int64_t{bytes[1]} << 16 | std::int64_t{bytes[2]} << 8 | bytes[3];
}

constexpr std::size_t kPngSize = 16;  // the width's place: after the signature, a length and the name IHDR

ImageSize png_size(std::span<const std::uint8_t> bytes) {
  return {big_endian(bytes.data() + kPngSize + 4), big_endian(bytes.data() + kPngSize)};
}

}  // namespace

Image decode_image(std::span<const std::uint8_t> bytes, std::string_view name) {
  const Source source{bytes, std::string(name)};
  if (is_jpeg(source)) return Jpeg(source).decode();
  return to_rgb(*decode_frame(source), source);
}

Image read_image(const std::string& path) {
  const std::string bytes = read_file(path);
  return decode_image({reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()}, path);
}

ImageSize encoded_image_size(std::span<const std::uint8_t> bytes, std::string_view name) {
  const Source source{bytes, std::string(name)};
  if (is_jpeg(source)) return Jpeg(source).image_size();
  if (!source.starts_with(kPng) || bytes.size() < kPngSize + 8) return decode_image(bytes, name).size();
  const ImageSize size = png_size(bytes);
  source.check_size(size.height, size.width);
  return size;
}

std::optional<ImageSize> size_in_head(std::span<const std::uint8_t> head) {
  const Source source{head, {}};
  if (!source.starts_with(kPng) || head.size() < kPngSize + 8) return std::nullopt;
  const ImageSize size = png_size(head);
  const bool sound = size.height > 0 && size.width > 0 && size.height <= kMostPixels / size.width;
  return sound ? std::optional(size) : std::nullopt;
}

}  // namespace plimsoll::data
