// What answers come to: by hand-computed numbers.
#include "train/action_error.h"

#include <gtest/gtest.h>

#include <array>
#include <barrier>
#include <cmath>
#include <cstdlib>
#include <string>
#include <thread>
#include <utility>

namespace plimsoll::train {
namespace {

/// One action of one dimension.
Answer one_action(std::size_t episode, float wanted, double squared_error) {
  Answer answer;
  answer.episode = episode;
  answer.wanted = {wanted};
  answer.squared_error = squared_error;
  return answer;
}

ActionError alone(const std::vector<Answer>& answers, std::size_t episodes, std::size_t dims = 1) {
  return action_error(answers, episodes, dims, *ddp::make_solo());
}

/// Two ranks in one process, each on a thread.
struct Exchange {
  std::barrier<> met{2};
  std::array<std::vector<std::byte>, 2> given;
};

class OneOfTwo final : public ddp::Communicator {
 public:
  OneOfTwo(Exchange& exchange, int rank) : exchange_(exchange), rank_(rank) {}
  int rank() const override { return rank_; }
  int world() const override { return 2; }
  int local_rank() const override { return rank_; }
  void all_reduce_sum(std::span<float>) override { std::abort(); }
  void broadcast(std::span<std::byte>, int) override { std::abort(); }
  std::vector<std::byte> all_gather(std::span<const std::byte> bytes) override {
    exchange_.given[static_cast<std::size_t>(rank_)].assign(bytes.begin(), bytes.end());
    exchange_.met.arrive_and_wait();
    std::vector<std::byte> all = exchange_.given[0];
    all.insert(all.end(), exchange_.given[1].begin(), exchange_.given[1].end());
    exchange_.met.arrive_and_wait();
    return all;
  }
  void barrier() override { std::abort(); }
  void enter(std::int64_t, const char*) override {}
  [[noreturn]] void abort(int) override { std::abort(); }
  std::string name() const override { return "one of two"; }

 private:
  Exchange& exchange_;
  int rank_;
};

TEST(ActionError, LeavesPaddingOut) {
  Sample sample;
  sample.actions = {1, 2, 3, 4, 5, 6};
  sample.action_is_pad = {0, 0, 1};
  const std::vector<float> predicted{1, 4, 2, 4, 100, 100};
  const Answer answer = answer_to(sample, 7, predicted, 2);
  EXPECT_EQ(answer.episode, 7U);
  EXPECT_EQ(answer.wanted, (std::vector<float>{1, 2, 3, 4}));
  EXPECT_DOUBLE_EQ(answer.squared_error, 4 + 1);
}

TEST(ActionError, IsOfAllElementsBesideTheBestConstant) {
  Answer answer;
  answer.wanted = {1, 10, 3, 10};
  answer.squared_error = 16;
  const ActionError error = alone({answer}, 1, 2);
  EXPECT_EQ(error.samples, 1);
  EXPECT_EQ(error.episodes, 1);
  EXPECT_DOUBLE_EQ(error.sampled, 2);
  EXPECT_DOUBLE_EQ(error.best_constant, std::sqrt(0.5)) << "(2, 10) is the best: off by 1 in two elements of four";
  EXPECT_EQ(error.sampled_margin, 0) << "of one episode nothing is known of how they differ";
}

TEST(ActionError, AnEpisodeCountsOnceHoweverOftenItIsLookedAt) {
  const std::array<double, 4> errors{1, 2, 4, 5};
  std::vector<Answer> once, often;
  for (std::size_t e = 0; e < errors.size(); ++e) {
    const auto wanted = static_cast<float>(e);
    once.push_back(one_action(e, wanted, errors[e]));
    for (int i = 0; i < 9; ++i) often.push_back(one_action(e, wanted, errors[e]));
  }
  const ActionError few = alone(once, 4), many = alone(often, 4);
  // Mean 3, variance 10 / 3 of one episode.
  EXPECT_NEAR(few.sampled, std::sqrt(3.0), 1e-12);
  EXPECT_NEAR(few.sampled_margin, 1.96 * std::sqrt(10.0 / 3 / 4) / (2 * std::sqrt(3.0)), 1e-12);
  EXPECT_EQ(many.samples, 36);
  EXPECT_EQ(many.episodes, 4);
  EXPECT_NEAR(many.sampled_margin, few.sampled_margin, 1e-12) << "samples of one episode are not independent";
  EXPECT_NEAR(many.constant_margin, few.constant_margin, 1e-12);
  EXPECT_GT(few.constant_margin, 0);
}

TEST(ActionError, EpisodesMayBeOfDifferentLengths) {
  // Sums of 4 over one element and of 6 over three: the mean is 2.5, from which they are off by 1.5 and -1.5.
  const ActionError error =
      alone({one_action(0, 0, 4), one_action(1, 0, 1), one_action(1, 0, 2), one_action(1, 0, 3)}, 2);
  EXPECT_NEAR(error.sampled, std::sqrt(2.5), 1e-12);
  EXPECT_NEAR(error.sampled_margin, 1.96 * std::sqrt(4.5 * 2 / 1 / 16) / (2 * std::sqrt(2.5)), 1e-12);
}

TEST(ActionError, OfAnEpisodeOnTwoRanksIsTheSame) {
  const std::vector<Answer> all{one_action(0, 1, 1), one_action(0, 3, 4), one_action(1, 0, 2), one_action(2, 5, 7)};
  const ActionError expected = alone(all, 3);
  Exchange exchange;
  std::array<ActionError, 2> found;
  const auto measure = [&](std::size_t rank, std::size_t begin, std::size_t end) {
    OneOfTwo communicator(exchange, static_cast<int>(rank));
    found[rank] = action_error(std::span(all).subspan(begin, end - begin), 3, 1, communicator);
  };
  std::thread other(measure, 1, 1, 4);
  measure(0, 0, 1);
  other.join();
  for (const ActionError& error : found) {
    EXPECT_EQ(error.samples, 4);
    EXPECT_NEAR(error.sampled, expected.sampled, 1e-12);
    EXPECT_NEAR(error.best_constant, expected.best_constant, 1e-12);
    EXPECT_NEAR(error.sampled_margin, expected.sampled_margin, 1e-12);
    EXPECT_NEAR(error.constant_margin, expected.constant_margin, 1e-12);
  }
}

}  // namespace
}  // namespace plimsoll::train
