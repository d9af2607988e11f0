#include "train/draws.h"

#include <algorithm>
#include <span>
#include <utility>

#include "memory/planning/packing.h"

namespace plimsoll::train {

Draws::Draws(const data::SampleSource& source, const DrawOptions& options, std::vector<SampleShape> heaviest)
    : options_(options), heaviest_(std::move(heaviest)) {
  if (options.dealt || options.steps > kMost / options.effective_batch) return;
  data::SampleStream stream(options.order);
  const auto draws = static_cast<std::uint64_t>(options.steps * options.effective_batch);
  for (auto* values : {&weights_, &tokens_, &patches_}) values->reserve(draws);
  for (std::uint64_t position = 0; position < draws; ++position) {
    const SampleShape shape = source.shape_at(stream.at(position), options.resolution);
    weights_.push_back(memory::weight_of(shape));
    tokens_.push_back(shape.tokens);
    patches_.push_back(shape.patches);
  }
}

memory::MicroBatchShape Draws::heaviest(int micro_batch) {
  const auto found = heaviest_of_run_.find(micro_batch);
  if (found != heaviest_of_run_.end()) return found->second;
  return heaviest_of_run_[micro_batch] = heaviest_of_run(micro_batch);
}

memory::MicroBatchShape Draws::heaviest_of_run(int micro_batch) {
  memory::MicroBatchShape most{std::clamp<std::int64_t>(micro_batch, 1, share()), 0, 0};
  if (weights_.empty()) {
    const auto count = std::min(static_cast<std::size_t>(most.samples), heaviest_.size());
    for (std::size_t i = 0; i < count; ++i) most += heaviest_[i];
    return most;
  }
  for (const auto& step : of_steps(micro_batch)) {
    most.tokens = std::max(most.tokens, step.tokens);
    most.patches = std::max(most.patches, step.patches);
  }
  return most;
}

std::size_t Draws::looked() const {
  return weights_.empty() ? 0 : static_cast<std::size_t>(std::min(kLooked, options_.steps));
}

const memory::MicroBatchShape& Draws::heaviest(std::size_t looked_step, int micro_batch) {
  return of_steps(micro_batch)[looked_step * static_cast<std::size_t>(options_.steps) / looked()];
}

const std::vector<memory::MicroBatchShape>& Draws::of_steps(int micro_batch) {
  auto& steps = known_[micro_batch];
  const auto size = static_cast<std::size_t>(std::clamp<std::int64_t>(micro_batch, 1, share()));
  if (steps.empty())
    for (std::int64_t step = 1; step <= options_.steps; ++step) steps.push_back(heaviest_of(step, size));
  return steps;
}

// Over the micro-batches of all ranks.
memory::MicroBatchShape Draws::heaviest_of(std::int64_t step, std::size_t micro_batch) const {
  memory::MicroBatchShape most{static_cast<std::int64_t>(micro_batch), 0, 0};
  for (int rank = 0; rank < options_.world; ++rank) {
    const auto [begin, end] = data::share_of_step(step, options_.effective_batch, rank, options_.world);
    const auto drawn = [first = begin, count = end - begin](const std::vector<std::int64_t>& values) {
      return std::span(values).subspan(first, count);
    };
    const auto order = memory::balanced_order(drawn(weights_), micro_batch);
    most.tokens = std::max(most.tokens, memory::heaviest_micro_batch(drawn(tokens_), order, micro_batch));
    most.patches = std::max(most.patches, memory::heaviest_micro_batch(drawn(patches_), order, micro_batch));
  }
  return most;
}

}  // namespace plimsoll::train
