#include "data/sample_stream.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/error.h"
#include "core/philox.h"

namespace plimsoll::data {
namespace {

constexpr std::size_t kPasses = 2;  // of a class that are kept: one behind, where the stream is; and those ahead

std::shared_ptr<const StreamOrder> one_type(std::vector<std::int64_t> samples, std::uint64_t seed) {
  return std::make_shared<const StreamOrder>(StreamOrder{std::move(samples), seed, {}, {}});
}

}  // namespace

SampleStream::SampleStream(std::vector<std::int64_t> samples, std::uint64_t seed)
    : SampleStream(one_type(std::move(samples), seed)) {}

SampleStream::SampleStream(std::shared_ptr<const StreamOrder> order, int ahead)
    : order_(std::move(order)),
      most_passes_(kPasses + static_cast<std::size_t>(ahead)),
      datasets_(std::max<std::size_t>(1, order_->weights.size())),
      types_(parts_of_types(*order_)),
      classes_(datasets_ * std::max<std::size_t>(1, order_->target.size())) {
  sort_into_classes();
  for (std::size_t type = 0; type * datasets_ < classes_.size(); ++type)
    datasets_of_.emplace_back(parts_of_datasets(type));
}

std::vector<std::int64_t> SampleStream::parts_of_types(const StreamOrder& order) {
  return order.target.empty() ? std::vector<std::int64_t>{1} : order.target;
}

void SampleStream::sort_into_classes() {
  const StreamOrder& from = *order_;
  for (std::size_t i = 0; i < from.samples.size(); ++i) {
    const std::size_t type = from.target.empty() ? 0 : from.types[i];
    const std::size_t dataset = from.weights.empty() ? 0 : from.datasets[i];
    classes_[class_of(type, dataset)].samples.push_back(from.samples[i]);
  }
}

// Datasets that have no samples of the type have no part of its draws.
std::vector<std::int64_t> SampleStream::parts_of_datasets(std::size_t type) const {
  std::vector<double> weights(datasets_);
  for (std::size_t dataset = 0; dataset < datasets_; ++dataset) {
    if (classes_[class_of(type, dataset)].samples.empty()) continue;
    weights[dataset] = order_->weights.empty() ? 1 : order_->weights[dataset];
  }
  if (std::ranges::any_of(weights, [](double weight) { return weight > 0; }))
    return parts_by_weight(std::move(weights), kWholeTarget);
  if (!order_->target.empty() && order_->target[type] > 0)
    fail(ExitCode::kUsage, "type {} of the samples is to have {} of {} draws and has no samples", type,
         order_->target[type], kWholeTarget);
  return {1};  // is never drawn
}

SampleStream::Draw SampleStream::draw_at(std::uint64_t position) const {
  const Turns::Turn of_type = types_.at(position);
  const Turns::Turn of_class = datasets_of_[of_type.taker].at(of_type.number);
  return {of_type.taker, of_class.taker, of_class.number};
}

std::int64_t SampleStream::at(std::uint64_t position) {
  const Draw draw = draw_at(position);
  const std::vector<std::int64_t>& samples = classes_[class_of(draw)].samples;
  const auto length = static_cast<std::uint64_t>(samples.size());
  return samples[pass(class_of(draw), draw.number / length).order[draw.number % length]];
}

std::uint64_t SampleStream::next_draw(std::uint64_t position) {
  const Draw draw = draw_at(position);
  const auto length = static_cast<std::uint64_t>(classes_[class_of(draw)].samples.size());
  const Local sample = pass(class_of(draw), draw.number / length).order[draw.number % length];
  Pass& next = pass(class_of(draw), draw.number / length + 1);
  if (next.places.empty()) {
    next.places.resize(next.order.size());
    for (std::size_t i = 0; i < next.order.size(); ++i) next.places[next.order[i]] = static_cast<Local>(i);
  }
  const std::uint64_t number = (draw.number / length + 1) * length + next.places[sample];
  return types_.position_of({draw.type, datasets_of_[draw.type].position_of({draw.dataset, number})});
}

SampleStream::Pass& SampleStream::pass(std::size_t number_of_class, std::uint64_t number) {
  Class& from = classes_[number_of_class];
  if (const auto found = from.passes.find(number); found != from.passes.end()) return found->second;
  std::vector<Local> order(from.samples.size());
  std::iota(order.begin(), order.end(), Local{0});
  const auto key = mix({order_->seed, number, static_cast<std::uint32_t>(number_of_class),
                        static_cast<std::uint32_t>(RandomSite::kSampler)});
  // Fisher and Yates from the back; 64 random bits make the modulo's bias immaterial.
  for (std::size_t i = order.size(); i > 1; --i) {
    const auto words = random_words(key, i);
    const std::uint64_t random = (static_cast<std::uint64_t>(words[0]) << 32) | words[1];
    std::swap(order[i - 1], order[random % i]);
  }
  while (from.passes.size() >= most_passes_) {
    const auto first = from.passes.begin(), last = std::prev(from.passes.end());
    from.passes.erase(number > first->first ? first : last);  // whoever goes back needs what lies behind
  }
  return from.passes[number] = {std::move(order), {}};
}

std::int64_t SampleStream::most_draws_in_a_step(std::int64_t effective_batch) const {
  if (classes_.size() == 1) return data::most_draws_in_a_step(epoch_length(), effective_batch);
  std::int64_t most = 1;
  for (std::size_t number = 0; number < classes_.size(); ++number) {
    const std::int64_t length = std::ssize(classes_[number].samples);
    if (length == 0) continue;
    const std::size_t type = number / datasets_, dataset = number % datasets_;
    const std::int64_t draws = datasets_of_[type].most_of(dataset, types_.most_of(type, effective_batch));
    if (draws == 0) continue;
    // So many draws in a row reach into so many passes.
    most = std::max(most, (draws + length - 2) / length + 1);
  }
  return std::min(most, effective_batch);
}

StreamRange share_of_step(std::int64_t step, std::int64_t effective_batch, int rank, int world) {
  const auto cut = [&](int r) {
    return static_cast<std::uint64_t>((step - 1) * effective_batch + effective_batch * r / world);
  };
  return {cut(rank), cut(rank + 1)};
}

std::int64_t most_draws_in_a_step(std::int64_t samples, std::int64_t effective_batch) {
  // Steps begin at multiples of this within an epoch; the last of them reaches furthest.
  const std::int64_t apart = std::gcd(samples, effective_batch);
  return (samples - apart + effective_batch - 1) / samples + 1;
}

}  // namespace plimsoll::data
