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

// Sums over unpadded actions; per action dimension, because the best constant is a vector.
struct Sums {
  explicit Sums(std::size_t dims) : values(2 + 2 * dims, 0.0), action_dim(dims) {}
  double& squared_error() { return values[0]; }
  double& rows() { return values[1]; }
  double& sum(std::size_t d) { return values[2 + d]; }
  double& square(std::size_t d) { return values[2 + action_dim + d]; }
  std::vector<double> values;
  std::size_t action_dim;

  void add(const Sample& sample, const float* predicted) {
    for (std::size_t row = 0; row < sample.action_is_pad.size(); ++row) {
      if (sample.action_is_pad[row] != 0) continue;
      rows() += 1;
      for (std::size_t d = 0; d < action_dim; ++d) {
        const double wanted = sample.actions[row * action_dim + d];
        const double miss = static_cast<double>(predicted[row * action_dim + d]) - wanted;
        squared_error() += miss * miss;
        sum(d) += wanted;
        square(d) += wanted * wanted;
      }
    }
  }
};

void measure_share(Session& session, std::span<const std::int64_t> indices, std::uint64_t first, Sums& sums) {
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
      sums.add(loaded[i], actions.data_ptr<float>() + static_cast<std::int64_t>(i) * stride);
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
  Sums sums(static_cast<std::size_t>(session.options.action_dim));
  measure_share(session, mine, kFirstPosition + static_cast<std::uint64_t>(begin), sums);
  sums.values = sum_over_ranks(session.communicator, sums.values);

  const double rows = std::max(1.0, sums.rows());
  double variance = 0.0;
  for (std::size_t d = 0; d < sums.action_dim; ++d) variance += sums.square(d) / rows - std::pow(sums.sum(d) / rows, 2);
  const auto dims = static_cast<double>(sums.action_dim);
  return {count, std::sqrt(sums.squared_error() / rows / dims), std::sqrt(std::max(0.0, variance) / dims)};
}

}  // namespace plimsoll::train
