#include "core/safetensors.h"

#include <gmock/gmock.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/file.h"
#include "core/hash.h"
#include "tests/error_of.h"

namespace plimsoll {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class Safetensors : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) / ("safetensors-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path folder_;
};

std::string file_of(const std::string& header, std::size_t data, std::uint64_t length) {
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + std::string(data, 'x');
}
std::string file_of(const std::string& header, std::size_t data) { return file_of(header, data, header.size()); }

SafetensorsContent parse(const std::string& file) { return parse_safetensors(std::as_bytes(std::span(file)), "m.st"); }

std::string refusal(const std::string& file) {
  std::string text = error_of(ExitCode::kData, [&] { parse(file); });
  if (text == "no error") return "accepted";
  EXPECT_THAT(text, ::testing::StartsWith("m.st: "));
  return text;
}

const char* const kOne = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";

TEST_F(Safetensors, RoundTripIsExactAndDeterministic) {
  const std::vector<float> numbers{1, 2, 3, 4, 5, 6};
  const std::vector<std::byte> small{std::byte{7}, std::byte{8}, std::byte{9}};
  const auto write = [&](const std::string& name, bool swap) {
    std::vector<TensorSource> tensors{{"b.u8", "U8", {3}, small},
                                      {"a.float", "F32", {2, 3}, std::as_bytes(std::span(numbers))},
                                      {"scalar", "I64", {}, {}, [] { return std::vector<std::byte>(8, std::byte{1}); }},
                                      {"empty", "BF16", {0, 4}, {}}};
    if (swap) std::swap(tensors[0], tensors[2]);
    return write_safetensors(folder_ / name, std::move(tensors), {{"format", "pt"}});
  };
  EXPECT_EQ(write("x.safetensors", false), write("y.safetensors", true));
  EXPECT_EQ(read_file(folder_ / "x.safetensors"), read_file(folder_ / "y.safetensors"));
  EXPECT_EQ(write("x.safetensors", false), xxh3_128_of_file(folder_ / "x.safetensors"));

  const SafetensorsFile file(folder_ / "x.safetensors");
  EXPECT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.at("a.float").shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(std::memcmp(file.at("a.float").bytes.data(), numbers.data(), 24), 0);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(file.at("a.float").bytes.data()) % 4, 0u);
  EXPECT_EQ(file.at("scalar").bytes.size(), 8u);
  EXPECT_TRUE(file.at("empty").bytes.empty());
  EXPECT_EQ(file.find("nothing"), nullptr);
  EXPECT_THROW(file.at("nothing"), Error);
}

TEST_F(Safetensors, WriterRefusesWhatItCouldNotRead) {
  const std::vector<std::byte> four(4);
  const auto write = [&](std::vector<TensorSource> tensors) {
    write_safetensors(folder_ / "bad.safetensors", std::move(tensors));
  };
  EXPECT_THROW(write({{"a", "F32", {2}, four}}), Error);
  EXPECT_THROW(write({{"a", "F32", {2}, {}, [] { return std::vector<std::byte>(4); }}}), Error);
  EXPECT_THROW(write({{"a", "F31", {1}, four}}), Error);
  EXPECT_THROW(write({{"a", "F32", {-1}, four}}), Error);
  EXPECT_THROW(write({{"a", "F32", {1}, four}, {"a", "F32", {1}, four}}), Error);
  EXPECT_THROW(write({{"__metadata__", "F32", {1}, four}}), Error);
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

TEST_F(Safetensors, FilesThatCannotBeOpened) {
  EXPECT_THROW(SafetensorsFile(folder_ / "missing.safetensors"), Error);
  EXPECT_THROW(SafetensorsFile{folder_}, Error);
  std::ofstream(folder_ / "empty.safetensors").flush();
  EXPECT_THROW(SafetensorsFile(folder_ / "empty.safetensors"), Error);
  try {
    SafetensorsFile(folder_ / "missing.safetensors", ExitCode::kCheckpoint);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
    EXPECT_THAT(error.what(), HasSubstr("missing.safetensors"));
  }
}

TEST_F(Safetensors, AcceptsWhatTheFormatAllows) {
  EXPECT_EQ(parse(file_of(kOne, 8)).tensors.size(), 1u);
  EXPECT_EQ(parse(file_of(std::string(kOne) + "   ", 8)).tensors.size(), 1u);
  EXPECT_TRUE(parse(file_of("{}", 0)).tensors.empty());
  EXPECT_EQ(parse(file_of(R"({"e":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},)"
                          R"("a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}})",
                          1))
                .tensors.size(),
            2u);
}

