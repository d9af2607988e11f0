#include "cache/segment.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
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
constexpr std::size_t kIndexBlock = 4096;  // entries that are read or written at once
/// Bytes of a payload that are read at once, to be checksummed while they lie in the core's own cache (L2): smaller
/// pieces cost calls, larger ones come back from memory. bench/cache_bench.cpp says which serves.
constexpr std::size_t kPayloadPiece = std::size_t{256} << 10;

struct IndexHead {
  std::uint64_t magic = kIndexMagic, fingerprint = 0, good = 0, count = 0, checksum = 0;  // of all entries
};

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

/// A file to read; none (-1) where it cannot be opened.
class Opened {
 public:
  explicit Opened(const std::filesystem::path& path) : file_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~Opened() {
    if (file_ >= 0) ::close(file_);
  }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
  int file() const { return file_; }
  std::uint64_t size() const {
    struct stat status {};
    return file_ >= 0 && ::fstat(file_, &status) == 0 ? static_cast<std::uint64_t>(status.st_size) : 0;
  }

 private:
  int file_;
};

/// Calls `use` for the `count` entries of an index, block by block. False when they cannot all be read.
bool read_entries(int file, std::uint64_t count, const std::function<void(std::span<const IndexEntry>)>& use) {
  std::vector<IndexEntry> block(std::min<std::uint64_t>(kIndexBlock, count));
  for (std::uint64_t done = 0; done < count;) {
    const auto some = std::span(block).first(std::min<std::uint64_t>(block.size(), count - done));
    const auto bytes = std::as_writable_bytes(some);
    if (read_at(file, sizeof(IndexHead) + done * sizeof(IndexEntry), bytes) != bytes.size()) return false;
    use(some);
    done += some.size();
  }
  return true;
}

/// Calls `found` for each record in the index of a segment of `size` bytes, and returns the bytes that it covers;
/// nothing where it is missing, damaged, or of another segment. It is read twice: nothing in it is believed before all
/// of it has been checked.
std::optional<std::uint64_t> read_index(const std::filesystem::path& segment, std::uint64_t fingerprint,
                                        std::uint64_t size, const std::function<void(const Placed&)>& found) {
  const Opened opened(index_path(segment));
  IndexHead head;
  if (read_at(opened.file(), 0, std::as_writable_bytes(std::span(&head, 1))) != sizeof head) return std::nullopt;
  const std::uint64_t rest = opened.size() - sizeof head;
  const bool whole = head.magic == kIndexMagic && head.fingerprint == fingerprint && head.good <= size &&
                     rest % sizeof(IndexEntry) == 0 && head.count == rest / sizeof(IndexEntry);
  if (!whole) return std::nullopt;
  Hasher hasher(head.good ^ head.count);
  const auto check = [&hasher](std::span<const IndexEntry> entries) { hasher.update(std::as_bytes(entries)); };
  if (!read_entries(opened.file(), head.count, check) || hasher.digest_64() != head.checksum) return std::nullopt;
  std::uint64_t covered = kSegmentHeader;
  const bool all = read_entries(opened.file(), head.count, [&](std::span<const IndexEntry> entries) {
    for (const IndexEntry& entry : entries) {
      const Placed placed = placed_of(entry);
      found(placed);
      covered = placed.offset + record_bytes(placed.key);
    }
  });
  return all ? head.good : covered;  // a disk that fails in between: the records themselves say the rest
}

/// Has the system fetch what lies on the disk only; it would fetch no more than some pieces ahead of who reads them.
void fetch_ahead(int file, std::uint64_t offset, std::size_t size) {
  std::byte last{};
  iovec one{&last, 1};
  // Where the last byte is in memory the rest is as a rule; then this costs next to nothing.
  if (::preadv2(file, &one, 1, static_cast<off_t>(offset + size - 1), RWF_NOWAIT) == 1) return;
  ::posix_fadvise(file, static_cast<off_t>(offset), static_cast<off_t>(size), POSIX_FADV_WILLNEED);
}

/// Fills `payload` from there; whether all of it came, with that checksum.
bool read_checked(int file, std::uint64_t offset, std::span<std::byte> payload, std::uint64_t checksum) {
  if (payload.size() <= kPayloadPiece)
    return read_at(file, offset, payload) == payload.size() && xxh3_64(payload) == checksum;
  fetch_ahead(file, offset, payload.size());
  Hasher hasher;
  for (std::size_t done = 0; done < payload.size();) {
    const auto piece = payload.subspan(done, std::min(kPayloadPiece, payload.size() - done));
    if (read_at(file, offset + done, piece) != piece.size()) return false;
    hasher.update(piece);
    done += piece.size();
  }
  return hasher.digest_64() == checksum;
}

}  // namespace

IndexEntry entry_of(const Placed& placed) {
  const RecordKey& key = placed.key;
  return {key.sample, key.stamp, placed.offset, key.rows, key.width | static_cast<std::uint32_t>(key.kept) << 24};
}

Placed placed_of(const IndexEntry& entry) {
  return {{entry.sample, entry.stamp, entry.rows, entry.width_and_kept & 0xFFFFFFU,
           static_cast<Kept>(entry.width_and_kept >> 24)},
          entry.offset};
}

SegmentWriter::SegmentWriter(std::filesystem::path path, std::uint64_t fingerprint)
    : path_(std::move(path)), fingerprint_(fingerprint) {
  file_ = ::open(path_.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0644);
  if (file_ < 0) give_up("made");
  ::flock(file_, LOCK_EX | LOCK_NB);
  try {
    write(encode_segment_header(fingerprint));
  } catch (...) {
    ::unlink(path_.c_str());
    ::close(file_);
    throw;
  }
}

