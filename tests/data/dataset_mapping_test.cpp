#include "data/dataset_mapping.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "core/error.h"
#include "tests/data/lerobot_files.h"
#include "tests/data/model_files.h"

namespace plimsoll::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Names = std::vector<std::string>;

DatasetMapping with_cameras(const std::string& path, const Names& cameras, const Names& missing = {}) {
  DatasetMapping mapping;
  mapping.path = path;
  mapping.cameras = cameras;
  mapping.missing_cameras = missing;
  return mapping;
}

std::vector<ResolvedMapping> resolved(const std::vector<DatasetMapping>& given, const Names& roles = {}) {
  return resolve_mappings(given, {roles, "observation.state", "action", ""}, "data.mix");
}

std::string mapping_error(const std::vector<DatasetMapping>& given, const Names& roles = {}) {
  try {
    resolved(given, roles);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    return error.what();
  }
  return "no error";
}

TEST(DatasetMapping, OrdersCamerasByRoles) {
  const std::vector<DatasetMapping> given = {with_cameras("/data/a", {"front=top", "wrist=hand"}),
                                             with_cameras("/data/b", {"wrist=gripper_cam", "front"})};
  auto mappings = resolved(given);
  EXPECT_THAT(mappings[0].cameras, ElementsAre("top", "hand"));
  EXPECT_THAT(mappings[1].cameras, ElementsAre("front", "gripper_cam"));
  mappings = resolved(given, {"wrist", "front"});
  EXPECT_THAT(mappings[0].cameras, ElementsAre("hand", "top"));
  EXPECT_THAT(mappings[1].cameras, ElementsAre("gripper_cam", "front"));
}

TEST(DatasetMapping, TakesFeaturesOfTheRolesNames) {
  const auto mappings = resolved({with_cameras("/data/a", {"front=top", "wrist"}), with_cameras("/data/b", {}),
                                  with_cameras("/data/c", {}, {"front"})});
  EXPECT_THAT(mappings[1].cameras, ElementsAre("front", "wrist"));
  EXPECT_THAT(mappings[2].cameras, ElementsAre("wrist"));
}

TEST(DatasetMapping, TakesTheFirstDatasetsCamerasWhereNothingIsNamed) {
  const TestFolder folder;
  write_counting_dataset(folder.file("set"), {2});
  const auto mappings = resolved({with_cameras(folder.file("set"), {}), with_cameras("/data/b", {})});
  EXPECT_THAT(mappings[1].cameras, ElementsAre("observation.images.top", "observation.images.wrist"));
}

TEST(DatasetMapping, LeavesMissingCamerasOutOnlyIfSaidSo) {
  const auto first = with_cameras("/data/a", {"front=top", "wrist=hand"});
  EXPECT_THAT(resolved({first, with_cameras("/data/b", {"front=top"}, {"wrist"})})[1].cameras, ElementsAre("top"));
  EXPECT_THAT(resolved({first, with_cameras("/data/b", {}, {"wrist", "front"})})[1].cameras, IsEmpty());
  EXPECT_THAT(mapping_error({first, with_cameras("/data/b", {"front=top"})}),
              AllOf(HasSubstr("data.mix[1] (/data/b)"), HasSubstr("wrist=FEATURE"), HasSubstr("missing_cameras")));
  EXPECT_THAT(mapping_error({first, with_cameras("/data/b", {"front=top", "wrist=x"}, {"wrist"})}),
              HasSubstr("\"wrist\""));
  EXPECT_THAT(mapping_error({first, with_cameras("/data/b", {"front=top"}, {"wrist", "side"})}), HasSubstr("\"side\""));
}

TEST(DatasetMapping, RefusesRolesThatDoNotFit) {
  EXPECT_THAT(mapping_error({with_cameras("/data/a", {"front=top", "front=hand"})}),
              AllOf(HasSubstr("data.mix[0] (/data/a)"), HasSubstr("top"), HasSubstr("hand")));
  EXPECT_THAT(mapping_error({with_cameras("/data/a", {"side=top"})}, {"front"}),
              AllOf(HasSubstr("side=top"), HasSubstr("front")));
  EXPECT_THAT(mapping_error({with_cameras("/data/a", {"front="})}), HasSubstr("front="));
}

TEST(DatasetMapping, FillsInWhatHoldsForAll) {
  auto own = with_cameras("/data/a", {"front"});
  own.state = "joints";
  own.action_dimensions = {2, 0};
  const auto mapping = resolved({own})[0];
  EXPECT_EQ(mapping.state.feature, "joints");
  EXPECT_EQ(mapping.action.feature, "action");
  EXPECT_THAT(mapping.action.dimensions, ElementsAre(2, 0));
  EXPECT_EQ(mapping.sensor.feature, "");
}

TEST(DatasetMapping, NamesDatasets) {
  auto mappings = resolved({with_cameras("/data/a/", {"x"}), with_cameras("/more/b", {"x"})});
  EXPECT_EQ(mappings[0].name, "a");
  EXPECT_EQ(mappings[1].name, "b");
  mappings = resolved({with_cameras("/data/a", {"x"}), with_cameras("/more/a", {"x"})});
  EXPECT_EQ(mappings[0].name, "/data/a") << "folders of one name give way to their paths";
  EXPECT_EQ(mappings[1].name, "/more/a");
  auto named = with_cameras("/data/a", {"x"});
  named.name = "kitchen";
  EXPECT_EQ(resolved({named})[0].name, "kitchen");
  EXPECT_THAT(mapping_error({named, named}), AllOf(HasSubstr("kitchen"), HasSubstr("data.mix[1]")));
}

TEST(DatasetMapping, GivesAllDatasetsWeightsOrNone) {
  auto first = with_cameras("/data/a", {"x"}), second = with_cameras("/data/b", {"x"});
  EXPECT_FALSE(resolved({first, second})[1].weight.has_value());
  first.weight = 2;
  EXPECT_THAT(mapping_error({first, second}),
              AllOf(HasSubstr("data.mix[1].weight (/data/b) is \"auto\""), HasSubstr("data.mix[0].weight is 2")));
  second.weight = 0.5;
  const auto mappings = resolved({first, second});
  EXPECT_EQ(mappings[0].weight, 2.0);
  EXPECT_EQ(mappings[1].weight, 0.5);
  for (const double weight : {0.0, -1.0, std::numeric_limits<double>::infinity(), std::nan("")}) {
    second.weight = weight;
    EXPECT_THAT(mapping_error({first, second}),
                AllOf(HasSubstr("data.mix[1].weight (/data/b) is"), HasSubstr("give a number above 0")));
  }
  second.weight = "often";
  EXPECT_THAT(mapping_error({first, second}), HasSubstr("data.mix[1].weight (/data/b) is \"often\""));
}

}  // namespace
}  // namespace plimsoll::data
