#include "train/flat_buffers.h"

#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "core/error.h"
#include "core/hash.h"
#include "core/scope.h"

namespace plimsoll::train {
namespace {

constexpr std::int64_t kAlignment = 16;  // elements: one cache line

at::Tensor zeros(std::int64_t elements, at::Device device, const char* label, at::ScalarType dtype = at::kFloat) {
  const AllocationLabel scope(label);
  return at::zeros({elements}, at::TensorOptions(dtype).device(device));
}

}  // namespace

HostValues::HostValues(std::span<const float> values, const FlatKernels& kernels, bool on_host) : values_(values) {
  if (on_host) return;
  copy_.resize(values.size());
  kernels.to_host(values, copy_.data());
  values_ = copy_;
}

FlatBuffers::FlatBuffers(const std::vector<model::Parameter>& parameters, std::int64_t extra)
    : owners_(parameters), extra_(static_cast<std::size_t>(extra), 0.0F) {
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
  bad_ = zeros(1, device, "staging", at::kInt);
  kernels_ = flat_kernels_for(device.type());
  on_host_ = device.is_cpu();
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
  if (device.is_meta()) return;
  accumulation_.kernels = kernels_;
  accumulation_.bad = static_cast<std::uint32_t*>(bad_.data_ptr());
  point_at_buffers();
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
    kernels_->fill_zeros(span(sums_).first(static_cast<std::size_t>(elements_)));
    accumulation_.empty = false;
  }
  return span(sums_);
}

void FlatBuffers::reduce(const std::function<void(std::span<float>)>& sum) {
  const std::span<float> all = reduction();
  const std::span<float> slots = all.subspan(static_cast<std::size_t>(elements_));
  kernels_->from_host(extra_, slots.data());
  sum(all);
  kernels_->to_host(slots, extra_.data());
}

void FlatBuffers::start_step() {
  accumulation_.empty = true;
  std::ranges::fill(extra_, 0.0F);
  discard_staging();
}

void FlatBuffers::commit_staging() {
  for (const auto& sink : sinks_) sink->complete();
  std::swap(sums_, staging_);
  point_at_buffers();
  accumulation_.empty = false;
  discard_staging();
}

void FlatBuffers::discard_staging() {
  for (const auto& sink : sinks_) sink->discard();
  if (kernels_ != nullptr) kernels_->clear(accumulation_.bad);
}

void FlatBuffers::check_sinks() const {
  for (std::size_t i = 0; i < owners_.size(); ++i) {
    if (torch::autograd::impl::try_get_grad_accumulator(owners_[i].tensor) == sinks_[i]) continue;
    fail(ExitCode::kUsage, "the gradient of {} no longer goes to staging; something replaced its accumulator",
         slots_[i].name);
  }
}

std::uint64_t FlatBuffers::weight_hash() const {
  return xxh3_64(std::as_bytes(on_host(span(parameters_)).span())) >> 16;
}

std::uint64_t FlatBuffers::layout_hash() const {
  std::string text;
  for (const auto& slot : slots_) text += fmt::format("{}:{}:{};", slot.name, slot.range.begin, slot.range.end);
  return xxh3_64(std::as_bytes(std::span<const char>(text)));
}

}  // namespace plimsoll::train