TEST_F(Safetensors, HeaderAttacks) {
  EXPECT_THAT(refusal("1234567"), HasSubstr("too few"));
  EXPECT_THAT(refusal(file_of(kOne, 8, 1000)), HasSubstr("ends past the end of the file"));
  EXPECT_THAT(refusal(file_of(kOne, 8, 100'000'001)), HasSubstr("longer than"));
  EXPECT_THAT(refusal(file_of(kOne, 8, ~std::uint64_t{0})), HasSubstr("longer than"));
  EXPECT_THAT(refusal(file_of("", 8)), HasSubstr("begin with '{'"));
  EXPECT_THAT(refusal(file_of(std::string(" ") + kOne, 8)), HasSubstr("begin with '{'"));
  EXPECT_THAT(refusal(file_of("\xEF\xBB\xBF" + std::string(kOne), 8)), HasSubstr("begin with '{'"));
  EXPECT_THAT(refusal(file_of("{\"a\":", 8)), HasSubstr("no JSON"));
  EXPECT_THAT(refusal(file_of(std::string(kOne) + "x", 8)), HasSubstr("no JSON"));
  EXPECT_THAT(refusal(file_of("{\"\xFF\xFE\":1}", 0)), HasSubstr("no JSON in UTF-8"));
  EXPECT_THAT(refusal(file_of("{\"a\":" + std::string(100000, '['), 0)), HasSubstr("nested"));
  EXPECT_THAT(refusal(file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                              R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                              1)),
              HasSubstr("the key \"a\" twice"));
  EXPECT_THAT(refusal(file_of(R"({"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}})", 1)),
              HasSubstr("the key \"dtype\" twice"));
  EXPECT_THAT(refusal(file_of(R"({"__metadata__":{"k":1}})", 0)), HasSubstr("__metadata__"));
  EXPECT_THAT(refusal(file_of(R"({"__metadata__":[]})", 0)), HasSubstr("__metadata__"));
}

std::string one_tensor(const std::string& dtype, const std::string& shape, const std::string& range) {
  return R"({"t":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + range + "}}";
}

TEST_F(Safetensors, TensorAttacks) {
  const auto attack = [](const std::string& dtype, const std::string& shape, const std::string& range) {
    return refusal(file_of(one_tensor(dtype, shape, range), 8));
  };
  EXPECT_THAT(attack("\"F33\"", "[2]", "[0,8]"), AllOf(HasSubstr("\"t\""), HasSubstr("unknown dtype \"F33\"")));
  EXPECT_THAT(attack("3", "[2]", "[0,8]"), HasSubstr("dtype"));
  EXPECT_THAT(attack("\"F32\"", "[3]", "[0,8]"), HasSubstr("need 12"));
  EXPECT_THAT(attack("\"F32\"", "[2]", "[0,9]"), HasSubstr("past the data's end"));
  EXPECT_THAT(attack("\"F32\"", "[2]", "[8,0]"), HasSubstr("no range"));
  EXPECT_THAT(attack("\"F32\"", "[2]", "[0]"), HasSubstr("no range"));
  EXPECT_THAT(attack("\"F32\"", "[2]", "[-1,7]"), HasSubstr("no integer"));
  EXPECT_THAT(attack("\"F32\"", "[-2]", "[0,8]"), HasSubstr("no integer"));
  EXPECT_THAT(attack("\"F32\"", "[2.0]", "[0,8]"), HasSubstr("no integer"));
  EXPECT_THAT(attack("\"F32\"", "\"2\"", "[0,8]"), HasSubstr("no list \"shape\""));
  EXPECT_THAT(attack("\"F32\"", "[4294967296,4294967296]", "[0,8]"), HasSubstr("overflows"));
  EXPECT_THAT(attack("\"U8\"", "[18446744073709551615,2]", "[0,8]"), HasSubstr("overflows"));
  EXPECT_THAT(attack("\"U8\"", "[18446744073709551616]", "[0,8]"), HasSubstr("no integer"));
  EXPECT_THAT(attack("\"F32\"", "[4611686018427387906]", "[0,8]"), HasSubstr("overflows"));
  EXPECT_THAT(refusal(file_of(R"({"t":5})", 0)), HasSubstr("no object"));
  EXPECT_THAT(refusal(file_of(R"({"t":{"dtype":"F32"}})", 0)), HasSubstr("shape"));
}

TEST_F(Safetensors, RangesMustTileTheFile) {
  const auto two = [](const std::string& second, std::size_t data) {
    return refusal(file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                           R"("b":{"dtype":"U8","shape":[4],"data_offsets":)" +
                               second + "}}",
                           data));
  };
  EXPECT_EQ(two("[4,8]", 8), "accepted");
  EXPECT_THAT(two("[3,7]", 7), AllOf(HasSubstr("\"b\""), HasSubstr("overlap")));
  EXPECT_THAT(two("[0,4]", 4), HasSubstr("overlap"));
  EXPECT_THAT(two("[5,9]", 9), HasSubstr("hole of 1 bytes"));
  EXPECT_THAT(two("[4,8]", 9), HasSubstr("1 bytes follow"));
  EXPECT_THAT(two("[4,8]", 7), HasSubstr("past the data's end"));
  EXPECT_THAT(refusal(file_of("{}", 3)), HasSubstr("3 bytes follow"));
}

TEST_F(Safetensors, EveryTruncationAndEveryFlippedHeaderBitIsAnErrorOrAFile) {
  const std::string whole = file_of(kOne, 8);
  for (std::size_t n = 0; n < whole.size(); ++n) EXPECT_NE(refusal(whole.substr(0, n)), "accepted") << n;
  for (std::size_t bit = 0; bit < (whole.size() - 8) * 8; ++bit) {
    std::string flipped = whole;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    refusal(flipped);  // must neither crash nor throw anything but Error
  }
}

}  // namespace
}  // namespace plimsoll
