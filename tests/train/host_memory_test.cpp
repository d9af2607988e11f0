// The memory that a process may use, out of the texts that Linux has of it.
#include "train/host_memory.h"

#include <gmock/gmock.h>

#include "core/bytes.h"
#include "core/error.h"

namespace plimsoll::train {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

const char* const kMeminfo =
    "MemTotal:       67108864 kB\nMemFree:         1048576 kB\nMemAvailable:   33554432 kB\nBuffers: 12 kB\n";

void expect_memory(const std::vector<ControlGroup>& groups, std::int64_t total, std::int64_t available) {
  const HostMemory memory = host_memory(kMeminfo, groups);
  EXPECT_EQ(memory.total, total);
  EXPECT_EQ(memory.available, available);
}

std::string bytes_text(std::int64_t bytes) { return std::to_string(bytes) + "\n"; }

TEST(HostMemory, IsTheMachinesWhereNoGroupBoundsIt) {
  expect_memory({}, 64_GiB, 32_GiB);
  expect_memory({{"max\n", bytes_text(9_GiB), "inactive_file 0\n"}}, 64_GiB, 32_GiB);
  expect_memory({{"9223372036854771712\n", bytes_text(9_GiB), ""}}, 64_GiB, 32_GiB);
  expect_memory({{"", "", ""}}, 64_GiB, 32_GiB);
  expect_memory({{"what\n", "is\n", "this\n"}}, 64_GiB, 32_GiB);
}

TEST(HostMemory, IsTheGroupsWhereThatIsLess) {
  expect_memory({{bytes_text(16_GiB), bytes_text(10_GiB), ""}}, 16_GiB, 6_GiB);
  expect_memory({{bytes_text(60_GiB), bytes_text(10_GiB), ""}}, 60_GiB, 32_GiB);
  expect_memory({{bytes_text(16_GiB), bytes_text(17_GiB), ""}}, 16_GiB, 0);
  expect_memory({{bytes_text(16_GiB), "", ""}}, 16_GiB, 16_GiB);
}

TEST(HostMemory, IsTheLeastOfAllGroups) {
  const ControlGroup own{bytes_text(16_GiB), bytes_text(1_GiB), ""}, around{bytes_text(20_GiB), bytes_text(17_GiB), ""},
      all{"max\n", bytes_text(50_GiB), ""};
  expect_memory({own, around, all}, 16_GiB, 3_GiB);
}

TEST(HostMemory, DoesNotCountPagesOfFilesAsUsed) {
  const std::string second = "anon 3221225472\nfile 9663676416\nactive_file 2147483648\ninactive_file 5368709120\n";
  expect_memory({{bytes_text(16_GiB), bytes_text(12_GiB), second}}, 16_GiB, 11_GiB);
  // Of version 1 the lines without "total_" leave out the groups below.
  const std::string first =
      "inactive_file 4096\nactive_file 0\ntotal_inactive_file 5368709120\ntotal_active_file 2147483648\n";
  expect_memory({{bytes_text(16_GiB), bytes_text(12_GiB), first}}, 16_GiB, 11_GiB);
  expect_memory({{bytes_text(8_GiB), bytes_text(2_GiB), second}}, 8_GiB, 8_GiB);
}

TEST(HostMemory, RefusesAMachineThatDoesNotSay) {
  EXPECT_THROW(host_memory("MemTotal: 67108864 kB\n", {}), Error);
  EXPECT_THROW(host_memory("", {}), Error);
}

TEST(HostMemory, FindsTheGroupsOfAProcess) {
  EXPECT_THAT(control_group_folders("0::/system.slice/job_7/step_0\n"),
              ElementsAre("/sys/fs/cgroup/system.slice/job_7/step_0", "/sys/fs/cgroup/system.slice/job_7",
                          "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup"));
  EXPECT_THAT(control_group_folders("0::/\n"), ElementsAre("/sys/fs/cgroup"));
  EXPECT_THAT(control_group_folders("9:name=systemd:/x\n5:cpu,memory:/docker/1\n3:cpuset:/y\n"),
              ElementsAre("/sys/fs/cgroup/memory/docker/1", "/sys/fs/cgroup/memory/docker", "/sys/fs/cgroup/memory"));
  EXPECT_THAT(control_group_folders(""), IsEmpty());
  EXPECT_THAT(control_group_folders("no colon\n0:one\n0::relative\n"), IsEmpty());
}

TEST(HostMemory, KnowsThisMachine) {
  const HostMemory memory = read_host_memory();
  EXPECT_GT(memory.total, 0);
  EXPECT_GT(memory.available, 0);
  EXPECT_LE(memory.available, memory.total);
}

}  // namespace
}  // namespace plimsoll::train
