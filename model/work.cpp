#include "model/work.h"

namespace plimsoll::model {

ForwardWork forward_work(const QwenConfig& model, const ExpertOptions& expert, const SampleShape& sample) {
  const auto number = [](std::int64_t value) { return static_cast<double>(value); };
  const VisionConfig& v = model.vision;
  const TextConfig& t = model.text;
  ForwardWork work;
  // Query, key, value and output; gate, up and down.
  work.vision =
      number(sample.patches) * number(v.depth) * number(4 * v.hidden * v.hidden + 3 * v.hidden * v.intermediate);
  const std::int64_t keys = std::int64_t{t.kv_heads} * t.head_dim();
  work.language = number(sample.tokens) * number(t.layers) *
                  number(2 * t.hidden * t.hidden + 2 * t.hidden * keys + 3 * t.hidden * t.intermediate);
  // Self-attention, queries and outputs of cross-attention, the MLP; nine modulations a draw; keys and values of the
  // context.
  const double square = number(std::int64_t{expert.width} * expert.width), draws = number(expert.draws);
  const double row = 6 * square + 3 * number(expert.width * expert.mlp_width());
  work.expert = number(expert.depth) *
                (draws * number(expert.chunk) * row + draws * 9 * square + number(sample.tokens) * 2 * square);
  return work;
}

}  // namespace plimsoll::model
