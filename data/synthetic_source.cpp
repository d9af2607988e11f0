#include <algorithm>
#include <limits>
#include <numeric>
#include <string>

#include "core/philox.h"
#include "data/rope_index.h"
#include "data/sample_source.h"

namespace plimsoll::data {
namespace {

constexpr int kPatch = 14;
constexpr int kMerged = 28;  // pixels of a token's side

class SyntheticSource final : public SampleSource {
 public:
  explicit SyntheticSource(const SyntheticOptions& options) : options_(options) {
    training_.resize(static_cast<std::size_t>(std::max<std::int64_t>(1, options.samples - options.samples / 10)));
    std::iota(training_.begin(), training_.end(), 0);
    held_out_.resize(static_cast<std::size_t>(options.samples) - training_.size());
    std::iota(held_out_.begin(), held_out_.end(), static_cast<std::int64_t>(training_.size()));
  }

  std::int64_t size() const override { return options_.samples; }
  SampleDims dims() const override {
    return {options_.state_dim, options_.action_dim, options_.sensor_window, options_.sensor_channels};
  }
  std::vector<std::string> tasks() const override {
    std::vector<std::string> texts;
    for (std::int64_t task = 0; task < options_.tasks; ++task) texts.push_back("made-up task " + std::to_string(task));
    return texts;
  }
  std::int64_t task_of(std::int64_t index) const override { return options_.tasks > 0 ? index % options_.tasks : 0; }
  std::int64_t pictures_of(std::int64_t) const override { return options_.images; }
  const std::vector<std::int64_t>& training() const override { return training_; }
  const std::vector<std::int64_t>& held_out() const override { return held_out_; }
  std::uint64_t hash() const override {
    const auto shape = static_cast<std::uint32_t>(options_.largest_side * 4096 + options_.largest_text);
    return mix({options_.seed, static_cast<std::uint64_t>(options_.samples),
                static_cast<std::uint32_t>(options_.images), shape})[0];
  }

  SampleShape shape_of(std::int64_t index) const override {
    SampleShape shape{text_tokens(index), 0};
    for (int image = 0; image < options_.images; ++image) {
      const auto [rows, columns] = grid(index, image);
      shape.patches += rows * columns;
      shape.tokens += rows * columns / 4 + 2;
    }
    return shape;
  }

  Sample load(std::int64_t index) const override {
    Sample sample = load_without_pixels(index, 0);
    sample.vlm.pixel_values = normal(index, 1, shape_of(index).patches * 1176);
    return sample;
  }
  Sample load_without_pixels(std::int64_t index, std::int64_t) const override {
    Sample sample;
    sample.index = index;
    fill_prompt(index, sample.vlm);
    sample.state = normal(index, 2, options_.state_dim);
    sample.sensor = normal(index, 3, options_.sensor_window * options_.sensor_channels);
    sample.actions = normal(index, 4, options_.chunk * options_.action_dim);
    sample.action_is_pad.assign(static_cast<std::size_t>(options_.chunk), 0);
    if (index % 5 == 0) sample.action_is_pad.back() = 1;
    if (index == options_.not_a_number) sample.actions.front() = std::numeric_limits<float>::quiet_NaN();
    sample.instruction = "a made-up instruction";
    sample.task_index = task_of(index);
    return sample;
  }

 private:
  std::uint32_t word(std::int64_t index, std::uint32_t what) const {
    return random_words(mix({options_.seed, static_cast<std::uint64_t>(index), what, 0}), 0)[0];
  }

  std::vector<float> normal(std::int64_t index, std::uint32_t what, std::int64_t n) const {
    std::vector<float> values(static_cast<std::size_t>(n));
    fill_normal(
        {options_.seed, static_cast<std::uint64_t>(index), what, static_cast<std::uint32_t>(RandomSite::kSimulator)},
        values.data(), n);
    return values;
  }

  std::int64_t text_tokens(std::int64_t index) const {
    const auto range = static_cast<std::uint32_t>(options_.largest_text - options_.smallest_text + 1);
    return options_.smallest_text + word(index, 10) % range;
  }

  // Patch rows and columns.
  std::array<std::int64_t, 2> grid(std::int64_t index, int image) const {
    if (options_.heavy_every > 0 && index % options_.heavy_every == options_.heavy_every - 1) {
      return {2 * options_.largest_side / kPatch, 2 * options_.largest_side / kPatch};
    }
    const auto steps = static_cast<std::uint32_t>((options_.largest_side - options_.smallest_side) / kMerged + 1);
    const auto side = [&](std::uint32_t what) -> std::int64_t {
      const std::int64_t pixels = options_.smallest_side + kMerged * (word(index, what) % steps);
      return pixels / kPatch;
    };
    const auto what = static_cast<std::uint32_t>(20 + 2 * image);
    return {side(what), side(what + 1)};
  }

  void fill_prompt(std::int64_t index, VlmInput& vlm) const {
    auto& ids = vlm.input_ids;
    for (int image = 0; image < options_.images; ++image) {
      const auto [rows, columns] = grid(index, image);
      vlm.image_grid_thw.push_back({1, rows, columns});
      ids.push_back(options_.vision_start_token);
      ids.insert(ids.end(), static_cast<std::size_t>(rows * columns / 4), options_.image_token);
      ids.push_back(options_.vision_end_token);
    }
    for (std::int64_t i = 0; i < text_tokens(index); ++i) {
      ids.push_back(word(index, 100 + static_cast<std::uint32_t>(i)) % options_.vocabulary);
    }
    vlm.position_ids = rope_index(ids, vlm.image_grid_thw, options_.image_token);
  }

  SyntheticOptions options_;
  std::vector<std::int64_t> training_, held_out_;
};

}  // namespace

std::unique_ptr<SampleSource> make_synthetic_source(const SyntheticOptions& options) {
  return std::make_unique<SyntheticSource>(options);
}

}  // namespace plimsoll::data
