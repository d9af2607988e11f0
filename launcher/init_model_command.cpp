#include "core/error.h"
#include "data/hub_files.h"
#include "launcher/commands.h"
#include "launcher/options.h"
#include "model/init_model.h"

namespace plimsoll {

int run_init_model(const std::vector<std::string>& args) {
  cxxopts::Options options("plimsoll init-model",
                           "Write a randomly initialised Qwen2.5-VL as a Hugging Face directory");
  options.add_options()("size", "tiny, wide or 3b", cxxopts::value<std::string>())(
      "out", "Folder to write; must be empty or absent", cxxopts::value<std::string>())(
      "seed", "Seed of the weights", cxxopts::value<std::uint64_t>()->default_value("0"))(
      "dtype", "Stored dtype: fp32 or bf16", cxxopts::value<std::string>()->default_value("bf16"))(
      "layers", "Cut both towers to this many blocks (0: all)", cxxopts::value<int>()->default_value("0"));
  const auto parsed = parse_options(options, args);
  if (!parsed) return 0;
  const std::string dtype = (*parsed)["dtype"].as<std::string>();
  if (dtype != "fp32" && dtype != "bf16") fail(ExitCode::kUsage, "--dtype {}: give fp32 or bf16", dtype);
  const int layers = (*parsed)["layers"].as<int>();
  if (layers < 0) fail(ExitCode::kUsage, "--layers {}: give 0 (all) or more", layers);

  const auto config = model::init_config(required(*parsed, "size"), layers);
  const std::string out = required(*parsed, "out");
  model::write_random_checkpoint(config,
                                 {.dir = out, .seed = (*parsed)["seed"].as<std::uint64_t>(), .bf16 = dtype == "bf16"});
  const auto ids = data::write_tokenizer(out, config.text.vocabulary);
  if (ids.image_pad != config.image_token_id) {
    fail(ExitCode::kData, "{}: tokenizer and config.json disagree about the image token: {} and {}", out, ids.image_pad,
         config.image_token_id);
  }
  data::write_image_processor(out, {});
  fmt::print("{}: {} of {} + {} blocks, vocabulary {}\n", out, (*parsed)["size"].as<std::string>(), config.vision.depth,
             config.text.layers, config.text.vocabulary);
  return 0;
}

}  // namespace plimsoll
