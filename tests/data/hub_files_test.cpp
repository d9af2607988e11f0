#include "data/hub_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "core/error.h"
#include "data/tokenizer.h"
#include "data/tokenizer_maker.h"
#include "tests/data/model_files.h"

namespace plimsoll::data {
namespace {

TEST(TokenizerMaker, MakesExactlyAsManyTokensAsAsked) {
  for (const std::int64_t size : {256, 257, 700, 5000}) {
    const BpeModel model = make_bpe_model(size);
    std::set<std::string> tokens;
    for (const auto& [token, id] : model.vocabulary) {
      EXPECT_EQ(id, static_cast<std::int64_t>(tokens.size()));
      EXPECT_TRUE(tokens.insert(token).second) << token;
    }
    EXPECT_EQ(static_cast<std::int64_t>(tokens.size()), size);
    EXPECT_EQ(static_cast<std::int64_t>(model.merges.size()), size - 256);
  }
}

TEST(TokenizerMaker, IsTheSameEveryTimeAndALargerOneContinuesASmaller) {
  const BpeModel small = make_bpe_model(400), large = make_bpe_model(900);
  EXPECT_EQ(small.merges, make_bpe_model(400).merges);
  EXPECT_TRUE(std::equal(small.merges.begin(), small.merges.end(), large.merges.begin()));
}

TEST(HubFiles, ShortensTheEnglishOfInstructions) {
  const ModelFolder folder(1024);
  const Tokenizer tokenizer(folder.file("tokenizer.json"));
  EXPECT_EQ(tokenizer.encode("move the gripper to the red pad").size(), 7u);
  EXPECT_EQ(tokenizer.encode("You are a helpful assistant.").size(), 6u);
}

TEST(HubFiles, PutsSpecialTokensAtTheEnd) {
  const SpecialIds ids = special_ids(1024);
  EXPECT_EQ(ids.pad, 1002);
  EXPECT_EQ(ids.video_pad, 1015);
  const ModelFolder folder(1024);
  const Tokenizer tokenizer(folder.file("tokenizer.json"));
  EXPECT_EQ(tokenizer.vocabulary_size(), 1024);
  EXPECT_EQ(tokenizer.token_id("<|endoftext|>"), ids.pad);
  EXPECT_EQ(tokenizer.token_id("<|file_sep|>"), 1023);
}

TEST(HubFiles, KeepsQwensIdsInAFullVocabulary) {
  for (const std::int64_t size : {std::int64_t{151665}, kFullVocabulary}) {
    const SpecialIds ids = special_ids(size);
    EXPECT_EQ(ids.pad, 151643);
    EXPECT_EQ(ids.im_end, 151645);
    EXPECT_EQ(ids.image_pad, 151655);
  }
}

TEST(HubFiles, RefusesAVocabularyWithoutRoomForBytes) {
  EXPECT_THROW(special_ids(277), Error);
  EXPECT_EQ(special_ids(278).pad, 256);
}

TEST(HubFiles, RefusesAFolderThatIsNotThere) {
  try {
    write_tokenizer("/nowhere/at/all", 300);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("/nowhere/at/all"));
  }
}

}  // namespace
}  // namespace plimsoll::data
