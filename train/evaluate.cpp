#include "train/evaluate.h"

#include <algorithm>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "core/error.h"

namespace plimsoll::train {
namespace {

// Far behind any position that training reaches, so that its noise is its own.
constexpr std::uint64_t kFirstPosition = std::uint64_t{1} << 62;

struct HeldOut {
  std::int64_t index = 0;   // of the source
  std::size_t episode = 0;  // from 0, in the order in which they are met
};

std::vector<HeldOut> with_episodes(const data::SampleSource& source, const std::vector<std::int64_t>& indices) {
  const bool recorded = !source.datasets().empty();  // else they are made up, each by itself
  std::map<std::pair<std::int64_t, std::int64_t>, std::size_t> numbers;
  std::vector<HeldOut> samples;
  samples.reserve(indices.size());
  for (const std::int64_t index : indices) {
    const auto episode = recorded ? std::pair(source.dataset_of(index), source.episode_index_of(index))
                                  : std::pair(std::int64_t{0}, index);
    samples.push_back({index, numbers.try_emplace(episode, numbers.size()).first->second});
  }
  return samples;
}

// `first`: the stream position of the first of these samples.
std::vector<Answer> answers_to(std::span<const HeldOut> held_out, std::uint64_t first, const Examinee& examinee) {
  const auto rules = examinee.model.packing_rules(examinee.seed, true);
  const auto dims = static_cast<std::size_t>(examinee.model.options().action_dim);
  std::vector<Answer> answers;
  std::vector<Sample> loaded;
  std::vector<model::StreamSample> samples;
  const auto attempt = [&](memory::Piece piece) {
    const auto asked = held_out.subspan(piece.begin, piece.count);
    loaded.clear();
    samples.clear();
    for (const HeldOut& one : asked) loaded.push_back(examinee.source.load(one.index));
    for (std::size_t i = 0; i < piece.count; ++i) samples.push_back({&loaded[i], first + piece.begin + i});
    const at::Tensor actions = examinee.model.sample_actions(model::pack(samples, rules, examinee.place)).cpu();
    const std::span predicted(actions.data_ptr<float>(), static_cast<std::size_t>(actions.numel()));
    const std::size_t stride = predicted.size() / piece.count;
    for (std::size_t i = 0; i < piece.count; ++i)
      answers.push_back(answer_to(loaded[i], asked[i].episode, predicted.subspan(i * stride, stride), dims));
  };
  const auto predicted_bytes = [&](memory::Piece piece, std::int64_t room) {
    if (!examinee.predicted) return std::int64_t{0};
    memory::MicroBatchShape total{static_cast<std::int64_t>(piece.count), 0, 0};
    for (const HeldOut& one : held_out.subspan(piece.begin, piece.count)) total += examinee.source.shape_of(one.index);
    return examinee.predicted(total, room);
  };
  memory::Guardian guardian(examinee.meter);
  const auto report = guardian.run(held_out.size(), static_cast<std::size_t>(examinee.at_once),
                                   {attempt, [] {}, predicted_bytes, nullptr, examinee.give_up});
  if (report.failed)
    fail(ExitCode::kMemory, "evaluation: held-out sample {} does not fit alone: {}",
         held_out[report.failed_sample].index, report.error);
  return answers;
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

ActionError measure_action_error(const Examinee& examinee, std::int64_t count, ddp::Communicator& communicator) {
  const auto all = with_episodes(examinee.source, evaluated_samples(examinee.source, count));
  if (all.empty()) return {};
  const auto rank = static_cast<std::size_t>(communicator.rank());
  const auto world = static_cast<std::size_t>(communicator.world());
  const std::size_t begin = all.size() * rank / world, end = all.size() * (rank + 1) / world;
  const auto answers = answers_to(std::span(all).subspan(begin, end - begin), kFirstPosition + begin, examinee);
  std::size_t episodes = 0;
  for (const HeldOut& one : all) episodes = std::max(episodes, one.episode + 1);
  return action_error(answers, episodes, static_cast<std::size_t>(examinee.model.options().action_dim), communicator);
}

ActionError measure_action_error(Session& session, std::int64_t count) {
  const auto predicted = [&](const memory::MicroBatchShape& shape, std::int64_t room) {
    return session.evaluation_predictor->attempt_bytes(shape, {}, room);
  };
  const auto give_up = [&] { return session.cache ? session.cache->give_up_device() : std::int64_t{0}; };
  const Examinee examinee{*session.model,
                          session.source,
                          session.device.place,
                          session.meter,
                          static_cast<std::uint64_t>(session.config.run.seed),
                          session.plan.micro_batch,
                          predicted,
                          give_up};
  return measure_action_error(examinee, count, session.communicator);
}

}  // namespace plimsoll::train
