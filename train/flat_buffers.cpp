#include "train/flat_buffers.h"

#include <ATen/Parallel.h>

#include <atomic>
#include <bit>

#include "core/error.h"
#include "core/hash.h"
#include "core/scope.h"

namespace plimsoll::train {
namespace {

constexpr std::int64_t kAlignment = 16;   // elements: one cache line
constexpr std::int64_t kGrain = 1 << 16;  // elements a thread is worth waking for

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
  staging_ = zeros(elements_, device, "staging");
  reduction_ = zeros(elements_ + extra, device, "gradients");
  first_moment_ = zeros(elements_, device, "optimiser");
  second_moment_ = zeros(elements_, device, "optimiser");
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < owners_.size(); ++i) {
    const auto [begin, end] = slots_[i].range;
    at::Tensor tensor = owners_[i].tensor;
    const at::Tensor place = parameters_.slice(0, begin, end).view(tensor.sizes());
    place.copy_(tensor);
    tensor.set_data(place);
    tensor.mutable_grad() = staging_.slice(0, begin, end).view(tensor.sizes());
  }
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

bool FlatBuffers::staging_finite() const {
  const auto* words = reinterpret_cast<const std::uint32_t*>(staging_.data_ptr<float>());
  std::atomic<bool> finite{true};
  at::parallel_for(0, elements_, kGrain, [&](std::int64_t begin, std::int64_t end) {
    std::uint32_t bad = 0;  // an exponent of all ones is infinite or not a number
    for (std::int64_t i = begin; i < end; ++i)
      bad |= static_cast<std::uint32_t>((words[i] & 0x7f800000U) == 0x7f800000U);
    if (bad != 0) finite = false;
  });
  return finite;
}

void FlatBuffers::commit_staging() {
  float* gradients = reduction_.data_ptr<float>();
  float* staging = staging_.data_ptr<float>();
  at::parallel_for(0, elements_, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      gradients[i] += staging[i];
      staging[i] = 0.0F;
    }
  });
}

void FlatBuffers::clear_staging() { std::ranges::fill(staging(), 0.0F); }

void FlatBuffers::clear_reduction() {
  float* sums = reduction_.data_ptr<float>();
  at::parallel_for(0, reduction_.numel(), kGrain,
                   [&](std::int64_t begin, std::int64_t end) { std::fill(sums + begin, sums + end, 0.0F); });
}

void FlatBuffers::check_views() const {
  const float* base = staging_.data_ptr<float>();
  for (std::size_t i = 0; i < owners_.size(); ++i) {
    const at::Tensor& grad = owners_[i].tensor.grad();
    if (grad.defined() && grad.data_ptr<float>() == base + slots_[i].range.begin) continue;
    fail(ExitCode::kUsage,
         "the gradient of {} is no longer a view of staging; something called zero_grad or replaced it",
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
