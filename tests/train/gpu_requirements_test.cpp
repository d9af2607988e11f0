#include <gmock/gmock.h>

#include "tests/error_of.h"
#include "train/cuda/requirements.h"

namespace plimsoll::train {
namespace {

using testing::HasSubstr;

TEST(GpuRequirements, ADriverOfTheSameMajorVersionOrANewerOneServes) {
  EXPECT_EQ(error_of([] { require_driver(13000, 13000); }), "no error");
  EXPECT_EQ(error_of([] { require_driver(13000, 13010); }), "no error") << "minor versions serve each other";
  EXPECT_EQ(error_of([] { require_driver(14020, 13000); }), "no error");
}

TEST(GpuRequirements, AnOlderDriverIsRefused) {
  const std::string said = error_of(ExitCode::kUsage, [] { require_driver(12080, 13000); });
  EXPECT_THAT(said, HasSubstr("knows CUDA 12.8 and this library needs 13.0"));
  EXPECT_THAT(said, HasSubstr("run.device"));
  EXPECT_THAT(error_of([] { require_driver(0, 13000); }), HasSubstr("knows CUDA 0.0")) << "no driver at all";
}

TEST(GpuRequirements, AGpuOlderThanWhatIsBuiltIsRefused) {
  EXPECT_EQ(error_of([] { require_architecture(8, 0, 0, "A100"); }), "no error");
  EXPECT_EQ(error_of([] { require_architecture(12, 0, 0, "a later one"); }), "no error") << "its driver compiles PTX";
  const std::string said = error_of(ExitCode::kUsage, [] { require_architecture(7, 5, 2, "Tesla T4"); });
  EXPECT_THAT(said, HasSubstr("GPU 2 (Tesla T4) has compute capability 7.5 and 8.0 is the least"));
  EXPECT_THAT(said, HasSubstr("CUDA_VISIBLE_DEVICES"));
}

}  // namespace
}  // namespace plimsoll::train
