#pragma once
// Randomly initialised Qwen2.5-VL checkpoints of several sizes, for demonstrations, tests and benchmarks. No torch in
// here.

#include <cstdint>
#include <string>

#include "model/qwen_config.h"

namespace plimsoll::model {

/// "tiny" (4 + 4 blocks, hidden 64 and 128), "wide" (language model of 4 blocks, hidden 1024) or "3b" (the shapes of
/// Qwen2.5-VL-3B). `layers` above 0 cuts both towers to that many blocks. Vocabulary: 1024, 1024 and 151936 rows,
/// image_token_id 12 above the first of 22 added tokens. Throws Error(kUsage) for another size.
QwenConfig init_config(const std::string& size, int layers = 0);

struct InitOptions {
  std::string dir;  ///< made if absent; must be empty
  std::uint64_t seed = 0;
  bool bf16 = true;                                  ///< stored dtype; otherwise fp32
  std::int64_t shard_bytes = std::int64_t{4} << 30;  ///< a file is closed before it would grow past this
};

/// Writes config.json and model.safetensors, or shards with model.safetensors.index.json, under the hub's key names,
/// embeddings tied. Linear weights are normal with deviation 1 / sqrt(in), biases 0.02, embeddings 0.5, norm weights 1
/// + 0.1 x normal (weights of one would hide errors: mean(h^2) then has no gradient). A tensor's values depend on seed
/// and name only. Never holds more than one tensor. Throws Error(kUsage) when the folder is not empty, Error(kData)
/// when it cannot be written.
void write_random_checkpoint(const QwenConfig& config, const InitOptions& options);

}  // namespace plimsoll::model
