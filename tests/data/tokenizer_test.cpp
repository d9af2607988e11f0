#include "data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "core/error.h"
#include "data/added_tokens.h"
#include "data/bpe.h"
#include "data/byte_alphabet.h"
#include "data/text_splitter.h"
#include "data/tokenizer_maker.h"
#include "data/unicode_text.h"
#include "tests/data/model_files.h"
#include "tests/error_of.h"

namespace plimsoll::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr const char* kQwenPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

std::string reading_error(const std::string& path) {
  return error_of(ExitCode::kData, [&] { const Tokenizer tokenizer(path); });
}

/// The error for a tokenizer.json after `change` was done to it.
template <class Change>
std::string error_after(Change change) {
  static const Json original = ModelFolder().read_json("tokenizer.json");
  const TestFolder folder;
  Json json = original;
  change(json);
  folder.write("tokenizer.json", json.dump());
  const std::string error = reading_error(folder.file("tokenizer.json"));
  EXPECT_THAT(error, HasSubstr(folder.file("tokenizer.json")));
  return error;
}

TEST(ByteAlphabet, SpellsEveryByteAndReadsItBack) {
  for (int byte = 0; byte < 256; ++byte) {
    const std::string text(1, static_cast<char>(byte));
    EXPECT_EQ(ByteAlphabet::read(ByteAlphabet::spell(text)), text);
  }
  EXPECT_EQ(ByteAlphabet::spell(" a\n"), "\u0120a\u010a");
  EXPECT_EQ(ByteAlphabet::read("two words"), std::nullopt);
  EXPECT_EQ(ByteAlphabet::read("\u4e00"), std::nullopt);
  EXPECT_EQ(ByteAlphabet::read("\xC4"), std::nullopt);
}

TEST(UnicodeText, ReplacesWhatIsNoUtf8) {
  EXPECT_EQ(valid_utf8("a\xFF"
                       "b"),
            "a\uFFFDb");
  EXPECT_EQ(valid_utf8("\xE4\xBD"), "\uFFFD\uFFFD");
  EXPECT_EQ(valid_utf8("\u4f60"), "\u4f60");
}

TEST(UnicodeText, ComposesMarks) { EXPECT_EQ(nfc("e\u0301 \u1112\u1161\u11ab"), "\u00e9 \ud55c"); }

TEST(UnicodeText, FindsSpacesAndWords) {
  EXPECT_EQ(leading_space(" \t\u3000a"), 5u);
  EXPECT_EQ(trailing_space("a \u2028"), 4u);
  EXPECT_EQ(trailing_space("   "), 3u);
  EXPECT_TRUE(starts_with_word("\u00e9"));
  EXPECT_TRUE(ends_with_word("a_"));
  EXPECT_FALSE(ends_with_word("a-"));
  EXPECT_FALSE(starts_with_word(""));
}

std::vector<std::string> pieces(const TextSplitter& splitter, std::string_view text) {
  std::vector<std::string> found;
  splitter.split(text, [&](std::string_view piece) { found.emplace_back(piece); });
  return found;
}

TEST(TextSplitter, CutsAsQwenDoes) {
  const TextSplitter splitter({{kQwenPattern, false}}, "here");
  EXPECT_THAT(pieces(splitter, "It's  12 x!\n\n y"), ElementsAre("It", "'s", " ", " ", "1", "2", " x", "!\n\n", " y"));
  EXPECT_THAT(pieces(splitter, "a\u3000 b"), ElementsAre("a", "\u3000", " b"));
  EXPECT_THAT(pieces(splitter, ""), ElementsAre());
}

TEST(TextSplitter, TakesMongolianSeparatorForNoSpace) {
  const TextSplitter splitter({{R"(\s+|[^\s]+)", false}}, "here");
  EXPECT_THAT(pieces(splitter, "a\u180e b"), ElementsAre("a\u180e", " ", "b"));
}

TEST(TextSplitter, AppliesPatternsOneAfterAnotherAndSurvivesEmptyMatches) {
  const TextSplitter literal({{".", true}, {R"(\p{N})", false}}, "here");
  EXPECT_THAT(pieces(literal, "a12.b"), ElementsAre("a", "1", "2", ".", "b"));
  const TextSplitter empty({{"x*", false}}, "here");
  EXPECT_THAT(pieces(empty, "\u00e9xx\u00e9"), ElementsAre("\u00e9", "xx", "\u00e9"));
}

