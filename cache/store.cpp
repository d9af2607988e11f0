#include "cache/store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "cache/layout.h"
#include "core/error.h"
#include "core/file.h"

namespace plimsoll::cache {
namespace {

namespace fs = std::filesystem;

constexpr std::uint32_t kNumberMask = 0xFFFFFF;

/// Others who want the same folder's lock wait as long as this lives.
class FolderLock {
 public:
  explicit FolderLock(const fs::path& folder)
      : file_(::open((folder / kLockFile).c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644)) {
    if (file_ < 0 || ::flock(file_, LOCK_EX) != 0)
      fail(ExitCode::kData, "{}: cannot be locked: {}; give the run rights to it, or choose another cache.dir",
           folder.string(), std::generic_category().message(errno));
  }
  ~FolderLock() { ::close(file_); }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int file_;
};

void make_folder(const fs::path& folder, const Fingerprint& fingerprint) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error)
    fail(ExitCode::kData, "{}: cannot be made: {}; give the run rights to it, or choose another cache.dir",
         folder.string(), error.message());
  const FolderLock lock(folder);  // ranks come here at once
  if (!fs::exists(folder / kFingerprintFile))
    write_file_durably(folder / kFingerprintFile, fingerprint.text(), ExitCode::kData);
}

}  // namespace

Store::Store(StoreOptions options, const Fingerprint& fingerprint)
    : options_(std::move(options)),
      fingerprint_(fingerprint.hash()),
      folder_(options_.dir / folder_name(fingerprint_)) {
  if (options_.dir.empty()) fail(ExitCode::kUsage, "cache.dir is empty; give the folder of the feature cache");
  places_.resize(static_cast<std::size_t>(std::max<std::int64_t>(0, options_.samples)));
  if (!options_.writer.empty()) make_folder(folder_, fingerprint);
  if (!fs::exists(folder_)) return;
  if (fs::exists(folder_ / kFingerprintFile)) {
    const std::string other = fingerprint.difference(read_file(folder_ / kFingerprintFile));
    if (!other.empty())
      fail(ExitCode::kData, "{}: {}; remove the folder, or `plimsoll cache clear`",
           (folder_ / kFingerprintFile).string(), other);
  }
  open_segments();
}

Store::~Store() = default;

void Store::open_segments() {
  for (const fs::path& path : files_of(folder_)) {
    if (path.extension() != kSegment) continue;
    const bool known = std::ranges::any_of(readers_, [&](const auto& reader) { return reader->path() == path; });
    if (known) continue;
    try {
      auto reader = std::make_shared<SegmentReader>(path, fingerprint_);
      const std::scoped_lock lock(mutex_);
      readers_.push_back(std::move(reader));
      good_.push_back(0);
    } catch (const Error& error) {
      findings_.refused.emplace_back(error.what());
      continue;
    }
    ++findings_.segments;
    read_on(static_cast<std::uint32_t>(readers_.size()));
    const SegmentReader& reader = *readers_.back();
    const std::uint64_t all = reader.bytes(), good = good_.back();
    if (all > good && reader.cut(good)) findings_.cut_bytes += all - good;
  }
}

/// What a segment has beyond what was looked through.
void Store::read_on(std::uint32_t number) {
  std::uint64_t& good = good_[number - 1];
  const std::uint64_t before = good;
  const std::scoped_lock lock(mutex_);
  good = readers_[number - 1]->scan(
      [&](const Placed& placed) {
        ++findings_.records;
        if (placed.key.step <= options_.latest_step) take(number, placed);
      },
      before);
  findings_.bytes += good - before;
  bytes_ += good - before;
}

void Store::refresh() {
  for (std::uint32_t number = 1; number <= readers_.size(); ++number)
    if (number != writing_) read_on(number);
  open_segments();
}

// The newer one stays; of two of one step the one that comes later.
void Store::take(std::uint32_t segment, const Placed& placed) {
  const RecordKey& key = placed.key;
  if (key.sample >= std::ssize(places_) || key.step > std::numeric_limits<std::uint32_t>::max()) return;
  Place& place = places_[static_cast<std::size_t>(key.sample)];
  const auto step = static_cast<std::uint32_t>(key.step);
  if (place.segment_and_kept != 0 && place.step > step) return;
  place = {placed.offset, segment | static_cast<std::uint32_t>(key.kept) << 24, key.rows, key.width, step};
}

std::int64_t Store::size() const {
  const std::scoped_lock lock(mutex_);
  return std::ranges::count_if(places_, [](const Place& place) { return place.segment_and_kept != 0; });
}

std::uint64_t Store::bytes() const { return bytes_; }

std::optional<RecordKey> Store::find(std::int64_t sample) const {
  const std::scoped_lock lock(mutex_);
  if (sample < 0 || sample >= std::ssize(places_)) return std::nullopt;
  const Place& place = places_[static_cast<std::size_t>(sample)];
  if (place.segment_and_kept == 0) return std::nullopt;
  return RecordKey{sample, place.step, place.rows, place.width, static_cast<Kept>(place.segment_and_kept >> 24)};
}

bool Store::read(const RecordKey& key, std::span<std::byte> payload) const {
  std::shared_ptr<const SegmentReader> reader;
  std::uint64_t offset = 0;
  {
    const std::scoped_lock lock(mutex_);
    if (key.sample < 0 || key.sample >= std::ssize(places_)) return false;
    const Place& place = places_[static_cast<std::size_t>(key.sample)];
    const std::uint32_t number = place.segment_and_kept & kNumberMask;
    if (number == 0 || place.step != static_cast<std::uint64_t>(key.step)) return false;
    reader = readers_[number - 1];
    offset = place.offset;
  }
  if (reader->read({key, offset}, payload)) return true;
  const std::scoped_lock lock(mutex_);
  Place& place = places_[static_cast<std::size_t>(key.sample)];
  if (place.offset == offset) place = {};
  return false;
}

SegmentWriter& Store::writer() {
  if (writer_ && writer_->bytes() < options_.segment_bytes) return *writer_;
  if (writer_) good_[writing_ - 1] = writer_->bytes();
  writer_.reset();
  const fs::path path = folder_ / fmt::format("{}-{:06}{}", options_.writer, written_segments_, kSegment);
  writer_ = std::make_unique<SegmentWriter>(path, fingerprint_);
  ++written_segments_;
  bytes_ += kSegmentHeader;
  const auto reader = std::make_shared<SegmentReader>(path, fingerprint_);
  const std::scoped_lock lock(mutex_);
  readers_.push_back(reader);
  good_.push_back(0);  // nobody but this process writes it: publish() takes its records
  writing_ = static_cast<std::uint32_t>(readers_.size());
  return *writer_;
}

bool Store::append(const RecordKey& key, std::span<const std::byte> payload) {
  if (options_.writer.empty()) fail(ExitCode::kData, "{}: was opened to be read only", folder_.string());
  if (appended_bytes_ + record_bytes(key) > most_appended_) return false;
  SegmentWriter& into = writer();
  const Placed placed = into.append(key, payload);
  bytes_ += record_bytes(key);
  appended_bytes_ += record_bytes(key);
  appended_.emplace_back(writing_, placed);
  return true;
}

void Store::publish() {
  const std::scoped_lock lock(mutex_);
  for (const auto& [segment, placed] : appended_) take(segment, placed);
  appended_.clear();
}

void Store::sync() {
  if (writer_) writer_->sync();
}

}  // namespace plimsoll::cache
