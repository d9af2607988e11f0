#include "launcher/doctor.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "launcher/gpu.h"
#include "train/config.h"

namespace plimsoll {
namespace {

using ::testing::HasSubstr;

TEST(Doctor, FindsEverythingOnce) {
  std::vector<std::string> names;
  for (const Finding& finding : examine("runs/none")) {
    names.push_back(finding.name);
    EXPECT_FALSE(finding.value.empty()) << finding.name;
  }
  EXPECT_THAT(names, ::testing::ElementsAre("plimsoll", "cores", "memory", "gpu", "libtorch", "mpirun", "ffmpeg",
                                            "disk", "limits"));
}

TEST(Doctor, AFolderThatCannotBeMadeIsBad) {
  const auto findings = examine("/proc/no/such/run");
  const auto disk = std::find_if(findings.begin(), findings.end(), [](const Finding& f) { return f.name == "disk"; });
  EXPECT_FALSE(disk->ok);
  EXPECT_THAT(disk->advice, HasSubstr("run.dir"));
}

TEST(Doctor, TextAndJsonSayTheSame) {
  const std::vector<Finding> findings{{"cores", "2", true, "unused"}, {"disk", "1 B", false, "free \"space\""}};
  EXPECT_EQ(findings_as_text(findings), "ok   cores     2\nBAD  disk      1 B\n               -> free \"space\"\n");
  const auto json = nlohmann::json::parse(findings_as_json(findings));
  EXPECT_EQ(json["ok"], false);
  EXPECT_EQ(json["findings"][0]["advice"], "");
  EXPECT_EQ(json["findings"][1]["advice"], "free \"space\"");
}

TEST(Doctor, GpusOrAReason) {
  const GpuReport report = ask_gpus();
  EXPECT_NE(report.gpus.empty(), report.problem.empty());
}

}  // namespace
}  // namespace plimsoll
