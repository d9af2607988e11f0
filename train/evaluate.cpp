#include "train/evaluate.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include "core/error.h"

namespace plimsoll::train {
namespace {

// Far behind any position that training reaches, so that its noise is its own.
constexpr std::uint64_t kFirstPosition = std::uint64_t{1} << 62;

// Of one held-out sample.
struct Answer {
  std::vector<float> wanted;   // unpadded actions, [rows, dims]
  double squared_error = 0.0;  // of the sampled ones, over all of these
};

Answer answer_to(const Sample& sample, const float* predicted, std::size_t dims) {
  Answer answer;
  for (std::size_t row = 0; row < sample.action_is_pad.size(); ++row) {
    if (sample.action_is_pad[row] != 0) continue;
    for (std::size_t d = row * dims; d < (row + 1) * dims; ++d) {
      answer.wanted.push_back(sample.actions[d]);
      answer.squared_error += std::pow(static_cast<double>(predicted[d]) - sample.actions[d], 2);
    }
  }
  return answer;
}

// Sums over unpadded actions; per action dimension, because the best constant is a vector.
struct Sums {
  explicit Sums(std::size_t dims) : values(2 + 2 * dims, 0.0), action_dim(dims) {}
  double& squared_error() { return values[0]; }
  double& rows() { return values[1]; }
  double& sum(std::size_t d) { return values[2 + d]; }
  double& square(std::size_t d) { return values[2 + action_dim + d]; }
  std::vector<double> values;
  std::size_t action_dim;

