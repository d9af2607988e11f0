#include "cache/segment.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"

namespace plimsoll::cache {
namespace {

constexpr std::uint64_t kIndexMagic = 0x3130787849434C50;  // "PLCIxx01"
constexpr std::size_t kScanWindow = std::size_t{1} << 20;

struct IndexHead {
  std::uint64_t magic = kIndexMagic, fingerprint = 0, good = 0, count = 0, checksum = 0;  // of all entries
};

struct IndexEntry {
  std::int64_t sample = 0, step = 0;
  std::uint64_t offset = 0;
  std::uint32_t rows = 0, width_and_kept = 0;  // kept in the upper 8 bits
};
static_assert(sizeof(IndexEntry) == 32);

IndexEntry entry_of(const Placed& placed) {
  const RecordKey& key = placed.key;
  return {key.sample, key.step, placed.offset, key.rows, key.width | static_cast<std::uint32_t>(key.kept) << 24};
}

Placed placed_of(const IndexEntry& entry) {
  return {{entry.sample, entry.step, entry.rows, entry.width_and_kept & 0xFFFFFFU,
           static_cast<Kept>(entry.width_and_kept >> 24)},
          entry.offset};
}

/// As many bytes as there are, up to what `into` takes.
std::size_t read_at(int file, std::uint64_t offset, std::span<std::byte> into) {
  std::size_t done = 0;
  while (done < into.size()) {
    const auto got = ::pread(file, into.data() + done, into.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

/// Entries of the index of a segment of `size` bytes; none where it is missing, damaged, or of another segment.
std::vector<IndexEntry> read_index(const std::filesystem::path& segment, std::uint64_t fingerprint, std::uint64_t size,
                                   std::uint64_t& good) {
  std::vector<IndexEntry> entries;
  const int file = ::open(index_path(segment).c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return entries;
  IndexHead head;
  struct stat status {};
  const bool whole = read_at(file, 0, std::as_writable_bytes(std::span(&head, 1))) == sizeof head &&
                     ::fstat(file, &status) == 0 && head.magic == kIndexMagic && head.fingerprint == fingerprint &&
                     head.good <= size &&
                     static_cast<std::uint64_t>(status.st_size) == sizeof head + head.count * sizeof(IndexEntry);
  if (whole) {
    entries.resize(head.count);
    const auto bytes = std::as_writable_bytes(std::span(entries));
    const bool fits = read_at(file, sizeof head, bytes) == bytes.size() && xxh3_64(bytes, head.good) == head.checksum;
    if (!fits) entries.clear();
    if (fits) good = head.good;
  }
  ::close(file);
  return entries;
}

}  // namespace

SegmentWriter::SegmentWriter(std::filesystem::path path, std::uint64_t fingerprint) : path_(std::move(path)) {
  file_ = ::open(path_.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0644);
  if (file_ < 0) give_up("made");
  if (::flock(file_, LOCK_EX | LOCK_NB) != 0) give_up("locked");
  write(encode_segment_header(fingerprint));
}

SegmentWriter::~SegmentWriter() {
  if (file_ < 0) return;
  try {
    std::array<std::byte, kSegmentHeader> head{};
    const bool read = read_at(file_, 0, head) == head.size();
    const auto fingerprint = read ? decode_segment_header(head) : std::nullopt;
    if (!broken_ && fingerprint) write_index(path_, *fingerprint, end_, placed_);
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch): whoever opens the segment scans it then
  }
  ::close(file_);
}

void SegmentWriter::give_up(const char* doing) {
  const int reason = errno;
  broken_ = true;
  if (file_ >= 0 && ::ftruncate(file_, static_cast<off_t>(end_)) != 0) {
    // What is torn stays; whoever opens the segment cuts it off.
  }
  const char* advice = reason == ENOSPC || reason == EDQUOT ? "free some space, choose another cache.dir, or lower its "
                                                              "size; what is in the cache is kept"
                                                            : "give the run rights to it, or choose another cache.dir";
  fail(ExitCode::kData, "{}: cannot be {}: {}; {}", path_.string(), doing, std::generic_category().message(reason),
       advice);
}

void SegmentWriter::write(std::span<const std::byte> bytes) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const auto put = ::pwrite(file_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(end_ + done));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) give_up("written");
    done += static_cast<std::size_t>(put);
  }
  end_ += done;
}

Placed SegmentWriter::append(const RecordKey& key, std::span<const std::byte> payload) {
  if (broken_) fail(ExitCode::kData, "{}: takes no more after an error; start the run again", path_.string());
  if (payload.size() != payload_bytes(key))
    fail(ExitCode::kData, "{}: sample {} has {} bytes of features and should have {}", path_.string(), key.sample,
         payload.size(), payload_bytes(key));
  // In one piece: half a record is what a crash leaves, not what every error does.
  std::vector<std::byte> record(record_bytes(key));
  std::ranges::copy(encode_header(key, xxh3_64(payload)), record.begin());
  std::ranges::copy(payload, record.begin() + kRecordHeader);
  const Placed placed{key, end_};
  write(record);
  placed_.push_back(placed);
  return placed;
}

void SegmentWriter::sync() {
  if (::fdatasync(file_) != 0) give_up("synced");
}

SegmentReader::SegmentReader(std::filesystem::path path, std::uint64_t fingerprint) : path_(std::move(path)) {
  file_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (file_ < 0) fail(ExitCode::kData, "{}: cannot be opened: {}", path_.string(), std::strerror(errno));
  std::array<std::byte, kSegmentHeader> head{};
  const bool whole = read_at(file_, 0, head) == head.size();
  const auto found = whole ? decode_segment_header(head) : std::nullopt;
  if (found == fingerprint) return;
  ::close(file_);
  fail(
      ExitCode::kData, "{}: {}; remove it, or `plimsoll cache clear`", path_.string(),
      found ? "is of another fingerprint than its folder" : "is no segment of a feature cache, or its head is damaged");
}

SegmentReader::~SegmentReader() { ::close(file_); }

std::uint64_t SegmentReader::bytes() const {
  struct stat status {};
  return ::fstat(file_, &status) == 0 ? static_cast<std::uint64_t>(status.st_size) : 0;
}

std::uint64_t SegmentReader::scan(const std::function<void(const Placed&)>& found, std::uint64_t before) const {
  const std::uint64_t size = bytes();
  std::array<std::byte, kSegmentHeader> head{};
  read_at(file_, 0, head);
  std::uint64_t good = std::max<std::uint64_t>(before, kSegmentHeader);
  if (before == 0) {
    for (const IndexEntry& entry : read_index(path_, decode_segment_header(head).value_or(0), size, good))
      found(placed_of(entry));
  }
  std::vector<std::byte> window;
  std::uint64_t from = good;  // of the window
  for (;;) {
    if (good < from || good + kRecordHeader > from + window.size()) {
      from = good;
      window.resize(kScanWindow);
      window.resize(read_at(file_, from, window));
    }
    const auto header = decode_header(std::span(window).subspan(std::min<std::size_t>(good - from, window.size())));
    if (!header || good + record_bytes(header->key) > size) return good;
    found({header->key, good});
    good += record_bytes(header->key);
  }
}

bool SegmentReader::cut(std::uint64_t good) const {
  if (bytes() <= good) return true;
  const int file = ::open(path_.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) return false;
  const bool done = ::flock(file, LOCK_EX | LOCK_NB) == 0 && ::ftruncate(file, static_cast<off_t>(good)) == 0;
  ::close(file);
  return done;
}

bool SegmentReader::read(const Placed& placed, std::span<std::byte> payload) const {
  std::array<std::byte, kRecordHeader> head{};
  if (payload.size() != payload_bytes(placed.key) || read_at(file_, placed.offset, head) != head.size()) return false;
  const auto header = decode_header(head);
  if (!header || header->key != placed.key) return false;
  return read_at(file_, placed.offset + kRecordHeader, payload) == payload.size() &&
         xxh3_64(payload) == header->payload_checksum;
}

std::filesystem::path index_path(const std::filesystem::path& segment) { return segment.string() + ".index"; }

void write_index(const std::filesystem::path& segment, std::uint64_t fingerprint, std::uint64_t good,
                 std::span<const Placed> records) {
  std::vector<IndexEntry> entries;
  entries.reserve(records.size());
  for (const Placed& placed : records) entries.push_back(entry_of(placed));
  IndexHead head;
  head.fingerprint = fingerprint;
  head.good = good;
  head.count = entries.size();
  head.checksum = xxh3_64(std::as_bytes(std::span(entries)), good);
  DurableFile file(index_path(segment), ExitCode::kData);
  file.write(std::as_bytes(std::span(&head, 1)));
  file.write(std::as_bytes(std::span(entries)));
  file.commit();
}

}  // namespace plimsoll::cache
