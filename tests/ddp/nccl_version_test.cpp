#include "ddp/cuda/nccl_version.h"

#include <gmock/gmock.h>

#include "tests/error_of.h"

namespace plimsoll::ddp {
namespace {

using testing::HasSubstr;

TEST(NcclVersion, IsReadAsPeopleWriteIt) {
  EXPECT_EQ(nccl_version_text(22809), "2.28.9");
  EXPECT_EQ(nccl_version_text(20903), "2.9.3");
  EXPECT_EQ(nccl_version_text(2804), "2.8.4");
}

TEST(NcclVersion, TheSameOrANewerOneServes) {
  EXPECT_EQ(error_of([] { check_nccl_version(22809, 22809); }), "no error");
  EXPECT_EQ(error_of([] { check_nccl_version(22901, 22809); }), "no error");
}

TEST(NcclVersion, AnOlderOneIsRefused) {
  const std::string said = error_of(ExitCode::kUsage, [] { check_nccl_version(22808, 22809); });
  EXPECT_THAT(said, HasSubstr("NCCL 2.28.8 was loaded and 2.28.9"));
  EXPECT_THAT(said, HasSubstr("LD_LIBRARY_PATH"));
  EXPECT_THAT(error_of([] { check_nccl_version(2804, 22809); }), HasSubstr("NCCL 2.8.4 was loaded"));
}

}  // namespace
}  // namespace plimsoll::ddp