  void add(const Answer& answer) {
    squared_error() += answer.squared_error;
    rows() += static_cast<double>(answer.wanted.size() / action_dim);
    for (std::size_t i = 0; i < answer.wanted.size(); ++i) {
      const double wanted = answer.wanted[i];
      sum(i % action_dim) += wanted;
      square(i % action_dim) += wanted * wanted;
    }
  }
};

void measure_share(Session& session, std::span<const std::int64_t> indices, std::uint64_t first,
                   std::vector<Answer>& answers) {
  const auto rules = session.model->packing_rules(static_cast<std::uint64_t>(session.config.run.seed), true);
  std::vector<Sample> loaded;
  std::vector<model::StreamSample> samples;
  const auto attempt = [&](memory::Piece piece) {
    loaded.clear();
    samples.clear();
    for (std::size_t i = 0; i < piece.count; ++i) loaded.push_back(session.source.load(indices[piece.begin + i]));
    for (std::size_t i = 0; i < piece.count; ++i) samples.push_back({&loaded[i], first + piece.begin + i});
    const at::Tensor actions = session.model->sample_actions(model::pack(samples, rules, session.device.place)).cpu();
    const std::int64_t stride = actions.numel() / static_cast<std::int64_t>(piece.count);
    for (std::size_t i = 0; i < piece.count; ++i)
      answers.push_back(answer_to(loaded[i], actions.data_ptr<float>() + static_cast<std::int64_t>(i) * stride,
                                  static_cast<std::size_t>(session.options.action_dim)));
  };
  memory::Guardian guardian(session.meter);
  const auto predicted = [&](memory::Piece piece, std::int64_t room) {
    memory::MicroBatchShape total{static_cast<std::int64_t>(piece.count), 0, 0};
    for (std::size_t i = 0; i < piece.count; ++i) total += session.source.shape_of(indices[piece.begin + i]);
    return session.evaluation_predictor->attempt_bytes(total, {}, room);
  };
  const auto give_up = [&] { return session.cache ? session.cache->give_up_device() : 0; };
  const auto report = guardian.run(indices.size(), static_cast<std::size_t>(session.plan.micro_batch),
                                   {attempt, [] {}, predicted, nullptr, give_up});
  if (report.failed)
    fail(ExitCode::kMemory, "evaluation: held-out sample {} does not fit alone: {}", indices[report.failed_sample],
         report.error);
}

std::vector<double> sum_over_ranks(ddp::Communicator& communicator, const std::vector<double>& mine) {
  const auto bytes = communicator.all_gather(std::as_bytes(std::span(mine)));
  std::vector<double> total(mine.size(), 0.0), theirs(mine.size());
  for (std::size_t at = 0; at < bytes.size(); at += mine.size() * sizeof(double)) {
    std::memcpy(theirs.data(), bytes.data() + at, mine.size() * sizeof(double));
    std::ranges::transform(total, theirs, total.begin(), std::plus<>());
  }
  return total;
}

// Over samples: sums of mean squared errors and of their squares, of what was sampled and of the constant; how many.
std::vector<double> moments_of(const std::vector<Answer>& answers, const std::vector<double>& constant) {
  std::vector<double> moments(5, 0.0);
  for (const Answer& answer : answers) {
    if (answer.wanted.empty()) continue;
    const auto count = static_cast<double>(answer.wanted.size());
    double of_constant = 0.0;
    for (std::size_t i = 0; i < answer.wanted.size(); ++i)
      of_constant += std::pow(answer.wanted[i] - constant[i % constant.size()], 2);
    const double errors[] = {answer.squared_error / count, of_constant / count};
    for (std::size_t i = 0; i < 2; ++i) {
      moments[2 * i] += errors[i];
      moments[2 * i + 1] += errors[i] * errors[i];
    }
    moments[4] += 1;
  }
  return moments;
}

// Of a root of a mean: half the mean's own interval by twice the root (the delta method).
double margin_of(double sum, double squares, double count, double root) {
  constexpr double kNormal = 1.96;  // 95 % of a normal distribution
  if (count < 2 || root <= 0) return 0.0;
  const double variance = std::max(0.0, (squares - sum * sum / count) / (count - 1));
  return kNormal * std::sqrt(variance / count) / (2 * root);
}

}  // namespace

std::vector<std::int64_t> evaluated_samples(const data::SampleSource& source, std::int64_t count) {
  const auto& held_out = source.held_out();
  const auto size = static_cast<std::int64_t>(held_out.size());
  count = std::min(count, size);
  std::vector<std::int64_t> samples;
  // Spread over all held-out episodes, not only the first.
  for (std::int64_t i = 0; i < count; ++i) samples.push_back(held_out[static_cast<std::size_t>(i * size / count)]);
  return samples;
}

ActionError measure_action_error(Session& session, std::int64_t count) {
  const auto all = evaluated_samples(session.source, count);
  count = static_cast<std::int64_t>(all.size());
  if (count == 0) return {};
  const int rank = session.communicator.rank(), world = session.communicator.world();
  const std::int64_t begin = count * rank / world, end = count * (rank + 1) / world;
  const auto mine = std::span(all).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
  std::vector<Answer> answers;
  measure_share(session, mine, kFirstPosition + static_cast<std::uint64_t>(begin), answers);
  Sums sums(static_cast<std::size_t>(session.options.action_dim));
  for (const Answer& answer : answers) sums.add(answer);
  sums.values = sum_over_ranks(session.communicator, sums.values);

  const double rows = std::max(1.0, sums.rows());
  double variance = 0.0;
  std::vector<double> constant;
  for (std::size_t d = 0; d < sums.action_dim; ++d) {
    constant.push_back(sums.sum(d) / rows);
    variance += sums.square(d) / rows - std::pow(constant.back(), 2);
  }
  const auto dims = static_cast<double>(sums.action_dim);
  ActionError error{count, std::sqrt(sums.squared_error() / rows / dims), std::sqrt(std::max(0.0, variance) / dims)};
  const auto moments = sum_over_ranks(session.communicator, moments_of(answers, constant));
  error.sampled_margin = margin_of(moments[0], moments[1], moments[4], error.sampled);
  error.constant_margin = margin_of(moments[2], moments[3], moments[4], error.best_constant);
  return error;
}

}  // namespace plimsoll::train
