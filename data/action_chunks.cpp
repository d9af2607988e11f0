#include "data/action_chunks.h"

#include <cmath>
#include <utility>

#include "core/error.h"

namespace plimsoll::data {

ActionChunks::ActionChunks(const ChunkingOptions& options) : options_(options) {
  if (options.replan < 1)
    fail(ExitCode::kUsage, "a new chunk after {} steps was asked for, but it must be at least 1", options.replan);
  const double decay = options.ensemble_decay.value_or(0);
  if (!(decay >= 0 && std::isfinite(decay)))
    fail(ExitCode::kUsage, "the decay of the ensemble is {}, but must be at least 0", decay);
}

bool ActionChunks::wants_chunk() const {
  if (chunks_.empty()) return true;
  const std::int64_t age = step_ - chunks_.back().begin;
  return age >= options_.replan || age >= rows(chunks_.back());
}

void ActionChunks::add(std::vector<float> chunk) {
  const auto dim = static_cast<std::size_t>(options_.action_dim);
  if (chunk.empty() || chunk.size() % dim != 0)
    fail(ExitCode::kData, "a chunk of {} values was predicted, but an action has {}", chunk.size(), dim);
  if (!options_.ensemble_decay) chunks_.clear();
  chunks_.push_back({step_, std::move(chunk)});
}

std::vector<double> ActionChunks::next() {
  if (wants_chunk()) fail(ExitCode::kUsage, "an action was asked for where a new chunk is due");
  std::vector<double> action(static_cast<std::size_t>(options_.action_dim), 0.0);
  double weight = 1, sum = 0;
  for (const Chunk& chunk : chunks_) {
    const float* row = chunk.values.data() + (step_ - chunk.begin) * options_.action_dim;
    for (std::size_t d = 0; d < action.size(); ++d) action[d] += weight * static_cast<double>(row[d]);
    sum += weight;
    weight *= std::exp(-options_.ensemble_decay.value_or(0));
  }
  for (double& value : action) value /= sum;
  ++step_;
  forget();
  return action;
}

void ActionChunks::forget() {
  std::erase_if(chunks_, [&](const Chunk& chunk) { return step_ - chunk.begin >= rows(chunk); });
}

}  // namespace plimsoll::data
