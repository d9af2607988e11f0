#include "core/file.h"

#include <gmock/gmock.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "core/bytes.h"
#include "core/hash.h"
#include "core/setting.h"
#include "tests/error_of.h"

namespace plimsoll {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class File : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) / ("file-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::size_t files() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(folder_), {}));
  }
  std::filesystem::path folder_;
};

/// Bounds the size of files for one test: a write beyond it fails as on a full disk (EFBIG in ENOSPC's place).
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    previous_ = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, previous_);
  }

 private:
  rlimit before_{};
  void (*previous_)(int) = SIG_DFL;
};

TEST_F(File, DurableWriteReplacesAndLeavesNoOtherFile) {
  write_file_durably(folder_ / "a", "one");
  write_file_durably(folder_ / "a", "second");
  EXPECT_EQ(read_file(folder_ / "a"), "second");
  EXPECT_EQ(files(), 1u);
}

TEST_F(File, WithoutCommitNothingAppears) {
  {
    DurableFile file(folder_ / "a");
    file.write(std::as_bytes(std::span("abc", 3)));
    EXPECT_EQ(file.digest(), xxh3_128(std::as_bytes(std::span("abc", 3))));
    EXPECT_FALSE(std::filesystem::exists(folder_ / "a"));
  }
  EXPECT_EQ(files(), 0u);
}

TEST_F(File, NoSpaceIsAnErrorThatKeepsTheOldFile) {
  write_file_durably(folder_ / "a", "old");
  const FileSizeLimit limit(1000);
  try {
    write_file_durably(folder_ / "a", std::string(5000, 'x'));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr((folder_ / "a").string()), HasSubstr("1000 B"), HasSubstr("File too large")));
  }
  EXPECT_EQ(read_file(folder_ / "a"), "old");
  EXPECT_EQ(files(), 1u);
}

TEST_F(File, AFullDeviceSaysSo) {
  if (::access("/dev/full", W_OK) != 0) GTEST_SKIP() << "no /dev/full here";
  std::filesystem::create_symlink("/dev/full", folder_ / ("full.part-" + std::to_string(::getpid())));
  try {
    write_file_durably(folder_ / "full", "x");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("No space left"), HasSubstr("free space")));
  }
  EXPECT_EQ(files(), 0u);
}

TEST_F(File, ErrorsNameTheFileAndCarryTheCode) {
  EXPECT_THAT(error_of(ExitCode::kData, [&] { read_file(folder_ / "no"); }),
              AllOf(HasSubstr("/no"), HasSubstr("check the path")));
  EXPECT_THAT(error_of(ExitCode::kUsage, [&] { read_file(folder_, ExitCode::kUsage); }), HasSubstr("folder"));
  EXPECT_THAT(error_of(ExitCode::kCheckpoint, [&] { write_file_durably(folder_ / "no/x", ""); }), HasSubstr("no/x"));
  EXPECT_THAT(error_of([&] { fsync_directory(folder_ / "no"); }), HasSubstr("/no"));
  EXPECT_THAT(error_of([&] { rename_durably(folder_ / "no", folder_ / "yes"); }), HasSubstr("/yes"));
}

TEST_F(File, ReadsWhatHasNoSize) {
  EXPECT_THAT(read_file("/proc/self/status"), HasSubstr("Name:"));
  const std::string large(300000, 'z');
  write_file_durably(folder_ / "large", large);
  EXPECT_EQ(read_file(folder_ / "large"), large);
}

TEST(Hash, KnownValuesAndPieces) {
  EXPECT_EQ(xxh3_64({}), 0x2D06800538D394C2u);
  EXPECT_EQ(xxh3_128({}), "99aa06d3014798d86001c324468d497f");
  const std::string text(1000, 'q');
  const auto bytes = std::as_bytes(std::span(text));
  Hasher hasher;
  hasher.update(bytes.first(333));
  hasher.update(bytes.subspan(333));
  EXPECT_EQ(hasher.digest_64(), xxh3_64(bytes));
  EXPECT_EQ(hasher.digest_128(), xxh3_128(bytes));
  EXPECT_THROW(xxh3_128_of_file("no/such/file"), Error);
}

TEST(Bytes, ReadsWhatPeopleWrite) {
  EXPECT_EQ(parse_bytes("4096", "k"), 4096);
  EXPECT_EQ(parse_bytes("24GiB", "k"), 24_GiB);
  EXPECT_EQ(parse_bytes(" 24 GB ", "k"), 24'000'000'000);
  EXPECT_EQ(parse_bytes("1.5gib", "k"), 1536_MiB);
  EXPECT_EQ(parse_bytes("300MiB", "k"), 300_MiB);
  EXPECT_EQ(parse_bytes("7B", "k"), 7);
  EXPECT_EQ(parse_bytes("0", "k"), 0);
  for (const char* bad : {"", "GiB", "-1", "1e3", "12 parsecs", "nan", "inf", "99999999999999TiB", "1GiB2"}) {
    EXPECT_THROW(parse_bytes(bad, "memory.budget"), Error) << bad;
  }
}

TEST(Bytes, ReadsSizesThatMayBeWords) {
  EXPECT_EQ(bytes_or_auto("auto", "cache.host_bytes"), std::nullopt);
  EXPECT_EQ(bytes_or_auto("none", "cache.host_bytes"), 0);
  EXPECT_EQ(bytes_or_auto("2GiB", "cache.host_bytes"), 2_GiB);
  EXPECT_EQ(bytes_or_auto(4096, "cache.host_bytes"), 4096);
  EXPECT_THAT(error_of(ExitCode::kUsage, [] { bytes_or_auto("many", "cache.host_bytes"); }),
              AllOf(HasSubstr("cache.host_bytes"), HasSubstr("many")));
}

TEST(Bytes, WritesWhatPeopleRead) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1.00 KiB");
  EXPECT_EQ(format_bytes(312_MiB), "312.0 MiB");
  EXPECT_EQ(format_bytes(1536_MiB), "1.50 GiB");
  EXPECT_EQ(format_bytes(1_MiB - 1), "1.00 MiB");
  EXPECT_EQ(format_bytes(-5_GiB), "-5.00 GiB");
}

}  // namespace
}  // namespace plimsoll
