#include "train/feature_upkeep.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "ddp/handshake.h"
#include "report/records.h"
#include "train/encode.h"
#include "train/feature_cache.h"

namespace plimsoll::train {
namespace {

constexpr double kMillion = 1e6;

std::int64_t millionths(double value) {
  return std::isfinite(value) ? std::llround(std::clamp(value, 0.0, 1.0) * kMillion) : std::llround(kMillion);
}

/// Of one sample: features now beside those in the cache. Not by tensors: those would count against the budget.
template <class T>
void compare(const T* now, const T* cached, std::size_t count, FeatureDrift& drift) {
  double apart = 0, both = 0, of_now = 0, of_cached = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto a = static_cast<double>(now[i]), b = static_cast<double>(cached[i]);
    apart += (a - b) * (a - b);
    both += a * b;
    of_now += a * a;
    of_cached += b * b;
  }
  ++drift.samples;
  drift.distances += millionths(std::sqrt(apart / std::max(of_cached, 1e-30)));
  drift.angles += millionths(1.0 - both / std::sqrt(std::max(of_now * of_cached, 1e-30)));
}

// In the compute dtype.
void compare_as(at::ScalarType dtype, const std::byte* now, const std::byte* cached, std::size_t count,
                FeatureDrift& drift) {
  if (dtype == at::kFloat)
    return compare(reinterpret_cast<const float*>(now), reinterpret_cast<const float*>(cached), count, drift);
  compare(reinterpret_cast<const at::BFloat16*>(now), reinterpret_cast<const at::BFloat16*>(cached), count, drift);
}

}  // namespace

FeatureUpkeep::FeatureUpkeep(Session& session, RunLog& log) : session_(session), log_(log) {
  const auto& config = session.config.cache;
  rules_ = {config.rebuild_epochs, std::llround(config.drift_bound * kMillion), config.rebuild_over};
  if (!session.cache->ages()) return;
  // What was left when the run stopped right after that step.
  const std::int64_t step = session.state.step;
  const auto& state = session.state.features;
  if (state.begun >= 0 && state.parts <= step - state.begun) rebuild(step);
  if (looks_after(step)) look();
}

bool FeatureUpkeep::looks_after(std::int64_t step) const {
  const std::int64_t every = session_.config.cache.drift_every;
  return every > 0 && step > 0 && step % every == 0 && step < session_.steps;
}

void FeatureUpkeep::conclude(std::int64_t step, std::span<const ddp::Report> reports) {
  const std::int64_t batch = session_.config.batch.effective, length = session_.stream.epoch_length();
  const std::int64_t epochs = step * batch / length - (step - 1) * batch / length;
  auto& state = session_.state.features;
  if (!session_.cache->ages()) {
    if (epochs > 0 || step == session_.steps) publish(step, 0);
    return;
  }
  take_in(step, reports);
  drift_ = {};
  if (epochs > 0) {
    state.epochs += epochs;
    publish(step, cache::stamp_in_step(step));
  } else if (step == session_.steps) {
    say_use(step);
  }
  const auto why = cache::rebuild_due(rules_, state, epochs > 0);
  if (step >= session_.steps) return;
  if (const auto still = cache::rebuild_postponed(rules_, state, epochs > 0)) {
    log_.cache_decision(step, "postponed", *still, state.drift);
    log_.line("feature cache: no rebuild yet: " + *still);
  }
  if (!why) return;
  state.begun = step;
  state.parts = 0;
  made_ = 0;
  seconds_ = 0;
  log_.cache_decision(step, "rebuild", *why, state.drift);
  log_.line(fmt::format("feature cache: rebuilding the features of {} samples after step {}: {}",
                        session_.source.training().size(), step, *why));
}