SegmentWriter::~SegmentWriter() {
  try {
    write_index(path_, fingerprint_, end_, *entries_);
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch): whoever opens the segment scans it then
  }
  ::close(file_);
}

void SegmentWriter::give_up(const char* doing) {
  const int reason = errno;
  broken_ = true;
  if (file_ >= 0 && ::ftruncate(file_, static_cast<off_t>(end_)) != 0) {
    // What is torn stays, and is passed over.
  }
  const char* advice = reason == ENOSPC || reason == EDQUOT ? "free some space, choose another cache.dir, or lower "
                                                              "cache.disk_bytes; what is in the cache is kept"
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
  record_.resize(record_bytes(key));
  std::ranges::copy(encode_header(key, xxh3_64(payload)), record_.begin());
  std::ranges::copy(payload, record_.begin() + kRecordHeader);
  std::fill(record_.begin() + static_cast<std::ptrdiff_t>(kRecordHeader + payload.size()), record_.end(), std::byte{0});
  const Placed placed{key, end_};
  write(record_);
  entries_->push_back(entry_of(placed));
  return placed;
}

void SegmentWriter::sync() {
  if (::fdatasync(file_) != 0) give_up("synced");
}

SegmentReader::SegmentReader(std::filesystem::path path, std::uint64_t fingerprint)
    : path_(std::move(path)), fingerprint_(fingerprint) {
  const Opened opened(path_);
  if (opened.file() < 0)
    fail(ExitCode::kData, "{}: cannot be opened: {}; give the run rights to it, or choose another cache.dir",
         path_.string(), std::generic_category().message(errno));
  std::array<std::byte, kSegmentHeader> head{};
  const bool whole = read_at(opened.file(), 0, head) == head.size();
  const auto found = whole ? decode_segment_header(head) : std::nullopt;
  if (found != fingerprint)
    fail(ExitCode::kData, "{}: {}; remove it, or `plimsoll cache clear`", path_.string(),
         found ? "is of another fingerprint than its folder"
               : "is no segment of a feature cache, or its head is damaged");
}

std::uint64_t SegmentReader::bytes() const { return Opened(path_).size(); }

std::uint64_t SegmentReader::scan(const std::function<void(const Placed&)>& found, std::uint64_t before) const {
  const Opened opened(path_);
  const std::uint64_t size = opened.size();
  std::uint64_t good = std::max<std::uint64_t>(before, kSegmentHeader);
  if (size <= good) return good;
  if (before == 0) good = read_index(path_, fingerprint_, size, found).value_or(good);
  // Small records are read many at once; of large ones only the heads.
  std::vector<std::byte> window(kRecordHeader);
  std::uint64_t from = 0, filled = 0;  // of the window
  for (;;) {
    if (good < from || good + kRecordHeader > from + filled) {
      from = good;
      filled = read_at(opened.file(), from, window);
    }
    const auto header = decode_header(std::span(window).first(filled).subspan(std::min(good - from, filled)));
    if (!header || good + record_bytes(header->key) > size) return good;
    found({header->key, good});
    const std::size_t step = record_bytes(header->key);
    window.resize(step < kScanWindow / 64 ? kScanWindow : kRecordHeader);
    if (window.size() == kRecordHeader) filled = 0;
    good += step;
  }
}

std::int64_t SegmentReader::hidden_behind(std::uint64_t good) const {
  const Opened opened(path_);
  std::int64_t hidden = 0;
  std::vector<std::byte> window(kScanWindow);
  for (std::uint64_t from = good + kRecordAlignment;; from += window.size()) {
    const std::size_t filled = read_at(opened.file(), from, window);
    if (filled < kRecordHeader) return hidden;
    for (std::size_t at = 0; at + kRecordHeader <= filled; at += kRecordAlignment)
      hidden += decode_header(std::span(window).subspan(at)) ? 1 : 0;
  }
}

bool SegmentReader::read(const Placed& placed, std::span<std::byte> payload) const {
  const Opened opened(path_);
  std::array<std::byte, kRecordHeader> head{};
  if (payload.size() != payload_bytes(placed.key) || read_at(opened.file(), placed.offset, head) != head.size())
    return false;
  const auto header = decode_header(head);
  if (!header || header->key != placed.key) return false;
  return read_checked(opened.file(), placed.offset + kRecordHeader, payload, header->payload_checksum);
}

bool is_being_written(const std::filesystem::path& segment) {
  const Opened opened(segment);
  return opened.file() >= 0 && ::flock(opened.file(), LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

std::filesystem::path index_path(const std::filesystem::path& segment) { return segment.string() + ".index"; }

void write_index(const std::filesystem::path& segment, std::uint64_t fingerprint, std::uint64_t good,
                 const IndexEntries& records) {
  const auto in_blocks = [&records](const std::function<void(std::span<const std::byte>)>& use) {
    std::vector<IndexEntry> block;
    for (auto from = records.begin(); from != records.end();) {
      const auto to = from + std::min<std::ptrdiff_t>(kIndexBlock, records.end() - from);
      block.assign(from, to);
      use(std::as_bytes(std::span(block)));
      from = to;
    }
  };
  IndexHead head;
  head.fingerprint = fingerprint;
  head.good = good;
  head.count = records.size();
  Hasher hasher(head.good ^ head.count);
  in_blocks([&hasher](std::span<const std::byte> bytes) { hasher.update(bytes); });
  head.checksum = hasher.digest_64();
  DurableFile file(index_path(segment), ExitCode::kData);
  file.write(std::as_bytes(std::span(&head, 1)));
  in_blocks([&file](std::span<const std::byte> bytes) { file.write(bytes); });
  file.commit();
}

}  // namespace plimsoll::cache
