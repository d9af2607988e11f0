#include "model/work.h"

#include <gtest/gtest.h>

#include "model/init_model.h"

namespace plimsoll::model {
namespace {

TEST(ForwardWork, CountsTheWeightsThatEveryTokenAndPatchIsMultipliedWith) {
  QwenConfig config;
  config.vision = {};
  config.vision.depth = 1, config.vision.hidden = 2, config.vision.intermediate = 3;
  config.text.layers = 2, config.text.hidden = 4, config.text.intermediate = 5, config.text.heads = 2,
  config.text.kv_heads = 1;
  ExpertOptions expert;
  expert.depth = 1, expert.width = 3, expert.draws = 2, expert.chunk = 4;
  const ForwardWork work = forward_work(config, expert, {10, 20, 0, 0});
  EXPECT_EQ(work.vision, 20 * (4 * 2 * 2 + 3 * 2 * 3));
  EXPECT_EQ(work.language, 10 * 2 * (4 * 4 + 4 * 2 + 4 * 2 + 4 * 4 + 3 * 4 * 5));
  EXPECT_EQ(work.expert, 2 * 4 * (6 * 9 + 3 * 3 * 32) + 2 * 9 * 9 + 10 * 2 * 9);
  EXPECT_EQ(work.step(), work.vision + 2 * work.language + 3 * work.expert);
}

// Of Qwen2.5-VL-3B with two pictures of 448 x 448 the expert is next to nothing, and the language model is redone for
// about a third of a step (MFU's rule of 4N for a frozen model: forward and inputs' gradients alike).
TEST(ForwardWork, OfALargeModelIsTheLanguageModels) {
  const ForwardWork work = forward_work(init_config("3b"), {}, {600, 2048, 0, 0});
  EXPECT_GT(work.language / work.step(), 0.30);
  EXPECT_LT(work.language / work.step(), 0.45);
  EXPECT_LT(work.expert / work.step(), 0.01);
  EXPECT_NEAR(work.language, 600 * 2.77e9, 600 * 0.1e9) << "2.77e9 weights but for the embedding";
}

}  // namespace
}  // namespace plimsoll::model
