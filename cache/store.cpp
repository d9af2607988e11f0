#include "cache/store.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "cache/layout.h"
#include "core/error.h"
#include "core/file.h"

namespace plimsoll::cache {
namespace {

namespace fs = std::filesystem;

constexpr std::uint32_t kNumberMask = 0xFFFFFF;
constexpr std::size_t kTakenAtOnce = 4096;  // records, while threads that look something up wait

bool is_there(const fs::path& path) {
  std::error_code error;
  const bool there = fs::exists(path, error);
  if (error)
    fail(ExitCode::kData, "{}: cannot be looked at: {}; give the run rights to it, or choose another cache.dir",
         path.string(), error.message());
  return there;
}

// Ranks come here at once; the text is the same, and whoever is last to rename its file writes what is there.
void make_folder(const fs::path& folder, const Fingerprint& fingerprint) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error)
    fail(ExitCode::kData, "{}: cannot be made: {}; give the run rights to it, or choose another cache.dir",
         folder.string(), error.message());
  if (!is_there(folder / kFingerprintFile))
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
  if (!is_there(folder_)) return;
  if (is_there(folder_ / kFingerprintFile)) {
    const std::string other = fingerprint.difference(read_file(folder_ / kFingerprintFile));
    if (!other.empty())
      fail(ExitCode::kData, "{}: {}; remove the folder, or `plimsoll cache clear`",
           (folder_ / kFingerprintFile).string(), other);
  }
  open_segments();
}

Store::~Store() = default;

void Store::open_segments() {
  for (const fs::path& path : files_of(folder_))
    if (path.extension() == kSegment && !known_.contains(path)) open(path);
}

void Store::open(const fs::path& path) {
  std::error_code error;
  if (fs::file_size(path, error) < kSegmentHeader || error) return;  // its writer has only begun, or was killed then
  known_.insert(path);
  try {
    auto segment = std::make_shared<SegmentReader>(path, fingerprint_);
    const std::scoped_lock lock(mutex_);
    segments_.push_back(std::move(segment));
    good_.push_back(0);
    newest_.push_back(-1);
    records_.push_back(0);
  } catch (const Error& refused) {
    findings_.refused.emplace_back(refused.what());
    return;
  }
  ++findings_.segments;
  read_on(static_cast<std::uint32_t>(segments_.size()));
}

// Whether a segment that is done has none, and this process may write it one.
bool Store::lacks_index(const fs::path& segment) const {
  return !options_.writer.empty() && !is_there(index_path(segment)) && !is_being_written(segment);
}

// What a segment has beyond what was looked through, block by block: there may be millions, and threads that read wait
// neither for the disk nor for long.
void Store::read_on(std::uint32_t number) {
  const auto segment = segments_[number - 1];
  std::uint64_t& good = good_[number - 1];
  const bool for_index = good == 0 && lacks_index(segment->path());
  IndexEntries entries;  // of the index that it is given
  std::vector<Placed> block;
  const auto take_block = [&] {
    const std::scoped_lock lock(mutex_);
    for (const Placed& placed : block) take_in_time(number, placed);
    block.clear();
  };
  const auto found = [&](const Placed& placed) {
    ++findings_.records;
    ++records_[number - 1];
    newest_[number - 1] = std::max(newest_[number - 1], placed.key.stamp);
    if (for_index) entries.push_back(entry_of(placed));
    block.push_back(placed);
    if (block.size() == kTakenAtOnce) take_block();
  };
  const std::uint64_t now = segment->scan(found, good);
  take_block();
  bytes_ += now - good;
  good = now;
  if (!for_index || !lacks_index(segment->path())) return;
  try {
    write_index(segment->path(), fingerprint_, good, entries);
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch): the next to open it reads it from head to head again
  }
}

void Store::refresh() {
  for (std::uint32_t number = 1; number <= segments_.size(); ++number)
    if (number != writing_ && is_there(segments_[number - 1]->path())) read_on(number);  // another rank may clear it
  open_segments();
}

// The newer one stays; of two of one stamp the one that comes later.
void Store::take(std::int64_t sample, const Place& place) {
  if (place.stamp < options_.oldest_stamp) return;
  Place& now = places_[static_cast<std::size_t>(sample)];
  if (now.segment_and_kept == 0 || now.stamp <= place.stamp) now = place;
}

std::int64_t Store::size() const {
  const std::scoped_lock lock(mutex_);
  return std::ranges::count_if(places_, [](const Place& place) { return place.segment_and_kept != 0; });
}

std::optional<RecordKey> Store::find(std::int64_t sample) const {
  const std::scoped_lock lock(mutex_);
  if (sample < 0 || sample >= std::ssize(places_)) return std::nullopt;
  const Place& place = places_[static_cast<std::size_t>(sample)];
  if (place.segment_and_kept == 0) return std::nullopt;
  return RecordKey{sample, place.stamp, place.rows, place.width, static_cast<Kept>(place.segment_and_kept >> 24)};
}

bool Store::read(const RecordKey& key, std::span<std::byte> payload) const {
  std::shared_ptr<const SegmentReader> segment;
  Place place;
  {
    const std::scoped_lock lock(mutex_);
    if (key.sample < 0 || key.sample >= std::ssize(places_)) return false;
    place = places_[static_cast<std::size_t>(key.sample)];
    const std::uint32_t number = place.segment_and_kept & kNumberMask;
    if (number == 0 || place.stamp != static_cast<std::uint64_t>(key.stamp)) return false;
    segment = segments_[number - 1];
  }
  if (segment->read({key, place.offset}, payload)) return true;
  const std::scoped_lock lock(mutex_);
  Place& now = places_[static_cast<std::size_t>(key.sample)];
  if (now.offset == place.offset && now.segment_and_kept == place.segment_and_kept) now = {};
  return false;
}

