// What an index and a payload of several pieces are, and what the store does with entries that outlive their writer.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "cache/store.h"
#include "core/file.h"
#include "core/hash.h"

namespace plimsoll::cache {
namespace {

constexpr std::int64_t kMany = 10000;  // entries: more than two of the blocks in which an index is read and written
constexpr std::size_t kIndexHead = 40;
constexpr RecordKey kTiny{0, 0, 1, 1, Kept::kBf16};

/// A folder with stores of one fingerprint, gone with the test.
class StoreIndex : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::remove_all(dir_); }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  Store open(const std::string& writer, std::uint64_t segment_bytes = std::uint64_t{1} << 30) const {
    Fingerprint fingerprint;
    fingerprint.add("features", "made up");
    StoreOptions options;
    options.dir = dir_;
    options.samples = kMany;
    options.writer = writer;
    options.segment_bytes = segment_bytes;
    return {options, fingerprint};
  }
  /// Appends records of samples [first, last) whose payload is their number.
  static void append_numbered(Store& store, std::int64_t first, std::int64_t last, std::int64_t stamp = 0) {
    RecordKey key = kTiny;
    key.stamp = stamp;
    for (key.sample = first; key.sample < last; ++key.sample) ASSERT_TRUE(store.append(key, numbered(key.sample)));
  }
  static std::vector<std::byte> numbered(std::int64_t sample) {
    const auto number = static_cast<std::uint16_t>(sample);
    std::vector<std::byte> payload(sizeof number);
    std::memcpy(payload.data(), &number, sizeof number);
    return payload;
  }
  static std::int64_t readable(const Store& store) {
    std::int64_t good = 0;
    for (std::int64_t sample = 0; sample < kMany; ++sample) {
      const auto key = store.find(sample);
      std::vector<std::byte> payload(key ? payload_bytes(*key) : 0);
      good += key && store.read(*key, payload) && payload == numbered(sample) ? 1 : 0;
    }
    return good;
  }
  std::filesystem::path only_segment() const {
    std::vector<std::filesystem::path> found;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_))
      if (entry.path().extension() == ".segment") found.push_back(entry.path());
    EXPECT_EQ(found.size(), 1U);
    return found.empty() ? dir_ : found.front();
  }
  static void flip(const std::filesystem::path& file, std::uint64_t at) {
    std::fstream changed(file, std::ios::in | std::ios::out | std::ios::binary);
    changed.seekg(static_cast<std::streamoff>(at));
    const auto byte = static_cast<char>(changed.get() ^ 1);
    changed.seekp(static_cast<std::streamoff>(at));
    changed.put(byte);
    ASSERT_TRUE(changed.flush().good());
  }

  std::filesystem::path dir_ =
      std::filesystem::path(testing::TempDir()) / ("plimsoll-cache-index-" + std::to_string(::getpid()));
};

TEST_F(StoreIndex, OfManyRecordsIsWhatItsFormatSays) {
  {
    Store store = open("rank0");
    append_numbered(store, 0, kMany);
  }
  const std::string index = read_file(index_path(only_segment()));
  ASSERT_EQ(index.size(), kIndexHead + kMany * sizeof(IndexEntry));
  const auto number = [&index](std::size_t at) {
    std::uint64_t value = 0;
    std::memcpy(&value, index.data() + at, sizeof value);
    return value;
  };
  EXPECT_EQ(number(24), static_cast<std::uint64_t>(kMany));
  const auto entries = std::as_bytes(std::span(index)).subspan(kIndexHead);
  EXPECT_EQ(number(32), xxh3_64(entries, number(16) ^ number(24))) << "written in blocks, checksummed as one";
  for (const std::int64_t sample : {std::int64_t{0}, std::int64_t{4096}, kMany - 1}) {
    const std::size_t at = kIndexHead + static_cast<std::size_t>(sample) * sizeof(IndexEntry);
    EXPECT_EQ(number(at), static_cast<std::uint64_t>(sample));
    EXPECT_EQ(number(at + 16), kSegmentHeader + static_cast<std::uint64_t>(sample) * record_bytes(kTiny));
  }
}

TEST_F(StoreIndex, IsBelievedWholeOrNotAtAll) {
  {
    Store store = open("rank0");
    append_numbered(store, 0, kMany);
  }
  const auto segment = only_segment();
  EXPECT_EQ(readable(open("")), kMany);
  flip(segment, kSegmentHeader + 5 * record_bytes(kTiny) + 8);  // the sixth head
  EXPECT_EQ(open("").size(), kMany) << "the index says where all are";
  EXPECT_EQ(readable(open("")), kMany - 1);
  flip(index_path(segment), kIndexHead + 9000 * sizeof(IndexEntry));  // in its last block: those before are fine
  EXPECT_EQ(open("").size(), 5) << "from head to head, up to the damaged one";
  EXPECT_EQ(open("").findings().records, 5) << "nothing was taken from the index";
}

