#include "data/lerobot_json.h"

#include <gmock/gmock.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/data/model_files.h"
#include "tests/error_of.h"

namespace plimsoll::data {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::SizeIs;

class LeRobotJson : public ::testing::Test {
 protected:
  std::string written(const std::string& text) const {
    folder_.write("some.json", text);
    return folder_.file("some.json");
  }
  TestFolder folder_;
};

TEST_F(LeRobotJson, TakesWhatPythonWritesForNumbersThatAreNotFinite) {
  const auto json = read_json(written(R"({"a": [NaN, -Infinity, Infinity, 1], "said \"NaN\"": "Infinity, he said"})"));
  std::vector<double> values;
  flatten(json["a"], values, "a");
  ASSERT_THAT(values, SizeIs(4));
  EXPECT_TRUE(std::isnan(values[0]));
  EXPECT_TRUE(std::isinf(values[1]) && values[1] < 0);
  EXPECT_TRUE(std::isinf(values[2]) && values[2] > 0);
  EXPECT_EQ(values[3], 1.0);
  EXPECT_EQ(json["said \"NaN\""], "Infinity, he said") << "texts stay as they are";
  EXPECT_EQ(read_json(written(R"({"NaN": "NaN"})"))["NaN"], "NaN");
  const auto lines = read_json_lines(written("{\"a\": 1}\n\n{\"a\": NaN}\n"));
  ASSERT_THAT(lines, SizeIs(2));
  EXPECT_EQ(lines[0]["a"], 1);
  EXPECT_EQ(lines[1]["a"], "NaN");
}

TEST_F(LeRobotJson, NamesFileAndLineOfWhatIsNoJson) {
  EXPECT_THAT(error_of(ExitCode::kData, [&] { read_json(written("{\"a\": NaN")); }),
              AllOf(HasSubstr("some.json"), HasSubstr("is not JSON")));
  EXPECT_THAT(error_of(ExitCode::kData, [&] { read_json(written("{\"a\": Nan}")); }), HasSubstr("is not JSON"));
  EXPECT_THAT(error_of(ExitCode::kData, [&] { read_json_lines(written("{}\n{\"a\": }\n")); }),
              AllOf(HasSubstr("some.json"), HasSubstr("line 2 is not JSON")));
}

}  // namespace
}  // namespace plimsoll::data
