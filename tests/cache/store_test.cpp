#include "cache/store.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <thread>

#include "cache/survey.h"
#include "core/error.h"
#include "core/file.h"
#include "tests/error_of.h"

namespace plimsoll::cache {
namespace {

namespace fs = std::filesystem;

/// A folder that is gone with the test.
struct Folder {
  fs::path path = fs::path(testing::TempDir()) / fmt::format("plimsoll-cache-{}-{}", ::getpid(), ++count);
  Folder() { fs::remove_all(path); }
  ~Folder() { fs::remove_all(path); }
  static inline int count = 0;
};

Fingerprint fingerprint_of(const std::string& model) {
  Fingerprint fingerprint;
  fingerprint.add("model", model);
  fingerprint.add("layer", "merger");
  return fingerprint;
}

/// Different for every key and reproducible.
std::vector<std::byte> features(const RecordKey& key) {
  std::vector<std::byte> bytes(payload_bytes(key));
  std::mt19937 random(static_cast<unsigned>(key.sample * 7919 + key.stamp));
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

RecordKey key_of(std::int64_t sample, std::int64_t step = 0) {
  return {sample, step, static_cast<std::uint32_t>(3 + sample % 5), 20, Kept::kBf16};
}

StoreOptions options_for(const Folder& folder, const std::string& writer = "rank0") {
  StoreOptions options;
  options.dir = folder.path;
  options.samples = 1000;
  options.writer = writer;
  return options;
}

void append(Store& store, std::int64_t first, std::int64_t last, std::int64_t step = 0) {
  for (std::int64_t sample = first; sample < last; ++sample)
    ASSERT_TRUE(store.append(key_of(sample, step), features(key_of(sample, step))));
}

/// Whether the store has the sample, and what it gives is what was written: nothing else is ever given.
bool has(const Store& store, std::int64_t sample) {
  const auto key = store.find(sample);
  if (!key) return false;
  std::vector<std::byte> payload(payload_bytes(*key));
  if (!store.read(*key, payload)) return false;
  EXPECT_EQ(payload, features(*key)) << "sample " << sample;
  return true;
}

std::int64_t count(const Store& store, std::int64_t samples = 1000) {
  std::int64_t all = 0;
  for (std::int64_t sample = 0; sample < samples; ++sample) all += has(store, sample) ? 1 : 0;
  return all;
}

std::vector<fs::path> segments_of(const Store& store) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(store.folder()))
    if (entry.path().extension() == ".segment") files.push_back(entry.path());
  std::ranges::sort(files);
  return files;
}

TEST(Record, HeadersComeBackAndDamagedOnesDoNot) {
  const RecordKey key{123456789012, 77, 5, 128, Kept::kInt8};
  EXPECT_EQ(payload_bytes(key), 5U * (128 + 4));
  EXPECT_EQ(record_bytes(key) % kRecordAlignment, 0U);
  auto bytes = encode_header(key, 42);
  ASSERT_TRUE(decode_header(bytes));
  EXPECT_EQ(decode_header(bytes)->key, key);
  EXPECT_EQ(decode_header(bytes)->payload_checksum, 42U);
  EXPECT_FALSE(decode_header(std::span(bytes).first(63)));
  for (std::size_t bit = 0; bit < 8 * 56; ++bit) {
    auto damaged = bytes;
    damaged[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
    EXPECT_FALSE(decode_header(damaged)) << "bit " << bit;
  }
}

TEST(Store, GivesBackWhatWasPublished) {
  const Folder folder;
  {
    Store store(options_for(folder), fingerprint_of("a"));
    append(store, 0, 50);
    EXPECT_EQ(count(store), 0) << "not published";
    store.publish();
    EXPECT_EQ(count(store), 50);
    EXPECT_EQ(store.size(), 50);
    append(store, 40, 60, 9);
    EXPECT_EQ(store.find(45)->stamp, 0);
    store.publish();
    EXPECT_EQ(store.find(45)->stamp, 9) << "the newer one";
    EXPECT_EQ(count(store), 60);
  }
  const Store again(options_for(folder, ""), fingerprint_of("a"));
  EXPECT_EQ(count(again), 60);
  EXPECT_EQ(again.findings().records, 70);
  const auto reports = survey(folder.path, true);
  ASSERT_EQ(reports.size(), 1U);
  EXPECT_EQ(reports[0].records, 70);
  EXPECT_EQ(reports[0].samples, 60);
  EXPECT_EQ(reports[0].newest_stamp, 9);
  EXPECT_EQ(reports[0].fingerprint, fingerprint_of("a").text());
  EXPECT_TRUE(reports[0].damaged.empty());
  auto old = options_for(folder, "");
  old.latest_stamp = 8;
  const Store before(old, fingerprint_of("a"));
  EXPECT_EQ(count(before), 50);
  EXPECT_EQ(before.find(45)->stamp, 0) << "what was made after the checkpoint is passed over";
}

TEST(Store, OfAnotherFingerprintHasNothing) {
  const Folder folder;
  {
    Store store(options_for(folder), fingerprint_of("a"));
    append(store, 0, 5);
  }
  const Store other(options_for(folder), fingerprint_of("b"));
  EXPECT_EQ(count(other), 0);
  EXPECT_NE(fingerprint_of("a").hash(), fingerprint_of("b").hash());
  EXPECT_EQ(fingerprint_of("a").difference(fingerprint_of("b").text()), "model: \"b\" there, \"a\" here");
  EXPECT_EQ(fingerprint_of("a").difference(fingerprint_of("a").text()), "");
  // A folder whose file was exchanged, and a segment that was put into another folder.
  const Store first(options_for(folder, ""), fingerprint_of("a"));
  fs::copy(segments_of(first).front(), other.folder() / "moved-000000.segment");
  const Store with_guest(options_for(folder, ""), fingerprint_of("b"));
  EXPECT_EQ(count(with_guest), 0);
  ASSERT_EQ(with_guest.findings().refused.size(), 1U);
  EXPECT_NE(with_guest.findings().refused[0].find("moved-000000.segment: is of another fingerprint"),
            std::string::npos);
  write_file_durably(first.folder() / "fingerprint.json", fingerprint_of("c").text());
  EXPECT_NE(error_of([&] { Store(options_for(folder, ""), fingerprint_of("a")); }).find("\"c\" there, \"a\" here"),
            std::string::npos);
}

TEST(Store, BeginsAnotherSegmentWhenOneIsFullAndStopsAtItsBudget) {
  const Folder folder;
  auto options = options_for(folder);
  options.segment_bytes = 1000;
  std::int64_t taken = 0;
  {
    Store store(options, fingerprint_of("a"));
    store.set_most_appended(10000);
    for (std::int64_t sample = 0; sample < 100; ++sample)
      taken += store.append(key_of(sample), features(key_of(sample))) ? 1 : 0;
    store.publish();
    EXPECT_EQ(count(store), taken);
    EXPECT_LE(store.bytes(), 10000U + kSegmentHeader * segments_of(store).size());
    EXPECT_GT(segments_of(store).size(), 5U);
    const auto before = store.bytes();
    store.publish();
    EXPECT_EQ(store.bytes(), before) << "nobody else has written";
    EXPECT_EQ(count(store), taken);
  }
  EXPECT_GT(taken, 20);
  EXPECT_LT(taken, 100);
  EXPECT_EQ(count(Store(options_for(folder, ""), fingerprint_of("a"))), taken);
}

TEST(Store, SeveralWritersAndReadersShareAFolder) {
  const Folder folder;
  { const Store first(options_for(folder, "rank"), fingerprint_of("a")); }
  std::vector<std::jthread> writers;
  for (int rank = 0; rank < 3; ++rank) {
    writers.emplace_back([&folder, rank] {
      Store store(options_for(folder, fmt::format("rank{}", rank)), fingerprint_of("a"));
      append(store, 100 * rank, 100 * rank + 100);
      store.publish();
      EXPECT_GE(count(store), 100);
    });
  }
  writers.clear();
  Store store(options_for(folder, ""), fingerprint_of("a"));
  EXPECT_EQ(count(store), 300);
  std::vector<std::jthread> readers;
  for (int i = 0; i < 4; ++i) readers.emplace_back([&store] { EXPECT_EQ(count(store), 300); });
  readers.clear();
  EXPECT_NE(error_of([&] { store.append(key_of(1), features(key_of(1))); }).find("read only"), std::string::npos);
}

TEST(Store, FindsWhatOthersHaveWrittenSince) {
  const Folder folder;
  Store mine(options_for(folder, "rank0"), fingerprint_of("a")),
      other(options_for(folder, "rank1"), fingerprint_of("a"));
  append(mine, 0, 10);
  append(other, 10, 20);
  mine.publish();
  mine.publish();
  EXPECT_EQ(count(mine), 20);
  append(other, 20, 30);
  mine.publish();
  EXPECT_EQ(count(mine), 30);
  const auto bytes = mine.bytes();
  mine.publish();
  EXPECT_EQ(mine.bytes(), bytes);
  EXPECT_EQ(mine.findings().refused.size(), 0U);
}

TEST(Store, WhatIsStampedTooLateIsReadWhenItsTimeHasCome) {
  const Folder folder;
  {
    Store gone(options_for(folder, "1-gone"), fingerprint_of("a"));  // came as far as step 7
    append(gone, 0, 10, stamp_in_step(2));
    append(gone, 0, 5, stamp_in_step(7));
  }
  auto options = options_for(folder, "2-resumed");
  options.latest_stamp = stamp_after_step(4);
  Store store(options, fingerprint_of("a"));
  EXPECT_EQ(count(store), 10);
  EXPECT_EQ(store.find(3)->stamp, stamp_in_step(2)) << "what was made after the checkpoint";
  append(store, 3, 7, stamp_in_step(7));
  store.publish(stamp_after_step(6));
  EXPECT_EQ(store.find(3)->stamp, stamp_in_step(2));
  store.publish(stamp_after_step(7));
  EXPECT_EQ(store.find(2)->stamp, stamp_in_step(7)) << "nobody made it again";
  EXPECT_EQ(store.find(3)->stamp, stamp_in_step(7));
  EXPECT_EQ(store.find(8)->stamp, stamp_in_step(2));
  append(store, 3, 4, stamp_after_step(7));
  store.publish(stamp_after_step(7));
  EXPECT_EQ(store.find(3)->stamp, stamp_after_step(7)) << "after the step comes after in it";
  EXPECT_EQ(step_of_stamp(store.find(3)->stamp), 7);
  EXPECT_EQ(step_of_stamp(stamp_in_step(7)), 7);
}

TEST(Store, ARebuildIsReadWhenItIsComplete) {
  const Folder folder;
  auto options = options_for(folder, "1");
  Store store(options, fingerprint_of("a"));
  append(store, 0, 10, stamp_in_step(1));
  store.publish(stamp_in_step(1));
  append(store, 0, 5, stamp_after_step(4));  // a rebuild that began after the fourth step
  append(store, 5, 7, stamp_in_step(6));     // and what the sixth made
  append(store, 7, 8, stamp_after_step(6));
  store.publish(stamp_in_step(6), 0, stamp_after_step(4));
  EXPECT_EQ(store.find(2)->stamp, stamp_in_step(1)) << "not all of it is made";
  EXPECT_EQ(store.find(7)->stamp, stamp_in_step(1));
  EXPECT_EQ(store.find(6)->stamp, stamp_in_step(6)) << "steps are no part of it";
  options.writer = "2";
  options.latest_stamp = stamp_in_step(6);
  options.unfinished_stamp = stamp_after_step(4);
  store.sync();
  const Store resumed(options, fingerprint_of("a"));
  EXPECT_EQ(resumed.find(2)->stamp, stamp_in_step(1));
  append(store, 8, 10, stamp_after_step(7));
  store.publish(stamp_after_step(7), stamp_after_step(4));
  EXPECT_EQ(store.find(2)->stamp, stamp_after_step(4));
  EXPECT_EQ(store.find(7)->stamp, stamp_after_step(6));
  EXPECT_EQ(count(store), 10);
}

TEST(Store, ClearsSegmentsOfWhichNothingIsReadAnyMore) {
  const Folder folder;
  Store mine(options_for(folder, "rank0"), fingerprint_of("a")),
      other(options_for(folder, "rank1"), fingerprint_of("a"));
  append(mine, 0, 10, stamp_in_step(1));
  append(other, 10, 20, stamp_in_step(1));
  mine.publish(stamp_in_step(1));
  EXPECT_EQ(mine.clear_older(stamp_in_step(1), true).segments, 0) << "nothing is too old";
  for (Store* store : {&mine, &other}) store->end_segment();
  append(mine, 0, 10, stamp_after_step(3));
  append(other, 10, 15, stamp_after_step(3));
  mine.publish(stamp_after_step(3), stamp_after_step(3));
  other.publish(stamp_after_step(3), stamp_after_step(3));
  EXPECT_EQ(count(mine), 15) << "five were not made anew, and are too old";
  const auto before = mine.bytes();
  EXPECT_EQ(mine.clear_older(stamp_in_step(1), true).segments, 0) << "a checkpoint needs it";
  const Cleared cleared = mine.clear_older(stamp_after_step(3), true);
  EXPECT_GT(cleared.segments, 0);
  EXPECT_GT(cleared.records, 0);
  EXPECT_GT(cleared.bytes, 0U);
  EXPECT_LT(mine.bytes(), before);
  EXPECT_EQ(segments_of(mine).size(), 2U);
  EXPECT_EQ(count(mine), 15);
  EXPECT_EQ(count(other), 15);
  other.publish(stamp_after_step(4), stamp_after_step(3));
  EXPECT_EQ(count(other), 15) << "files that another has cleared are missed by nobody";
  EXPECT_EQ(other.clear_older(stamp_after_step(3), false).segments, 0);
}

TEST(Store, PassesOverATornTailAndLosesNothingElse) {
  const Folder folder;
  fs::path segment;
  {
    Store store(options_for(folder), fingerprint_of("a"));
    append(store, 0, 20);
    segment = segments_of(store).front();
  }
  const auto whole = fs::file_size(segment);
  const std::uint64_t last = record_bytes(key_of(19));
  for (const std::uint64_t missing : {std::uint64_t{1}, last / 2, last - 1, last - 64, last}) {
    const Folder copy;
    fs::create_directories(copy.path);
    fs::copy(folder.path, copy.path, fs::copy_options::recursive);
    const fs::path torn = copy.path / segment.lexically_relative(folder.path);
    fs::remove(index_path(torn));
    fs::resize_file(torn, whole - missing);
    EXPECT_EQ(survey(copy.path, true).front().torn_bytes, last - missing);
    EXPECT_TRUE(survey(copy.path, true).front().damaged.empty()) << "torn is not damaged";
    EXPECT_EQ(count(Store(options_for(copy), fingerprint_of("a"))), 19) << missing << " bytes missing";
    EXPECT_TRUE(fs::exists(index_path(torn))) << "made anew by whoever may write";
    EXPECT_EQ(count(Store(options_for(copy, ""), fingerprint_of("a"))), 19);
    EXPECT_EQ(fs::file_size(torn), whole - missing) << "nobody touches another's segment";
  }
  // Shorter than its index says: the index is of no use.
  fs::resize_file(segment, whole - 10);
  EXPECT_EQ(count(Store(options_for(folder, ""), fingerprint_of("a"))), 19);
}

TEST(Store, OnlyASegmentThatIsDoneGetsItsIndexFromOthers) {
  const Folder folder;
  Store store(options_for(folder), fingerprint_of("a"));
  append(store, 0, 5);
  const fs::path segment = segments_of(store).front();
  EXPECT_TRUE(is_being_written(segment));
  EXPECT_EQ(survey(folder.path, false).front().being_written, 1);
  const Store other(options_for(folder, "rank1"), fingerprint_of("a"));
  EXPECT_EQ(count(other), 5);
  EXPECT_FALSE(fs::exists(index_path(segment)));
  EXPECT_NE(error_of([&] { clear(folder.path, {"all"}); }).find("a run is writing it"), std::string::npos);
}

TEST(Store, ReadersAndAWriterWorkAtOnce) {
  const Folder folder;
  Store store(options_for(folder), fingerprint_of("a"));
  std::atomic<bool> done = false;
  std::atomic<std::int64_t> read = 0;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  std::vector<std::jthread> readers;
  for (int i = 0; i < 3; ++i)
    readers.emplace_back([&] {
      while (!done) read += count(store);
    });
  for (std::int64_t sample = 0; sample < 1000; ++sample) {
    append(store, sample, sample + 1);
    if (sample % 20 == 0) store.publish();
    // Else the writer may be done before a reader's thread has begun.
    while (read == 0 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  }
  store.publish();
  done = true;
  readers.clear();
  EXPECT_GT(read, 0);
  EXPECT_EQ(count(store), 1000);
}

TEST(Store, ForgetsADamagedRecordAndKeepsTheOthers) {
  const Folder folder;
  fs::path segment;
  {
    Store store(options_for(folder), fingerprint_of("a"));
    append(store, 0, 20);
    segment = segments_of(store).front();
  }
  const auto size = fs::file_size(segment);
  std::mt19937 random(5);
  const std::string whole = read_file(segment);
  for (int i = 0; i < 200; ++i) {
    std::string damaged = whole;
    const std::size_t at = kSegmentHeader + random() % (size - kSegmentHeader);
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << random() % 8));
    std::ofstream(segment, std::ios::binary) << damaged;
    const Store store(options_for(folder, ""), fingerprint_of("a"));
    const auto left = count(store);  // has() compares with what was written
    EXPECT_GE(left, 19);
    EXPECT_EQ(survey(folder.path, true).front().damaged.size(), left == 20 ? 0U : 1U);
    if (left == 19) {
      EXPECT_EQ(store.size(), 19) << "forgotten";
    }
  }
  // Without the index a damaged header hides what follows it, and nothing that is wrong is given.
  fs::remove(index_path(segment));
  std::string damaged = whole;
  damaged[kSegmentHeader + record_bytes(key_of(0)) + 8] ^= 1;
  std::ofstream(segment, std::ios::binary) << damaged;
  EXPECT_EQ(count(Store(options_for(folder, ""), fingerprint_of("a"))), 1);
  const auto report = survey(folder.path, true).front();
  ASSERT_EQ(report.damaged.size(), 1U);
  EXPECT_NE(report.damaged[0].find("18 records behind it are not used"), std::string::npos) << report.damaged[0];
}

TEST(Store, ADamagedIndexIsOfNoUse) {
  const Folder folder;
  fs::path index;
  {
    Store store(options_for(folder), fingerprint_of("a"));
    append(store, 0, 20);
    index = index_path(segments_of(store).front());
  }
  const std::string whole = read_file(index);
  for (std::size_t at = 0; at < 8 * whole.size(); at += at < 8 * 40 ? 1 : 37) {
    std::string damaged = whole;
    damaged[at / 8] = static_cast<char>(damaged[at / 8] ^ (1 << at % 8));
    std::ofstream(index, std::ios::binary) << damaged;
    EXPECT_EQ(count(Store(options_for(folder, ""), fingerprint_of("a"))), 20) << "bit " << at;
  }
  std::ofstream(index, std::ios::binary) << whole.substr(0, 50);
  EXPECT_EQ(count(Store(options_for(folder, ""), fingerprint_of("a"))), 20);
  fs::remove(index);
  EXPECT_EQ(count(Store(options_for(folder, ""), fingerprint_of("a"))), 20);
}

// A process that is killed while it writes: all that it had said to be written is there, and nothing else than that.
TEST(Store, IsWholeAfterItsWriterWasKilledAtAnyMoment) {
  std::mt19937 random(3);
  for (int i = 0; i < 50; ++i) {
    const Folder folder;
    std::array<int, 2> pipe{};
    ASSERT_EQ(::pipe(pipe.data()), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(pipe[0]);
      auto options = options_for(folder);
      options.segment_bytes = 20000;
      Store store(options, fingerprint_of("a"));
      for (std::int64_t sample = 0;; sample = (sample + 1) % 1000) {
        store.append(key_of(sample), features(key_of(sample)));
        if (::write(pipe[1], "x", 1) != 1) _exit(0);
      }
    }
    ::close(pipe[1]);
    ::usleep(static_cast<useconds_t>(500 + random() % 20000));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    std::int64_t said = 0;
    std::array<char, 4096> buffer{};
    for (ssize_t got = 0; (got = ::read(pipe[0], buffer.data(), buffer.size())) > 0;) said += got;
    ::close(pipe[0]);
    const Store store(options_for(folder, ""), fingerprint_of("a"));
    const auto found = count(store);
    EXPECT_GE(found, std::min<std::int64_t>(said, 1000)) << "killed " << i;
    EXPECT_LE(found, std::min<std::int64_t>(said + 1, 1000));
    EXPECT_TRUE(store.findings().refused.size() <= 1) << "a segment that had no head yet";
  }
}

TEST(Store, SaysWhenTheDiskTakesNoMoreAndKeepsWhatItHas) {
  const Folder folder;
  const auto old = ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  {
    Store store(options_for(folder), fingerprint_of("a"));
    append(store, 0, 10);
    store.publish();
    rlimit small = before;
    small.rlim_cur = fs::file_size(segments_of(store).front()) + 100;
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
    const std::string text = error_of([&] { append(store, 10, 11); });
    EXPECT_NE(text.find("rank0-000000.segment: cannot be written"), std::string::npos) << text;
    EXPECT_NE(error_of([&] { append(store, 10, 11); }).find("takes no more"), std::string::npos);
    EXPECT_EQ(count(store), 10);
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  }
  ::signal(SIGXFSZ, old);
  EXPECT_EQ(count(Store(options_for(folder, ""), fingerprint_of("a"))), 10);
  EXPECT_EQ(survey(folder.path, true).front().torn_bytes, 0U) << "what was written of the record is cut off";
}

TEST(Store, NamesAFolderThatItMayNotUse) {
  const Folder folder;
  fs::create_directories(folder.path.parent_path());
  std::ofstream(folder.path) << "a file";
  const std::string text = error_of([&] { Store(options_for(folder), fingerprint_of("a")); });
  EXPECT_NE(text.find(folder.path.string()), std::string::npos) << text;
  EXPECT_NE(text.find("choose another cache.dir"), std::string::npos) << text;
  EXPECT_NE(error_of([&] { Store({}, fingerprint_of("a")); }).find("cache.dir is empty"), std::string::npos);
}

TEST(Survey, AFolderWithoutAFingerprintIsDamagedOnlyWhereRecordsAre) {
  const Folder folder;
  fs::path of_records;
  {
    Store store(options_for(folder), fingerprint_of("a"));
    append(store, 0, 5);
    of_records = store.folder();
  }
  const fs::path begun = Store(options_for(folder), fingerprint_of("b")).folder();  // and killed right then
  fs::remove(begun / "fingerprint.json");
  fs::remove(of_records / "fingerprint.json");
  for (const auto& report : survey(folder.path, true)) {
    EXPECT_TRUE(report.fingerprint.empty());
    EXPECT_EQ(report.damaged.size(), report.folder == begun ? 0U : 1U) << report.folder;
  }
  EXPECT_TRUE(fs::exists(Store(options_for(folder), fingerprint_of("b")).folder() / "fingerprint.json"));
}

TEST(Clear, RemovesCachesAndNothingElse) {
  const Folder folder;
  for (const char* model : {"a", "b"}) {
    Store store(options_for(folder), fingerprint_of(model));
    append(store, 0, 5);
  }
  fs::create_directories(folder.path / "notes");
  const fs::path a = Store(options_for(folder, ""), fingerprint_of("a")).folder();
  const fs::path b = Store(options_for(folder, ""), fingerprint_of("b")).folder();
  EXPECT_EQ(survey(folder.path, true).size(), 2U);
  EXPECT_NE(error_of([&] { clear(folder.path, {"notes"}); }).find("notes: is no folder of a feature cache"),
            std::string::npos);
  EXPECT_GT(clear(folder.path, {a.filename().string()}), 5U * 64);
  EXPECT_FALSE(fs::exists(a));
  EXPECT_EQ(count(Store(options_for(folder, ""), fingerprint_of("b"))), 5);
  std::ofstream(b / "thesis.tex") << "mine";
  EXPECT_NE(error_of([&] { clear(folder.path, {"all"}); }).find("thesis.tex: is no file of a feature cache"),
            std::string::npos);
  EXPECT_TRUE(fs::exists(b / "fingerprint.json")) << "nothing is removed then";
  fs::remove(b / "thesis.tex");
  clear(folder.path, {"all"});
  EXPECT_FALSE(fs::exists(b));
  EXPECT_TRUE(fs::exists(folder.path / "notes"));
  EXPECT_NE(error_of([&] { survey(folder.path / "nowhere", false); }).find("nowhere: cannot be read"),
            std::string::npos);
}

}  // namespace
}  // namespace plimsoll::cache
