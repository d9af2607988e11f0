#include "train/draws.h"

#include <algorithm>
#include <span>

#include "data/sample_stream.h"
#include "memory/planning/packing.h"

namespace plimsoll::train {
Draws::Draws(const data::SampleSource& source, const DrawOptions& options, std::vector<SampleShape> heaviest)
    : options_(options), heaviest_(std::move(heaviest)) {
  if (options.steps > kMost / options.effective_batch) return;
  data::SampleStream stream(source.training(), options.seed);
  const auto draws = static_cast<std::uint64_t>(options.steps * options.effective_batch);
  for (auto* values : {&weights_, &tokens_, &patches_}) values->reserve(draws);
  for (std::uint64_t position = 0; position < draws; ++position) {
    const SampleShape shape = source.shape_of(stream.at(position));
    weights_.push_back(memory::weight_of(shape));
    tokens_.push_back(shape.tokens);
    patches_.push_back(shape.patches);
  }
}

memory::MicroBatchShape Draws::heaviest(int micro_batch) {
  const auto known = known_.find(micro_batch);
  if (known != known_.end()) return known->second;
  return known_[micro_batch] = found(static_cast<std::size_t>(std::max(1, micro_batch)));
}

memory::MicroBatchShape Draws::found(std::size_t micro_batch) const {
  const auto share = static_cast<std::size_t>((options_.effective_batch + options_.world - 1) / options_.world);
  micro_batch = std::min(micro_batch, share);
  memory::MicroBatchShape most{static_cast<std::int64_t>(micro_batch), 0, 0};
  if (weights_.empty()) {
    for (std::size_t i = 0; i < std::min(micro_batch, heaviest_.size()); ++i) most += heaviest_[i];
    return most;
  }
  for (std::int64_t step = 1; step <= options_.steps; ++step) {
    for (int rank = 0; rank < options_.world; ++rank) {
      const auto [begin, end] = data::share_of_step(step, options_.effective_batch, rank, options_.world);
      const auto drawn = [first = begin, count = end - begin](const std::vector<std::int64_t>& values) {
        return std::span(values).subspan(first, count);
      };
      const auto order = memory::balanced_order(drawn(weights_), micro_batch);
      most.tokens = std::max(most.tokens, memory::heaviest_micro_batch(drawn(tokens_), order, micro_batch));
      most.patches = std::max(most.patches, memory::heaviest_micro_batch(drawn(patches_), order, micro_batch));
    }
  }
  return most;
}

}  // namespace plimsoll::train
