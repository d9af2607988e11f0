#include "cache/record.h"

#include <cstring>
#include <limits>

#include "core/hash.h"

namespace plimsoll::cache {
namespace {

constexpr std::uint32_t kRecordMagic = 0x46434C50;           // "PLCF"
constexpr std::uint64_t kSegmentMagic = 0x3130676553434C50;  // "PLCSeg01"
constexpr std::uint32_t kMostRows = 1U << 20, kMostWidth = 1U << 20;

// All little endian, as every machine that this runs on is.
struct Header {
  std::uint32_t magic = kRecordMagic;
  std::uint8_t kept = 0;
  std::array<std::uint8_t, 3> zero{};
  std::int64_t sample = 0, stamp = 0;
  std::uint32_t rows = 0, width = 0;
  std::uint64_t payload_checksum = 0;
  std::uint64_t unused = 0;
  std::uint64_t checksum = 0;  // of all before it
};
static_assert(sizeof(Header) == kRecordHeader - 8);

struct Segment {
  std::uint64_t magic = kSegmentMagic, fingerprint = 0;
  std::array<std::uint64_t, 5> unused{};
  std::uint64_t checksum = 0;
};
static_assert(sizeof(Segment) == kSegmentHeader);

template <class T>
std::uint64_t checksum_of(const T& header) {
  return xxh3_64(std::as_bytes(std::span(&header, 1)).first(offsetof(T, checksum)));
}

template <class T, std::size_t kSize>
std::array<std::byte, kSize> bytes_of(const T& header) {
  std::array<std::byte, kSize> bytes{};
  std::memcpy(bytes.data(), &header, sizeof header);
  return bytes;
}

std::size_t value_bytes(Kept kept) {
  switch (kept) {
    case Kept::kBf16:
      return 2;
    case Kept::kF32:
      return 4;
    case Kept::kInt8:
      return 1;
  }
  return 0;
}

}  // namespace

std::size_t payload_bytes(const RecordKey& key) {
  const std::size_t row = key.width * value_bytes(key.kept) + (key.kept == Kept::kInt8 ? sizeof(float) : 0);
  return key.rows * row;
}

std::size_t record_bytes(const RecordKey& key) {
  const std::size_t whole = kRecordHeader + payload_bytes(key);
  return (whole + kRecordAlignment - 1) / kRecordAlignment * kRecordAlignment;
}

std::array<std::byte, kRecordHeader> encode_header(const RecordKey& key, std::uint64_t payload_checksum) {
  Header header;
  header.kept = static_cast<std::uint8_t>(key.kept);
  header.sample = key.sample;
  header.stamp = key.stamp;
  header.rows = key.rows;
  header.width = key.width;
  header.payload_checksum = payload_checksum;
  header.checksum = checksum_of(header);
  return bytes_of<Header, kRecordHeader>(header);
}

std::optional<RecordHeader> decode_header(std::span<const std::byte> bytes) {
  if (bytes.size() < kRecordHeader) return std::nullopt;
  Header header;
  std::memcpy(&header, bytes.data(), sizeof header);
  const RecordKey key{header.sample, header.stamp, header.rows, header.width, static_cast<Kept>(header.kept)};
  if (header.magic != kRecordMagic || header.checksum != checksum_of(header)) return std::nullopt;
  if (value_bytes(key.kept) == 0 || key.sample < 0 || key.stamp < 0 || key.rows > kMostRows || key.width > kMostWidth)
    return std::nullopt;
  return RecordHeader{key, header.payload_checksum};
}

std::array<std::byte, kSegmentHeader> encode_segment_header(std::uint64_t fingerprint) {
  Segment segment;
  segment.fingerprint = fingerprint;
  segment.checksum = checksum_of(segment);
  return bytes_of<Segment, kSegmentHeader>(segment);
}

std::optional<std::uint64_t> decode_segment_header(std::span<const std::byte> bytes) {
  if (bytes.size() < kSegmentHeader) return std::nullopt;
  Segment segment;
  std::memcpy(&segment, bytes.data(), sizeof segment);
  if (segment.magic != kSegmentMagic || segment.checksum != checksum_of(segment)) return std::nullopt;
  return segment.fingerprint;
}

}  // namespace plimsoll::cache