TEST(TextSplitter, StandsLongRuns) {
  const TextSplitter splitter({{kQwenPattern, false}}, "here");
  EXPECT_EQ(pieces(splitter, std::string(200000, ' ')).size(), 1u);
  EXPECT_EQ(pieces(splitter, std::string(200000, 'x')).size(), 1u);
}

TEST(Bpe, MergesTheLowestRankFirst) {
  BpeModel model;
  for (const char* token : {"a", "b", "c", "bc", "ab", "abc"})
    model.vocabulary.emplace_back(token, static_cast<std::int64_t>(model.vocabulary.size()));
  model.merges = {{"b", "c"}, {"a", "b"}, {"a", "bc"}};
  const Bpe bpe(model, "here");
  std::vector<std::int64_t> ids;
  bpe.encode("abcab", ids);
  EXPECT_THAT(ids, ElementsAre(5, 4));
  ids.clear();
  bpe.encode("abcab", ids);  // from the cache now
  EXPECT_THAT(ids, ElementsAre(5, 4));
}

TEST(Bpe, MergesLeftmostFirstAmongEquals) {
  BpeModel model{{{"a", 0}, {"aa", 1}}, {{"a", "a"}}, {}, false, false};
  const Bpe bpe(model, "here");
  std::vector<std::int64_t> ids;
  bpe.encode("aaaaa", ids);
  EXPECT_THAT(ids, ElementsAre(1, 1, 0));
}

TEST(Bpe, LeavesOutOrNamesBytesThatItLacks) {
  BpeModel model{{{"a", 0}, {"?", 1}}, {}, {}, false, false};
  std::vector<std::int64_t> ids;
  Bpe(model, "here").encode("axya", ids);
  EXPECT_THAT(ids, ElementsAre(0, 0));
  model.unknown = "?";
  ids.clear();
  Bpe(model, "here").encode("axya", ids);
  EXPECT_THAT(ids, ElementsAre(0, 1, 1, 0));
  model.fuse_unknown = true;
  ids.clear();
  Bpe(model, "here").encode("axya", ids);
  EXPECT_THAT(ids, ElementsAre(0, 1, 0));
}

TEST(AddedTokens, TakesTheLongestAndObeysFlags) {
  const AddedTokenFinder finder({{.id = 1, .content = "<a>"},
                                 {.id = 2, .content = "<a><b>"},
                                 {.id = 3, .content = "cat", .single_word = true},
                                 {.id = 4, .content = "#", .lstrip = true, .rstrip = true}});
  std::string seen;
  finder.cut(
      "x<a><b><a> cat cats  # y", [&](std::string_view text) { seen += "[" + std::string(text) + "]"; },
      [&](const AddedToken& token) { seen += std::to_string(token.id); });
  EXPECT_EQ(seen, "[x]21[ ]3[ cats]4[y]");
}

TEST(Tokenizer, ReadsBackWhatItWrote) {
  const ModelFolder folder;
  const Tokenizer tokenizer(folder.file("tokenizer.json"));
  EXPECT_EQ(tokenizer.vocabulary_size(), 600);
  for (const std::string text : {"pick up the red block", "\u00fc \u4f60\u597d \U0001F916", "a\n\n  b\tc",
                                 "<|im_start|>user\n<|image_pad|><tool_call>"})
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  EXPECT_THAT(tokenizer.encode("<|im_end|>"), ElementsAre(folder.ids.im_end));
  EXPECT_EQ(tokenizer.token_id("<|image_pad|>"), folder.ids.image_pad);
  EXPECT_EQ(tokenizer.token_id("!"), 0);
  EXPECT_EQ(tokenizer.token_id("<|nobody|>"), std::nullopt);
  EXPECT_TRUE(tokenizer.encode("").empty());
}

TEST(Tokenizer, NormalisesAroundSpecialTokensButNotAcrossThem) {
  const ModelFolder folder;
  const Tokenizer tokenizer(folder.file("tokenizer.json"));
  EXPECT_EQ(tokenizer.encode("e\u0301"), tokenizer.encode("\u00e9"));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("e<|im_end|>\u0301")), "e<|im_end|>\u0301");
}

