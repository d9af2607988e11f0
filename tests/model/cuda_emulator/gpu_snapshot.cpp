// What a failure leaves is a snapshot that PyTorch's own memory viewer opens, if a Python with torch is there to try
// it: PLIMSOLL_PYTHON, or python3.

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "core/file.h"
#include "tests/model/cuda_emulator/comparison.h"
#include "tests/model/cuda_emulator/on_a_gpu.h"

namespace plimsoll::model {
namespace {

// The viewer's functions add up the blocks of each segment and walk the trace. Without a file they are given a snapshot
// that is right and one whose blocks do not add up, to see that they can tell.
constexpr const char* kOpen = R"(
import pickle
import sys

try:
    from torch.cuda import _memory_viz
except (ImportError, OSError):
    sys.exit(77)


def check(snapshot):
    assert snapshot["segments"] and any(snapshot["device_traces"]), "nothing is in it"
    _memory_viz.segsum(snapshot)
    _memory_viz.trace(snapshot)
    assert "<html>" in _memory_viz.segment_plot(snapshot)


def made_up(unused):
    blocks = [{"size": 512, "requested_size": 400, "state": "active_allocated", "frames": []},
              {"size": unused, "requested_size": 0, "state": "inactive", "frames": []}]
    segment = {"address": 4096, "total_size": 2097152, "allocated_size": 512, "stream": 0, "blocks": blocks}
    return {"segments": [segment], "device_traces": [[{"action": "alloc", "addr": 4096, "size": 512, "stream": 0}]]}


if len(sys.argv) > 1:
    with open(sys.argv[1], "rb") as file:
        check(pickle.load(file))
    sys.exit(0)
check(made_up(2097152 - 512))
try:
    check(made_up(100))
except AssertionError:
    sys.exit(0)
sys.exit("a segment whose blocks do not add up was taken")
)";
constexpr int kNoTorch = 77;

struct Said {
  int code;  ///< of the script; 127: there is no Python
  std::string text;
};

Said run_python(const std::string& argument) {
  const std::string base = fmt::format("{}plimsoll-open-snapshot-{}", testing::TempDir(), ::getpid());
  const std::string script = base + ".py", output = base + ".txt";
  std::ofstream(script) << kOpen;
  const char* chosen = std::getenv("PLIMSOLL_PYTHON");
  const std::string python = chosen == nullptr ? "python3" : chosen;
  const std::string command = fmt::format("'{}' '{}' {} > '{}' 2>&1", python, script, argument, output);
  const int status = std::system(command.c_str());
  Said said{WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(output)};
  for (const std::string& made : {script, output}) std::filesystem::remove(made);
  return said;
}

bool is_missing(const Said& said) { return said.code == kNoTorch || said.code == 126 || said.code == 127; }
constexpr const char* kMissing = "no Python with torch: name one in PLIMSOLL_PYTHON";

TEST(Gpu, TheViewerTellsASnapshotThatIsWrong) {
  const Said said = run_python("");
  if (is_missing(said)) GTEST_SKIP() << kMissing;
  EXPECT_EQ(said.code, 0) << said.text;
}

TEST(SnapshotOnAGpu, OpensInPyTorchsViewer) {
  const std::filesystem::path file = testing::TempDir() + "plimsoll-snapshot-to-open.pickle";
  std::filesystem::remove(file);
  const at::TensorOptions there = at::TensorOptions(gpu().place).dtype(kFloat);
  gpu().memory->snapshot_next_failure(file);
  const Tensor held = at::zeros({1000}, there);
  EXPECT_THROW(at::empty({gpu().total}, there), c10::OutOfMemoryError);
  ASSERT_TRUE(gpu().memory->take_snapshot() == file) << "a failure left no snapshot";
  const Said said = run_python(fmt::format("'{}'", file.string()));
  if (is_missing(said)) GTEST_SKIP() << kMissing;
  EXPECT_EQ(said.code, 0) << said.text;
}

}  // namespace
}  // namespace plimsoll::model
