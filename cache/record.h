#pragma once
// A record of the feature cache and how it lies on disk (docs/cache-format.md). Without torch.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace plimsoll::cache {

/// How features are kept.
enum class Kept : std::uint8_t {
  kBf16 = 1,  ///< two bytes a value, exact
  kF32 = 2,   ///< four, exact
  kInt8 = 3,  ///< a float scale a row, then one byte a value: of a bf16 or fp32 row the nearest of 255 steps
};

/// What a record is about: the features of one sample, [rows, width] row-major.
struct RecordKey {
  std::int64_t sample = 0;  ///< global index in the dataset
  std::int64_t stamp = 0;   ///< when they were made (below); 0 for what never changes
  std::uint32_t rows = 0;
  std::uint32_t width = 0;  ///< values of a row
  Kept kept = Kept::kBf16;
  friend bool operator==(const RecordKey&, const RecordKey&) = default;
};

/// Stamps ascend with the age of the model that made the features: in a step of training, with its dropout, or after it
/// (and its update) in evaluation mode. Whoever reads what was known after a step reads no stamp above the latter.
constexpr std::int64_t stamp_in_step(std::int64_t step) { return 2 * step - 1; }
constexpr std::int64_t stamp_after_step(std::int64_t step) { return 2 * step; }
constexpr bool is_after_step(std::int64_t stamp) { return stamp % 2 == 0; }
/// Steps that had begun.
constexpr std::int64_t step_of_stamp(std::int64_t stamp) { return (stamp + 1) / 2; }

/// Bytes that the features of a key take.
std::size_t payload_bytes(const RecordKey& key);

/// 64 bytes before each payload.
inline constexpr std::size_t kRecordHeader = 64;
/// Payloads begin and end on multiples of it.
inline constexpr std::size_t kRecordAlignment = 64;
/// Header, payload and what fills it up.
std::size_t record_bytes(const RecordKey& key);

std::array<std::byte, kRecordHeader> encode_header(const RecordKey& key, std::uint64_t payload_checksum);

struct RecordHeader {
  RecordKey key;
  std::uint64_t payload_checksum = 0;  ///< xxh3-64
};
/// Nothing for bytes that are no header: too few, another magic number, a checksum that does not fit, a key that cannot
/// be.
std::optional<RecordHeader> decode_header(std::span<const std::byte> bytes);

/// First 64 bytes of a segment: says which fingerprint it belongs to.
inline constexpr std::size_t kSegmentHeader = 64;
std::array<std::byte, kSegmentHeader> encode_segment_header(std::uint64_t fingerprint);
/// The fingerprint; nothing for what is no segment of this version.
std::optional<std::uint64_t> decode_segment_header(std::span<const std::byte> bytes);

}  // namespace plimsoll::cache
