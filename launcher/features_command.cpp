#include <cstring>

#include "core/error.h"
#include "core/safetensors.h"
#include "data/image_file.h"
#include "data/vlm_input.h"
#include "launcher/commands.h"
#include "launcher/options.h"
#include "model/features.h"

namespace plimsoll {
namespace {

std::vector<float> read_pixels(const SafetensorsFile& file) {
  const TensorEntry& entry = file.at("pixel_values");
  if (entry.dtype != "F32" || entry.shape.size() != 2 || entry.shape[1] != 1176) {
    fail(ExitCode::kData, "{}: tensor pixel_values: expected F32 [patches, 1176], found {} [{}]", file.path().string(),
         entry.dtype, fmt::join(entry.shape, ", "));
  }
  std::vector<float> values(entry.bytes.size() / sizeof(float));
  std::memcpy(values.data(), entry.bytes.data(), entry.bytes.size());
  return values;
}

std::vector<std::array<std::int64_t, 3>> read_grids(const SafetensorsFile& file) {
  const TensorEntry& entry = file.at("image_grid_thw");
  if (entry.dtype != "I64" || entry.shape.size() != 2 || entry.shape[1] != 3) {
    fail(ExitCode::kData, "{}: tensor image_grid_thw: expected I64 [images, 3], found {} [{}]", file.path().string(),
         entry.dtype, fmt::join(entry.shape, ", "));
  }
  std::vector<std::array<std::int64_t, 3>> grids(entry.bytes.size() / (3 * sizeof(std::int64_t)));
  std::memcpy(grids.data(), entry.bytes.data(), entry.bytes.size());
  return grids;
}

VlmInput prepare(const cxxopts::ParseResult& parsed, const std::string& model, const std::string& text) {
  const data::VlmProcessor processor(model);
  const auto paths = values(parsed, "image");
  if (parsed.count("pixels") > 0) {
    if (!paths.empty()) fail(ExitCode::kUsage, "--pixels takes the place of --image: give one of them");
    const SafetensorsFile file(parsed["pixels"].as<std::string>());
    return processor.prepare_pixels(text, read_pixels(file), read_grids(file));
  }
  std::vector<data::Image> images;
  for (const auto& path : paths) images.push_back(data::read_image(path));
  return processor.prepare(text, images);
}

}  // namespace

int run_features(const std::vector<std::string>& args) {
  cxxopts::Options options("plimsoll features",
                           "Write what the VLM computes for one prompt, for comparison with other implementations");
  options.add_options()("model", "Hugging Face directory of a Qwen2.5-VL", cxxopts::value<std::string>())(
      "adapter", "PEFT directory", cxxopts::value<std::string>()->default_value(""))(
      "text", "The user's text", cxxopts::value<std::string>())("image", "Picture file; may be repeated",
                                                                cxxopts::value<std::vector<std::string>>())(
      "pixels", "safetensors file with pixel_values and image_grid_thw in place of pictures",
      cxxopts::value<std::string>())("dtype", "fp32 or bf16", cxxopts::value<std::string>()->default_value("fp32"))(
      "out", "safetensors file to write", cxxopts::value<std::string>())(
      "write-adapter", "Folder to write the adapter to again, under today's names",
      cxxopts::value<std::string>()->default_value(""))(
      "grad", "Also the gradients of mean(last_hidden_state^2) for every adapter tensor");
  const auto parsed = parse_options(options, args);
  if (!parsed) return 0;
  const std::string dtype = (*parsed)["dtype"].as<std::string>();
  if (dtype != "fp32" && dtype != "bf16") fail(ExitCode::kUsage, "--dtype {}: give fp32 or bf16", dtype);
  model::FeatureRequest request;
  request.model = required(*parsed, "model");
  request.adapter = (*parsed)["adapter"].as<std::string>();
  request.bf16 = dtype == "bf16";
  request.write_adapter = (*parsed)["write-adapter"].as<std::string>();
  request.gradients = parsed->count("grad") > 0;
  request.out = required(*parsed, "out");
  model::write_features(request, prepare(*parsed, request.model, required(*parsed, "text")));
  fmt::print("{}\n", request.out);
  return 0;
}

}  // namespace plimsoll
