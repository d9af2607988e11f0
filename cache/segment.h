#pragma once
// One file of records: append-only, written by one process, read by any. Without torch.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "cache/record.h"

namespace plimsoll::cache {

/// Where a record lies.
struct Placed {
  RecordKey key;
  std::uint64_t offset = 0;  ///< of its header
};

/// The same as it lies in an index (docs/cache-format.md), and in memory, where there may be millions.
struct IndexEntry {
  std::int64_t sample = 0, stamp = 0;
  std::uint64_t offset = 0;
  std::uint32_t rows = 0, width_and_kept = 0;  ///< kept in the upper 8 bits
};
static_assert(sizeof(IndexEntry) == 32);
IndexEntry entry_of(const Placed& placed);
Placed placed_of(const IndexEntry& entry);

/// A deque grows without being copied; a vector that does takes up to three times the bytes of its entries.
using IndexEntries = std::deque<IndexEntry>;

/// A segment that is being written. Its file is locked (flock) as long as this lives, where the file system can do
/// that, so that nobody clears it away. One thread.
class SegmentWriter {
 public:
  /// Makes the file, which must not exist, in a folder that does. Throws Error(kData), and leaves no file then.
  SegmentWriter(std::filesystem::path path, std::uint64_t fingerprint);
  /// Writes the index beside it; says nothing when that fails: whoever opens the segment reads it from head to head
  /// then.
  ~SegmentWriter();
  SegmentWriter(const SegmentWriter&) = delete;
  SegmentWriter& operator=(const SegmentWriter&) = delete;

  /// `payload` has payload_bytes(key). Throws Error(kData) when the disk refuses, and says so when it is full; what was
  /// written of the record is cut off again, and the segment takes no more.
  Placed append(const RecordKey& key, std::span<const std::byte> payload);
  /// All that was appended is on the disk, whatever happens to the machine. Throws like append().
  void sync();
  std::uint64_t bytes() const { return end_; }
  const std::filesystem::path& path() const { return path_; }
  /// Of all records, as they are appended; whoever holds it has it when the writer is gone. The writer's thread only.
  std::shared_ptr<const IndexEntries> entries() const { return entries_; }

 private:
  void write(std::span<const std::byte> bytes);
  [[noreturn]] void give_up(const char* doing);

  std::filesystem::path path_;
  std::uint64_t fingerprint_;
  int file_ = -1;
  std::uint64_t end_ = 0;
  bool broken_ = false;
  std::shared_ptr<IndexEntries> entries_ = std::make_shared<IndexEntries>();
  std::vector<std::byte> record_;  ///< being written
};

/// A segment to read. The file is opened for every call: there may be thousands. Threads may share it.
class SegmentReader {
 public:
  /// Throws Error(kData) when it cannot be opened, or is no segment of this version and fingerprint.
  SegmentReader(std::filesystem::path path, std::uint64_t fingerprint);

  /// Calls `found` for each record from the index beside the file, if there is a good one, then for those after it, in
  /// the order in which they were appended, up to the first that is torn or damaged. Returns the bytes that are good. A
  /// payload's checksum is not looked at. `from`: what an earlier scan returned, to go on from there.
  std::uint64_t scan(const std::function<void(const Placed&)>& found, std::uint64_t from = 0) const;
  /// Records that begin behind `good` bytes, where scan() stopped: what damage hides. A torn tail has none.
  std::int64_t hidden_behind(std::uint64_t good) const;
  /// The payload of the record there, checked. False when header or payload are not what was written.
  bool read(const Placed& placed, std::span<std::byte> payload) const;
  std::uint64_t bytes() const;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  std::uint64_t fingerprint_;
};

/// Whether another process writes the segment now, as far as the file system knows.
bool is_being_written(const std::filesystem::path& segment);

/// The index beside a segment: `<segment>.index`.
std::filesystem::path index_path(const std::filesystem::path& segment);
/// Records of the first `good` bytes. Written under a temporary name and renamed. Throws Error(kData).
void write_index(const std::filesystem::path& segment, std::uint64_t fingerprint, std::uint64_t good,
                 const IndexEntries& records);

}  // namespace plimsoll::cache
