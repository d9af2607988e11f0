#include "data/vlm_input.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "core/error.h"
#include "data/pixel_buffers.h"
#include "data/rope_index.h"

namespace plimsoll::data {

namespace {

constexpr const char* kBefore = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n";
constexpr const char* kPicture = "<|vision_start|><|image_pad|><|vision_end|>";
constexpr const char* kAfter = "<|im_end|>\n<|im_start|>assistant\n";

std::string image_name(std::size_t index) { return fmt::format("image {}", index); }

/// What a long instruction is called in an error.
std::string excerpt(std::string_view text) { return std::string(text.substr(0, 80)) + (text.size() > 80 ? "..." : ""); }

/// 0 as well where there is no config.json, or none that can be read: who reads the model says so.
std::int64_t read_most_tokens(const std::string& path) {
  std::ifstream file(path);
  const auto config = nlohmann::json::parse(file, nullptr, false);
  if (!config.is_object()) return 0;
  const nlohmann::json text = config.value("text_config", config);
  const auto most = text.find("max_position_embeddings");
  return most != text.end() && most->is_number_integer() ? most->get<std::int64_t>() : 0;
}

}  // namespace

struct VlmProcessor::Parts {
  explicit Parts(const std::string& model_dir)
      : path(model_dir + "/tokenizer.json"),
        tokenizer(path),
        options(read_image_processor_options(model_dir)),
        most_tokens(read_most_tokens(model_dir + "/config.json")),
        image_token(token("<|image_pad|>")),
        video_token(token("<|video_pad|>")) {
    for (const char* needed : {"<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"}) token(needed);
  }

  std::int64_t token(const char* name) const {
    const auto id = tokenizer.token_id(name);
    if (!id) fail(ExitCode::kData, "{}: lacks the token {}; use the tokenizer.json of a Qwen2.5-VL model", path, name);
    return *id;
  }

  /// Ids of the whole prompt with one image token a picture. What a picture becomes does not change how text is cut,
  /// because special tokens are cut out first.
  std::vector<std::int64_t> short_prompt(std::string_view text, std::size_t pictures) const {
    std::string prompt = kBefore;
    for (std::size_t i = 0; i < pictures; ++i) prompt += kPicture;
    prompt.append(text).append(kAfter);
    auto ids = tokenizer.encode(prompt);
    const auto image_tokens = static_cast<std::size_t>(std::count(ids.begin(), ids.end(), image_token));
    if (image_tokens != pictures || std::count(ids.begin(), ids.end(), video_token) != 0)
      fail(ExitCode::kData,
           "the instruction \"{}\" contains <|image_pad|> or <|video_pad|>, which stand for pictures; take them out of "
           "it",
           excerpt(text));
    return ids;
  }

  std::int64_t tokens_of(const PatchGrid& grid) const {
    return grid[0] * (grid[1] / options.merge) * (grid[2] / options.merge);
  }

  /// The prompt with each image token repeated as often as its picture has tokens.
  std::vector<std::int64_t> prompt(std::string_view text, std::span<const PatchGrid> grids) const {
    std::vector<std::int64_t> ids;
    std::size_t picture = 0;
    for (const std::int64_t id : short_prompt(text, grids.size()))
      ids.insert(ids.end(), id == image_token ? static_cast<std::size_t>(tokens_of(grids[picture++])) : 1, id);
    return ids;
  }

  VlmInput assemble(std::string_view text, std::vector<float> pixel_values, std::vector<PatchGrid> grids) const {
    VlmInput input;
    input.input_ids = prompt(text, grids);
    input.position_ids = rope_index(input.input_ids, grids, image_token, options.merge);
    input.image_grid_thw = std::move(grids);
    input.pixel_values = std::move(pixel_values);
    return input;
  }

  PatchGrid grid_of(const ImageSize& image, std::int64_t resolution, std::size_t index) const {
    return patch_grid(image, options, resolution, image_name(index));
  }

  std::int64_t values_of(const PatchGrid& grid) const { return grid[0] * grid[1] * grid[2] * options.row_values(); }

  std::string path;
  Tokenizer tokenizer;
  ImageProcessorOptions options;
  std::int64_t most_tokens;
  std::int64_t image_token, video_token;
};

VlmProcessor::VlmProcessor(const std::string& model_dir) : parts_(std::make_unique<Parts>(model_dir)) {}
VlmProcessor::~VlmProcessor() = default;

VlmInput VlmProcessor::prepare(std::string_view text, std::span<const Image> images, std::int64_t resolution) const {
  std::vector<PatchGrid> grids;
  std::int64_t values = 0;
  for (std::size_t i = 0; i < images.size(); ++i) {
    grids.push_back(parts_->grid_of(images[i].size(), resolution, i));
    values += parts_->values_of(grids.back());
  }
  std::vector<float> pixel_values = spare_pixels().take(static_cast<std::size_t>(values));
  std::span<float> rest(pixel_values);
  for (std::size_t i = 0; i < images.size(); ++i) {
    const auto count = static_cast<std::size_t>(parts_->values_of(grids[i]));
    write_patches(images[i], parts_->options, resolution, rest.first(count));
    rest = rest.subspan(count);
  }
  return parts_->assemble(text, std::move(pixel_values), std::move(grids));
}

VlmInput VlmProcessor::prepare_sizes(std::string_view text, std::span<const ImageSize> images,
                                     std::int64_t resolution) const {
  std::vector<PatchGrid> grids;
  for (std::size_t i = 0; i < images.size(); ++i) grids.push_back(parts_->grid_of(images[i], resolution, i));
  return parts_->assemble(text, {}, std::move(grids));
}

VlmInput VlmProcessor::prepare_pixels(std::string_view text, std::vector<float> pixel_values,
                                      std::vector<PatchGrid> image_grid_thw) const {
  std::int64_t patches = 0;
  for (const PatchGrid& grid : image_grid_thw) {
    const auto [frames, rows, columns] = grid;
    const std::int64_t merge = parts_->options.merge;
    constexpr std::int64_t kMost = 1 << 20;
    if (std::min({frames, rows, columns}) < 1 || std::max({frames, rows, columns}) > kMost || rows % merge != 0 ||
        columns % merge != 0)
      fail(ExitCode::kData, "image_grid_thw has {} x {} x {} patches; rows and columns must be multiples of {}", frames,
           rows, columns, merge);
    patches += frames * rows * columns;
  }
  if (patches * parts_->options.row_values() != static_cast<std::int64_t>(pixel_values.size()))
    fail(ExitCode::kData, "pixel_values has {} values, but image_grid_thw asks for {} patches of {}",
         pixel_values.size(), patches, parts_->options.row_values());
  return parts_->assemble(text, std::move(pixel_values), std::move(image_grid_thw));
}

SampleShape VlmProcessor::shape(std::string_view text, std::span<const ImageSize> images,
                                std::int64_t resolution) const {
  SampleShape shape;
  shape.tokens = static_cast<std::int64_t>(parts_->short_prompt(text, images.size()).size());
  for (std::size_t i = 0; i < images.size(); ++i) {
    const PatchGrid grid = parts_->grid_of(images[i], resolution, i);
    shape.tokens += parts_->tokens_of(grid) - 1;
    shape.patches += grid[0] * grid[1] * grid[2];
  }
  return shape;
}

std::int64_t VlmProcessor::most_tokens() const { return parts_->most_tokens; }
const Tokenizer& VlmProcessor::tokenizer() const { return parts_->tokenizer; }
const ImageProcessorOptions& VlmProcessor::image_options() const { return parts_->options; }

}  // namespace plimsoll::data
