#pragma once
// Chunks of predicted actions as a robot carries them out, one action a step.

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

namespace plimsoll::data {

struct ChunkingOptions {
  std::int64_t action_dim = 1;
  std::int64_t replan = 1;  ///< steps after which the next chunk is asked for; sooner where a chunk has fewer actions
  /// Temporal ensembling (Zhao et al., "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware", 2023): the
  /// action of a step is the mean of all that chunks predict for it, weighted exp(-decay i), where i counts the chunks
  /// from 0, the oldest. Nothing: the newest chunk alone is followed.
  std::optional<double> ensemble_decay;
};

/// The actions of one episode. For each step: add() if wants_chunk(), then next(). One thread.
class ActionChunks {
 public:
  /// Throws Error(kUsage) for a replan below 1 and a decay that is negative or not finite.
  explicit ActionChunks(const ChunkingOptions& options);

  /// Whether the coming step needs a new chunk.
  bool wants_chunk() const;
  /// Predictions for the coming step and those after it, [rows, action_dim] row-major with at least one row. Throws
  /// Error(kData) for another size.
  void add(std::vector<float> chunk);
  /// The action of the coming step [action_dim], which is then over. Throws Error(kUsage) where a chunk is wanted.
  std::vector<double> next();

 private:
  struct Chunk {
    std::int64_t begin = 0;  // the step of its first row
    std::vector<float> values;
  };
  std::int64_t rows(const Chunk& chunk) const {
    return static_cast<std::int64_t>(chunk.values.size()) / options_.action_dim;
  }
  void forget();

  ChunkingOptions options_;
  std::int64_t step_ = 0;
  std::deque<Chunk> chunks_;  // oldest first, of those that reach the coming step
};

}  // namespace plimsoll::data