TEST_F(StoreIndex, OfASegmentThatLostItIsMadeAnewAsItWas) {
  {
    Store store = open("rank0");
    append_numbered(store, 0, kMany);
  }
  const auto index = index_path(only_segment());
  const std::string before = read_file(index);
  std::filesystem::remove(index);
  EXPECT_EQ(open("rank1").size(), kMany);
  EXPECT_EQ(read_file(index), before);
}

TEST_F(StoreIndex, EntriesOutliveTheSegmentThatTheyAreOf) {
  Store store = open("rank0", 3 * record_bytes(kTiny));
  append_numbered(store, 0, 2);
  store.publish();
  append_numbered(store, 2, 20);  // into the segment of the first two, and into more after it
  EXPECT_TRUE(store.is_appended(2));
  EXPECT_TRUE(store.is_appended(19));
  EXPECT_FALSE(store.is_appended(0)) << "published";
  EXPECT_FALSE(store.is_appended(20));
  EXPECT_FALSE(store.is_appended(-1));
  EXPECT_FALSE(store.is_appended(kMany));
  EXPECT_EQ(store.size(), 2);
  store.end_segment();
  store.publish();
  EXPECT_FALSE(store.is_appended(19));
  EXPECT_EQ(readable(store), 20);
  append_numbered(store, 20, 21);
  EXPECT_EQ(store.size(), 20);
  store.publish();
  EXPECT_EQ(readable(store), 21);
  EXPECT_EQ(open("").size(), 21);
}

TEST_F(StoreIndex, WhatIsPassedOverKeepsItsPlaceThroughManyPublications) {
  Store store = open("rank0");
  for (std::int64_t stamp = 1; stamp <= 5; ++stamp) append_numbered(store, 0, 10, stamp);
  for (std::int64_t latest = 0; latest <= 5; ++latest) {
    store.publish(latest);
    EXPECT_EQ(store.size(), latest == 0 ? 0 : 10);
    if (latest > 0) {
      EXPECT_EQ(store.find(7)->stamp, latest);
    }
  }
  store.publish(5, 6);
  EXPECT_EQ(store.size(), 0) << "too old";
}

TEST_F(StoreIndex, APayloadOfSeveralPiecesIsCheckedInEachOfThem) {
  const RecordKey large{3, 0, 257, 1111, Kept::kF32};  // some 1.1 MiB, and no multiple of anything
  std::vector<std::byte> payload(payload_bytes(large));
  std::mt19937 random(11);
  for (std::byte& byte : payload) byte = static_cast<std::byte>(random());
  {
    Store store = open("rank0");
    ASSERT_TRUE(store.append(large, payload));
  }
  const auto segment = only_segment();
  std::vector<std::byte> read(payload.size());
  ASSERT_TRUE(open("").read(large, read));
  EXPECT_EQ(read, payload);
  const std::uint64_t begin = kSegmentHeader + kRecordHeader;
  for (std::uint64_t at = 0; at < payload.size(); at += 65536) {
    flip(segment, begin + at);
    const Store damaged = open("");
    EXPECT_FALSE(damaged.read(large, read)) << "byte " << at;
    EXPECT_FALSE(damaged.find(large.sample)) << "forgotten";
    flip(segment, begin + at);
  }
  flip(segment, begin + payload.size() - 1);
  EXPECT_FALSE(open("").read(large, read)) << "the last byte";
  flip(segment, begin + payload.size() - 1);
  EXPECT_TRUE(open("").read(large, read));
}

TEST(HasherOfPieces, SaysWhatTheWholeSays) {
  std::vector<std::byte> bytes(300001);
  std::mt19937 random(5);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{0x9E3779B97F4A7C15}}) {
    for (const std::size_t size :
         {std::size_t{0}, std::size_t{16}, std::size_t{200}, std::size_t{4097}, bytes.size()}) {
      for (const std::size_t piece : {std::size_t{7}, std::size_t{256}, std::size_t{131072}}) {
        const auto whole = std::span<const std::byte>(bytes).first(size);
        Hasher hasher(seed);
        for (std::size_t at = 0; at < size; at += piece) hasher.update(whole.subspan(at, std::min(piece, size - at)));
        EXPECT_EQ(hasher.digest_64(), xxh3_64(whole, seed)) << size << " bytes by " << piece << ", seed " << seed;
      }
    }
  }
}

}  // namespace
}  // namespace plimsoll::cache