void Store::end_segment() {
  if (!writer_) return;
  good_[writing_ - 1] = writer_->bytes();
  writer_.reset();
  writing_ = 0;
}

Cleared Store::clear_older(std::int64_t stamp, bool of_all) {
  Cleared cleared;
  for (std::uint32_t number = 1; number <= segments_.size(); ++number) {
    const fs::path& path = segments_[number - 1]->path();
    const bool own = path.filename().string().starts_with(options_.writer + "-");
    if (number == writing_ || (!own && !of_all) || options_.writer.empty()) continue;
    if (newest_[number - 1] < 0 || newest_[number - 1] >= std::min(stamp, options_.oldest_stamp) ||
        is_being_written(path))
      continue;
    std::error_code error;
    const auto size = fs::file_size(path, error);
    if (error || !fs::remove(path, error)) continue;
    fs::remove(index_path(path), error);
    newest_[number - 1] = -1;
    bytes_ -= std::min(bytes_, good_[number - 1]);
    ++cleared.segments;
    cleared.records += std::exchange(records_[number - 1], 0);
    cleared.bytes += size;
  }
  return cleared;
}

SegmentWriter& Store::writer() {
  if (writer_ && writer_->bytes() < options_.segment_bytes) return *writer_;
  end_segment();
  const fs::path path = folder_ / fmt::format("{}-{:06}{}", options_.writer, written_segments_++, kSegment);
  auto writer = std::make_unique<SegmentWriter>(path, fingerprint_);
  auto segment = std::make_shared<SegmentReader>(path, fingerprint_);
  known_.insert(path);
  bytes_ += kSegmentHeader;
  const std::scoped_lock lock(mutex_);
  segments_.push_back(std::move(segment));
  newest_.push_back(-1);
  records_.push_back(0);
  good_.push_back(0);  // nobody but this process writes it: publish() takes its records
  writing_ = static_cast<std::uint32_t>(segments_.size());
  writer_ = std::move(writer);
  return *writer_;
}

bool Store::append(const RecordKey& key, std::span<const std::byte> payload) {
  if (options_.writer.empty()) fail(ExitCode::kData, "{}: was opened to be read only", folder_.string());
  if (appended_bytes_ + record_bytes(key) > most_appended_) return false;
  SegmentWriter& segment = writer();
  segment.append(key, payload);
  if (appended_.empty() || appended_.back().segment != writing_)
    appended_.push_back({writing_, segment.entries(), segment.entries()->size() - 1});
  note_appended(key.sample);
  bytes_ += record_bytes(key);
  appended_bytes_ += record_bytes(key);
  newest_[writing_ - 1] = std::max(newest_[writing_ - 1], key.stamp);
  ++records_[writing_ - 1];
  return true;
}

void Store::note_appended(std::int64_t sample) {
  if (unpublished_.empty()) unpublished_.resize(places_.size());
  if (sample >= 0 && sample < std::ssize(unpublished_)) unpublished_[static_cast<std::size_t>(sample)] = true;
}

// What was passed over is the oldest, be it of an attempt that had gone further.
void Store::publish(std::int64_t latest_stamp, std::int64_t oldest_stamp, std::int64_t unfinished_stamp) {
  options_.latest_stamp = latest_stamp;
  options_.oldest_stamp = oldest_stamp;
  options_.unfinished_stamp = unfinished_stamp;
  {
    const std::scoped_lock lock(mutex_);
    for (Place& place : places_)
      if (place.stamp < oldest_stamp) place = {};
    std::erase_if(later_, [this](const Late& late) {
      const bool in_time = is_in_time(late.place.stamp);
      if (in_time) take(late.sample, late.place);
      return in_time;
    });
    for (const Appended& some : appended_)
      for (std::size_t i = some.from; i < some.entries->size(); ++i)
        take_in_time(some.segment, placed_of((*some.entries)[i]));
  }
  appended_.clear();
  unpublished_.assign(unpublished_.size(), false);
  refresh();
}

bool Store::is_in_time(std::int64_t stamp) const {
  const bool unfinished = is_after_step(stamp) && stamp >= options_.unfinished_stamp;
  return stamp <= options_.latest_stamp && !unfinished;
}

// Nothing of a sample that the dataset does not have, or with a stamp that no run comes to, is ever believed.
void Store::take_in_time(std::uint32_t segment, const Placed& placed) {
  const RecordKey& key = placed.key;
  const bool known = key.sample >= 0 && key.sample < std::ssize(places_);
  if (!known || key.stamp < 0 || key.stamp > std::numeric_limits<std::uint32_t>::max()) return;
  const auto stamp = static_cast<std::uint32_t>(key.stamp);
  const Place place{placed.offset, segment | static_cast<std::uint32_t>(key.kept) << 24, key.rows, key.width, stamp};
  if (is_in_time(key.stamp)) {
    take(key.sample, place);
  } else {
    later_.push_back({key.sample, place});
  }
}

void Store::sync() {
  if (writer_) writer_->sync();
}

}  // namespace plimsoll::cache