TEST(Tokenizer, RefusesIdsThatItDoesNotKnow) {
  const ModelFolder folder;
  const Tokenizer tokenizer(folder.file("tokenizer.json"));
  for (const std::int64_t id : {std::int64_t{-1}, std::int64_t{600}, std::int64_t{1} << 40}) {
    const std::vector<std::int64_t> ids{id};
    EXPECT_THROW(tokenizer.decode(ids), Error);
  }
}

TEST(Tokenizer, MayBeSharedByThreads) {
  const ModelFolder folder;
  const Tokenizer tokenizer(folder.file("tokenizer.json"));
  std::string text;
  for (int i = 0; i < 200; ++i) text += "word" + std::to_string(i * 37) + " ";
  const auto expected = Tokenizer(folder.file("tokenizer.json")).encode(text);
  std::vector<std::vector<std::int64_t>> found(4);
  std::vector<std::thread> threads;
  for (auto& ids : found) threads.emplace_back([&] { ids = tokenizer.encode(text); });
  for (std::thread& thread : threads) thread.join();
  for (const auto& ids : found) EXPECT_EQ(ids, expected);
}

TEST(Tokenizer, NamesWhatItDoesNotRead) {
  EXPECT_THAT(reading_error("/nowhere/tokenizer.json"), HasSubstr("/nowhere/tokenizer.json"));
  EXPECT_THAT(error_after([](Json& json) { json["model"]["type"] = "Unigram"; }), HasSubstr("Unigram"));
  EXPECT_THAT(error_after([](Json& json) { json["model"]["byte_fallback"] = true; }), HasSubstr("byte_fallback"));
  EXPECT_THAT(error_after([](Json& json) { json["model"]["dropout"] = 0.1; }), HasSubstr("dropout"));
  EXPECT_THAT(error_after([](Json& json) { json["model"]["end_of_word_suffix"] = "</w>"; }), HasSubstr("</w>"));
  EXPECT_THAT(error_after([](Json& json) { json["normalizer"] = {{"type", "NFKC"}}; }), HasSubstr("NFKC"));
  EXPECT_THAT(error_after([](Json& json) { json["pre_tokenizer"] = nullptr; }), HasSubstr("ByteLevel"));
  EXPECT_THAT(error_after([](Json& json) { json["pre_tokenizer"] = {{"type", "Metaspace"}}; }), HasSubstr("Metaspace"));
  EXPECT_THAT(error_after([](Json& json) { json["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; }),
              HasSubstr("Removed"));
  EXPECT_THAT(error_after([](Json& json) {
                json["post_processor"] = {{"type", "TemplateProcessing"}};
              }),
              HasSubstr("TemplateProcessing"));
  EXPECT_THAT(error_after([](Json& json) { json["decoder"] = {{"type", "Metaspace"}}; }), HasSubstr("Metaspace"));
  EXPECT_THAT(error_after([](Json& json) { json.erase("model"); }), HasSubstr("model"));
}

TEST(Tokenizer, NamesWhatIsDamaged) {
  EXPECT_THAT(error_after([](Json& json) { json["model"]["vocab"]["zqzq"] = 7; }), HasSubstr("id 7"));
  EXPECT_THAT(error_after([](Json& json) { json["model"]["vocab"]["zqzq"] = -7; }), HasSubstr("-7"));
  EXPECT_THAT(error_after([](Json& json) { json["model"]["vocab"]["zqzq"] = "x"; }), HasSubstr("wrong type"));
  EXPECT_THAT(error_after([](Json& json) { json["model"]["merges"].push_back("zq qz"); }), HasSubstr("\"zq\""));
  EXPECT_THAT(error_after([](Json& json) { json["model"]["merges"].push_back("zqqz"); }), HasSubstr("\"zqqz\""));
  EXPECT_THAT(error_after([](Json& json) { json["added_tokens"][0]["id"] = 3; }), HasSubstr("<|endoftext|>"));
  EXPECT_THAT(error_after([](Json& json) { json["added_tokens"][1]["id"] = json["added_tokens"][0]["id"]; }),
              HasSubstr("<|im_start|>"));
  EXPECT_THAT(error_after([](Json& json) { json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a"; }),
              HasSubstr("(a"));
  const ModelFolder folder;
  folder.write("tokenizer.json", folder.read_json("tokenizer.json").dump().substr(0, 5000));
  EXPECT_THAT(reading_error(folder.file("tokenizer.json")), HasSubstr("JSON"));
}

}  // namespace
}  // namespace plimsoll::data
