#include "train/flat_buffers.h"

#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "core/error.h"
#include "core/hash.h"
#include "core/scope.h"

namespace plimsoll::train {
namespace {

constexpr std::int64_t kAlignment = 16;  // elements: one cache line

at::Tensor zeros(std::int64_t elements, at::Device device, const char* label) {
  const AllocationLabel scope(label);
  return at::zeros({elements}, at::TensorOptions(at::kFloat).device(device));
}

}  // namespace

FlatBuffers::FlatBuffers(const std::vector<model::Parameter>& parameters, std::int64_t extra) : owners_(parameters) {
  for (const auto& parameter : parameters) {
    const std::int64_t end = elements_ + parameter.tensor.numel();
    slots_.push_back({parameter.name, {elements_, end}, parameter.group});
    elements_ = (end + kAlignment - 1) / kAlignment * kAlignment;
  }
  const at::Device device = parameters.at(0).tensor.device();
  parameters_ = zeros(elements_, device, "trainable");
  staging_ = zeros(elements_ + extra, device, "staging");
  sums_ = zeros(elements_ + extra, device, "gradients");
  first_moment_ = zeros(elements_, device, "optimiser");
  second_moment_ = zeros(elements_, device, "optimiser");
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < owners_.size(); ++i) {
    const auto [begin, end] = slots_[i].range;
    at::Tensor tensor = owners_[i].tensor;
    const at::Tensor place = parameters_.slice(0, begin, end).view(tensor.sizes());
    place.copy_(tensor);
    tensor.set_data(place);
    tensor.mutable_grad().reset();
    sinks_.push_back(std::make_shared<GradientSink>(tensor, begin, accumulation_));
    torch::autograd::impl::set_grad_accumulator(tensor, sinks_.back());
  }
  if (!device.is_meta()) point_at_buffers();
}

void FlatBuffers::point_at_buffers() {
  accumulation_.sums = sums_.data_ptr<float>();
  accumulation_.staging = staging_.data_ptr<float>();
}

FlatRange FlatBuffers::group(model::ParameterGroup group) const {
  FlatRange range{-1, -1};
  for (const auto& slot : slots_) {
    if (slot.group != group) continue;
    if (range.begin < 0) range.begin = slot.range.begin;
    range.end = slot.range.end;
  }
  return range.begin < 0 ? FlatRange{} : range;
}

std::span<float> FlatBuffers::reduction() {
  if (accumulation_.empty) {
    std::ranges::fill(span(sums_).first(static_cast<std::size_t>(elements_)), 0.0F);
    accumulation_.empty = false;
  }
  return span(sums_);
}

void FlatBuffers::start_step() {
  accumulation_.empty = true;
  std::ranges::fill(extra(), 0.0F);
  discard_staging();
}

void FlatBuffers::commit_staging() {
  for (const auto& sink : sinks_) sink->complete();
  std::ranges::copy(extra(), staging_.data_ptr<float>() + elements_);
  std::swap(sums_, staging_);
  point_at_buffers();
  accumulation_.empty = false;
  discard_staging();
}

void FlatBuffers::discard_staging() {
  for (const auto& sink : sinks_) sink->discard();
  accumulation_.finite = true;
}

void FlatBuffers::check_sinks() const {
  for (std::size_t i = 0; i < owners_.size(); ++i) {
    if (torch::autograd::impl::try_get_grad_accumulator(owners_[i].tensor) == sinks_[i]) continue;
    fail(ExitCode::kUsage, "the gradient of {} no longer goes to staging; something replaced its accumulator",
         slots_[i].name);
  }
}

std::uint64_t FlatBuffers::weight_hash() const {
  return xxh3_64(std::as_bytes(std::span<const float>(span(parameters_)))) >> 16;
}

std::uint64_t FlatBuffers::layout_hash() const {
  std::string text;
  for (const auto& slot : slots_) text += fmt::format("{}:{}:{};", slot.name, slot.range.begin, slot.range.end);
  return xxh3_64(std::as_bytes(std::span<const char>(text)));
}

}  // namespace plimsoll::train