void FeatureUpkeep::work(std::int64_t step) {
  if (!session_.cache->ages()) return;
  const auto start = std::chrono::steady_clock::now();
  if (session_.state.features.begun >= 0) rebuild(step);
  if (looks_after(step)) look();
  spent_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// What the ranks found after the step before this one.
void FeatureUpkeep::take_in(std::int64_t step, std::span<const ddp::Report> reports) {
  std::int64_t samples = 0, distances = 0, angles = 0;
  for (const auto& report : reports) {
    samples += report.probed;
    distances += report.drift_sum;
    angles += report.angle_sum;
  }
  if (samples == 0) return;
  session_.state.features.drift = distances / samples;
  const auto mean = [samples](std::int64_t sum) { return static_cast<double>(sum / samples) / kMillion; };
  log_.drift({step, samples, mean(distances), 1.0 - mean(angles)});
}

void FeatureUpkeep::look() {
  const auto& training = session_.source.training();
  const auto all = std::ssize(training), count = std::min(session_.config.cache.probe_samples, all);
  std::vector<std::int64_t> probes;
  for (std::int64_t i = 0; i < count; ++i) probes.push_back(training[static_cast<std::size_t>(i * all / count)]);
  const int rank = session_.communicator.rank(), world = session_.communicator.world();
  const std::vector<std::int64_t> mine(probes.begin() + count * rank / world,
                                       probes.begin() + count * (rank + 1) / world);
  drift_ = {};
  encode(session_, model::Features::kStates, mine,
         [&](std::span<const model::StreamSample> samples, const at::Tensor& states) {
           take_drift(samples, states.device().is_cpu() ? states : states.cpu());
         });
}

void FeatureUpkeep::take_drift(std::span<const model::StreamSample> samples, const at::Tensor& now) {
  std::size_t at = 0;
  for (const auto& item : samples) {
    const auto cached = session_.cache->known_states(*item.sample);
    const std::size_t count = item.sample->vlm.input_ids.size() * static_cast<std::size_t>(now.size(1));
    if (!cached.empty())
      compare_as(now.scalar_type(), static_cast<const std::byte*>(now.const_data_ptr()) + at * now.element_size(),
                 cached.data(), count, drift_);
    at += count;
  }
}

void FeatureUpkeep::rebuild(std::int64_t step) {
  auto& state = session_.state.features;
  const auto start = std::chrono::steady_clock::now();
  const std::span<const std::int64_t> training = session_.source.training();
  session_.communicator.enter(step, "rebuild the feature cache");
  const auto part = cache::part_of_rebuild(rules_, state, std::ssize(training));
  const auto count = static_cast<std::size_t>(part.end - part.begin);
  if (state.parts == 0) session_.cache->end_segment();
  const auto take = [&](std::span<const model::StreamSample> samples, const at::Tensor& states) {
    session_.cache->keep_after(step, samples, states);
    made_ += std::ssize(samples);
  };
  encode_dealt(
      session_, model::Features::kStates, training.subspan(static_cast<std::size_t>(part.begin), count), take,
      [&] { return !session_.cache->has_room(); },
      [&](const std::string& text) { log_.line("feature cache: rebuilding: " + text); });
  ++state.parts;
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!part.last) return;
  const std::int64_t begun = std::exchange(state.begun, -1);
  state.oldest = cache::stamp_after_step(begun);
  state.epochs = 0;
  state.drift = -1;
  publish(step, cache::stamp_after_step(step));
  log_.cache_decision(step, "rebuilt", fmt::format("begun after step {}", begun), -1);
  const std::vector<std::int64_t> mine = {made_};
  std::int64_t made = 0;
  for (const auto& theirs : ddp::share_numbers(session_.communicator, mine)) made += theirs.at(0);
  log_.line(
      fmt::format("feature cache: rebuilt after step {}: {} samples in {:.1f} s; older features are read no more, and "
                  "cleared after the next checkpoint",
                  step, made, seconds_));
}

void FeatureUpkeep::say_use(std::int64_t step) {
  const auto samples = static_cast<double>(step * session_.config.batch.effective);
  auto use = session_.cache->use(step, samples / static_cast<double>(session_.stream.epoch_length()));
  use.upkeep_ms = 1000 * std::exchange(spent_, 0.0);
  log_.cache_use(use);
}

void FeatureUpkeep::publish(std::int64_t step, std::int64_t stamp) {
  auto& state = session_.state.features;
  state.published = stamp;
  session_.cache->publish(state);
  // What is loaded ahead was loaded before.
  if (session_.cache->ages() && session_.loader) session_.loader->seek(step + 1);
  say_use(step);
}

}  // namespace plimsoll::train
