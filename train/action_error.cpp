#include "train/action_error.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

namespace plimsoll::train {
namespace {

// What is summed of an episode, and over ranks: its samples may be on several.
enum EpisodeSum : std::size_t { kSampledError, kConstantError, kElements, kSamples, kEpisodeSums };

std::vector<double> sum_over_ranks(ddp::Communicator& communicator, const std::vector<double>& mine) {
  const auto bytes = communicator.all_gather(std::as_bytes(std::span(mine)));
  std::vector<double> total(mine.size(), 0.0), theirs(mine.size());
  for (std::size_t at = 0; at < bytes.size(); at += mine.size() * sizeof(double)) {
    std::memcpy(theirs.data(), bytes.data() + at, mine.size() * sizeof(double));
    std::ranges::transform(total, theirs, total.begin(), std::plus<>());
  }
  return total;
}

std::vector<double> mean_action(std::span<const Answer> answers, std::size_t dims, ddp::Communicator& communicator) {
  std::vector<double> sums(dims + 1, 0.0);  // the last: rows
  for (const Answer& answer : answers) {
    for (std::size_t i = 0; i < answer.wanted.size(); ++i) sums[i % dims] += answer.wanted[i];
    sums[dims] += static_cast<double>(answer.wanted.size() / dims);
  }
  sums = sum_over_ranks(communicator, sums);
  const double rows = std::max(1.0, sums[dims]);
  sums.pop_back();
  for (double& sum : sums) sum /= rows;
  return sums;
}

// Of all ranks, [episodes, kEpisodeSums].
std::vector<double> episode_sums(std::span<const Answer> answers, std::size_t episodes,
                                 const std::vector<double>& constant, ddp::Communicator& communicator) {
  std::vector<double> sums(episodes * kEpisodeSums, 0.0);
  for (const Answer& answer : answers) {
    double* of_episode = sums.data() + answer.episode * kEpisodeSums;
    for (std::size_t i = 0; i < answer.wanted.size(); ++i)
      of_episode[kConstantError] += std::pow(answer.wanted[i] - constant[i % constant.size()], 2);
    of_episode[kSampledError] += answer.squared_error;
    of_episode[kElements] += static_cast<double>(answer.wanted.size());
    of_episode[kSamples] += 1;
  }
  return sum_over_ranks(communicator, sums);
}

double total_of(const std::vector<double>& sums, EpisodeSum which) {
  double total = 0;
  for (std::size_t at = which; at < sums.size(); at += kEpisodeSums) total += sums[at];
  return total;
}

struct RootMean {
  double value = 0.0, margin = 0.0;
};

// Root of the mean over all elements, and half of its interval. The mean is a ratio of two sums over episodes. To first
// order its variance is that of the mean over episodes of (error - mean x elements); of episodes of one length, that of
// the mean of their means. A root's interval is its square's by twice the root (the delta method).
RootMean root_mean(const std::vector<double>& sums, EpisodeSum which) {
  constexpr double kNormal = 1.96;  // 95 % of a normal distribution
  const double elements = total_of(sums, kElements);
  if (elements <= 0) return {};
  const double mean = total_of(sums, which) / elements;
  double squares = 0, episodes = 0;
  for (std::size_t at = 0; at < sums.size(); at += kEpisodeSums) {
    if (sums[at + kElements] <= 0) continue;
    squares += std::pow(sums[at + which] - mean * sums[at + kElements], 2);
    episodes += 1;
  }
  RootMean root{std::sqrt(mean), 0.0};
  if (episodes < 2 || mean <= 0) return root;
  const double variance = squares * episodes / (episodes - 1) / (elements * elements);
  root.margin = kNormal * std::sqrt(variance) / (2 * root.value);
  return root;
}

}  // namespace

Answer answer_to(const Sample& sample, std::size_t episode, std::span<const float> predicted, std::size_t dims) {
  Answer answer;
  answer.episode = episode;
  for (std::size_t row = 0; row < sample.action_is_pad.size(); ++row) {
    if (sample.action_is_pad[row] != 0) continue;
    for (std::size_t d = row * dims; d < (row + 1) * dims; ++d) {
      answer.wanted.push_back(sample.actions[d]);
      answer.squared_error += std::pow(static_cast<double>(predicted[d]) - sample.actions[d], 2);
    }
  }
  return answer;
}

ActionError action_error(std::span<const Answer> answers, std::size_t episodes, std::size_t dims,
                         ddp::Communicator& communicator) {
  const auto sums = episode_sums(answers, episodes, mean_action(answers, dims, communicator), communicator);
  const RootMean sampled = root_mean(sums, kSampledError), constant = root_mean(sums, kConstantError);
  ActionError error;
  error.samples = std::llround(total_of(sums, kSamples));
  error.episodes = static_cast<std::int64_t>(episodes);
  error.sampled = sampled.value;
  error.sampled_margin = sampled.margin;
  error.best_constant = constant.value;
  error.constant_margin = constant.margin;
  return error;
}

}  // namespace plimsoll::train
