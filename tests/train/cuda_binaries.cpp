// What lies in the CUDA library's file: machine code for the architectures that cmake/cuda.cmake names, and PTX, which
// a driver compiles for what came after them.

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <set>
#include <string>
#include <utility>

#include "core/file.h"
#include "train/device.h"

namespace plimsoll::train {
namespace {

// A fatbin as nvcc 13 writes it for each source: a magic number, a version, the header's size, the bytes behind it.
// Then its binaries, each behind a header of its own: kind, version, the header's size, the content's, and at 28 the
// architecture. NVIDIA documents none of it.
constexpr std::uint32_t kMagic = 0xBA55ED50U;
constexpr std::uint16_t kPtx = 1, kMachineCode = 2;

/// Kind and architecture.
using Binary = std::pair<std::uint16_t, std::uint32_t>;

template <class Value>
Value value_at(const std::string& bytes, std::size_t at) {
  Value value{};
  if (at + sizeof value <= bytes.size()) std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

/// Where the next fatbin begins; npos: there is none.
std::size_t find_fatbin(const std::string& bytes, std::size_t from) {
  std::string magic(sizeof kMagic, '\0');
  std::memcpy(magic.data(), &kMagic, sizeof kMagic);
  std::size_t at = bytes.find(magic, from);
  while (at != std::string::npos && value_at<std::uint16_t>(bytes, at + 4) != 1) at = bytes.find(magic, at + 1);
  return at;
}

std::set<Binary> binaries_of(const std::string& bytes, std::size_t fatbin) {
  std::set<Binary> found;
  std::size_t at = fatbin + value_at<std::uint16_t>(bytes, fatbin + 6);
  const std::size_t end = at + value_at<std::uint64_t>(bytes, fatbin + 8);
  while (at < end) {
    found.emplace(value_at<std::uint16_t>(bytes, at), value_at<std::uint32_t>(bytes, at + 28));
    const std::size_t size = value_at<std::uint32_t>(bytes, at + 4) + value_at<std::uint64_t>(bytes, at + 8);
    if (size == 0 || at + size > bytes.size()) return {};  // this is no fatbin
    at += size;
  }
  return found;
}

TEST(CudaBinaries, AreOfBothArchitecturesAndPtx) {
  const auto library = std::filesystem::read_symlink("/proc/self/exe").parent_path() / kDeviceLibraryFile;
  if (!std::filesystem::exists(library)) GTEST_SKIP() << library << " was not built: no nvcc was found";
  const std::string bytes = read_file(library);
  const std::set<Binary> wanted = {{kPtx, 90}, {kMachineCode, 80}, {kMachineCode, 90}};
  std::size_t sources = 0;
  for (std::size_t at = find_fatbin(bytes, 0); at != std::string::npos; at = find_fatbin(bytes, at + 1)) {
    EXPECT_EQ(binaries_of(bytes, at), wanted) << "the fatbin at byte " << at;
    ++sources;
  }
  EXPECT_GT(sources, 5U) << "or it is not known any more how nvcc lays them out";
}

}  // namespace
}  // namespace plimsoll::train
