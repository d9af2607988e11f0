#pragma once
// Instruction and camera pictures to what the VLM reads (core/sample.h), in Qwen's chat template:
//
//   <|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n
//   per picture <|vision_start|><|image_pad|>...<|vision_end|>   then the text   <|im_end|>\n<|im_start|>assistant\n

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "core/sample.h"
#include "data/image_file.h"
#include "data/image_processor.h"
#include "data/tokenizer.h"

namespace plimsoll::data {

/// Tokenizer and image processor of a model directory. Immutable: any thread may use one object.
///
/// Special tokens spelled out in the text are parsed as such, as transformers' processor does; `<|image_pad|>` or
/// `<|video_pad|>` in it would have no picture and is refused with Error(kData).
class VlmProcessor {
 public:
  /// Reads tokenizer.json and the processor's configuration of `model_dir`. Throws Error(kData) naming file and key.
  explicit VlmProcessor(const std::string& model_dir);
  ~VlmProcessor();

  /// Everything the VLM reads for `text` and `images`, in that order of pictures. `resolution` bounds the longer side
  /// of every picture in pixels before the processor's own resizing; 0 leaves it. Errors of a picture start with "image
  /// <i>".
  VlmInput prepare(std::string_view text, std::span<const Image> images, std::int64_t resolution = 0) const;

  /// The same without the pixels: `pixel_values` stays empty.
  VlmInput prepare_sizes(std::string_view text, std::span<const ImageSize> images, std::int64_t resolution = 0) const;

  /// The same from given patches in place of pictures (`pixel_values` [patches, 1176], a grid per picture): for
  /// comparisons.
  VlmInput prepare_pixels(std::string_view text, std::vector<float> pixel_values,
                          std::vector<std::array<std::int64_t, 3>> image_grid_thw) const;

  /// Tokens and patches that prepare() would give, from the pictures' sizes alone. Cheap.
  SampleShape shape(std::string_view text, std::span<const ImageSize> images, std::int64_t resolution = 0) const;

  /// max_position_embeddings of the model's config.json, the tokens that a prompt may have; 0 where it does not say.
  std::int64_t most_tokens() const;

  const Tokenizer& tokenizer() const;
  const ImageProcessorOptions& image_options() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace plimsoll::data
