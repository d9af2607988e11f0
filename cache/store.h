#pragma once
// The disk tier of the feature cache: features by sample, in segments, under a fingerprint. Without torch.
//
// <dir>/<16 hex digits of the fingerprint's hash>/
//   fingerprint.json                 what they are features of
//   <writer>-<number>.segment        records; see StoreOptions::writer
//   <writer>-<number>.segment.index  where they lie; made anew where it is missing
//
// Any number of processes may have one folder open; each writes segments of its own. Nothing that is torn, damaged, or
// of another fingerprint is ever returned.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "cache/fingerprint.h"
#include "cache/segment.h"

namespace plimsoll::cache {

struct StoreOptions {
  std::filesystem::path dir;  ///< cache.dir
  std::int64_t samples = 0;   ///< of the dataset: no record of a sample from here on is believed
  /// Begins the names of this process's segments; no two processes may have the same. Of two records of one stamp the
  /// one in the segment of the later name counts: names that begin with the time do best. Empty: nothing is written.
  std::string writer;
  std::int64_t latest_stamp = std::numeric_limits<std::int64_t>::max();  ///< records stamped later are passed over
  std::int64_t oldest_stamp = 0;                                         ///< and those stamped before this
  /// Of what was made after a step (record.h), nothing stamped from here on is read: a rebuild that is not complete.
  std::int64_t unfinished_stamp = std::numeric_limits<std::int64_t>::max();
  std::uint64_t segment_bytes = std::uint64_t{1} << 30;  ///< from which on the next one is begun
};

/// What opening, or looking again, came upon.
struct StoreFindings {
  std::int64_t segments = 0, records = 0;
  std::vector<std::string> refused;  ///< segments that are not used, each with the reason
};

/// What clear_older() removed.
struct Cleared {
  std::int64_t segments = 0, records = 0;
  std::uint64_t bytes = 0;
};

/// The newest record of each sample. find() and read() may be called from any thread; the rest comes from one.
///
/// Memory: 24 bytes a sample of the dataset, and 32 (with what the allocator adds, 34) for each record of the segment
/// that is being written, for each that is not published, and for each that is passed over for its stamp. With a record
/// a sample that is at most 64 bytes a record, while it is opened too (bench/cache_bench.cpp measures it).
class Store {
 public:
  /// Opens the folder of the fingerprint, making it where something is to be written. Segments that are no good are
  /// left alone and named in findings(). Throws Error(kData) when the folder cannot be made or read.
  Store(StoreOptions options, const Fingerprint& fingerprint);
  ~Store();

  const StoreFindings& findings() const { return findings_; }
  const std::filesystem::path& folder() const { return folder_; }
  std::int64_t size() const;                      ///< samples with a record
  std::uint64_t bytes() const { return bytes_; }  ///< of all segments that are known here
  std::optional<RecordKey> find(std::int64_t sample) const;
  /// The features of the sample, as `key` from find() says, checked. False when they are not what was written, or no
  /// longer there: the sample is forgotten then.
  bool read(const RecordKey& key, std::span<std::byte> payload) const;

  /// Whether the sample has a record that is not published yet.
  bool is_appended(std::int64_t sample) const {
    return sample >= 0 && sample < std::ssize(unpublished_) && unpublished_[static_cast<std::size_t>(sample)];
  }
  /// From now on this process appends no more than so many bytes.
  void set_most_appended(std::uint64_t bytes) { most_appended_ = appended_bytes_ + bytes; }
  /// Writes a record, which find() gives from publish() on. False when there is no room for it. Throws Error(kData)
  /// when the disk refuses; what was appended before is kept.
  bool append(const RecordKey& key, std::span<const std::byte> payload);
  /// Makes visible what was appended, here and by other processes since it was last looked; of records of one sample
  /// the newest. Records stamped later than `latest_stamp`, and those that the options' unfinished_stamp means, go on
  /// being passed over, until they are no longer. Records stamped before `oldest_stamp` are forgotten.
  void publish(std::int64_t latest_stamp = std::numeric_limits<std::int64_t>::max(), std::int64_t oldest_stamp = 0,
               std::int64_t unfinished_stamp = std::numeric_limits<std::int64_t>::max());
  /// What was appended survives a power cut. Throws Error(kData).
  void sync();
  /// What is appended next goes to another segment.
  void end_segment();
  /// Removes the segments of which all records are stamped before `stamp`, which is at most the oldest_stamp of the
  /// last publish(), and that nobody writes: this process's, or of all. A file that cannot be removed stays.
  Cleared clear_older(std::int64_t stamp, bool of_all);

 private:
  struct Place {  // 24 bytes a sample
    std::uint64_t offset = 0;
    std::uint32_t segment_and_kept = 0;  // kept in the upper 8 bits; 0: no place
    std::uint32_t rows = 0, width = 0, stamp = 0;
  };
  static_assert(sizeof(Place) == 24);
  /// A record that is passed over, until a publish() says otherwise.
  struct Late {
    std::int64_t sample = 0;
    Place place;
  };
  static_assert(sizeof(Late) == 32);
  /// Records of a segment that are not published: its entries from `from` on. They outlive their writer.
  struct Appended {
    std::uint32_t segment = 0;
    std::shared_ptr<const IndexEntries> entries;
    std::size_t from = 0;
  };

  void refresh();
  void open_segments();
  void open(const std::filesystem::path& path);
  void read_on(std::uint32_t number);
  bool lacks_index(const std::filesystem::path& segment) const;
  bool is_in_time(std::int64_t stamp) const;
  void take(std::int64_t sample, const Place& place);
  void take_in_time(std::uint32_t segment, const Placed& placed);
  void note_appended(std::int64_t sample);
  SegmentWriter& writer();

  StoreOptions options_;
  std::uint64_t fingerprint_;
  std::filesystem::path folder_;
  StoreFindings findings_;
  mutable std::mutex mutex_;  ///< of places_ and segments_
  mutable std::vector<Place> places_;
  std::vector<std::shared_ptr<const SegmentReader>> segments_;  ///< numbered from 1
  std::vector<std::uint64_t> good_;                             ///< bytes of each that were looked through
  std::vector<std::int64_t> newest_;                            ///< stamps of each
  std::vector<std::int64_t> records_;                           ///< of each, that were seen or written
  std::set<std::filesystem::path> known_;                       ///< used or refused
  std::unique_ptr<SegmentWriter> writer_;
  std::uint32_t writing_ = 0;  ///< number of the segment that is being written
  std::int64_t written_segments_ = 0;
  std::uint64_t bytes_ = 0, appended_bytes_ = 0;
  std::uint64_t most_appended_ = std::numeric_limits<std::uint64_t>::max();
  std::vector<Appended> appended_;
  std::vector<bool> unpublished_;  ///< by sample, of what is in appended_; empty before the first
  std::deque<Late> later_;
};

}  // namespace plimsoll::cache
