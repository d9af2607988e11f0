#include "launcher/plan_estimate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/bytes.h"
#include "memory/planning/first_plan.h"
#include "train/options.h"

namespace plimsoll {
namespace {

using Json = nlohmann::ordered_json;

std::vector<SampleShape> all_shapes(const std::vector<TypeOfSamples>& types) {
  std::vector<SampleShape> all;
  for (const auto& type : types) all.insert(all.end(), type.shapes.begin(), type.shapes.end());
  return all;
}

memory::MicroBatchShape times(const SampleShape& shape, std::int64_t samples) {
  return {samples, shape.tokens * samples, shape.patches * samples};
}

// So many samples of the mixture's mean size; patches in fours, as one token takes four.
memory::MicroBatchShape usual_micro_batch(const std::vector<TypeOfSamples>& types, std::int64_t samples) {
  double tokens = 0, patches = 0;
  for (const auto& type : types) {
    const double part = type.part / static_cast<double>(type.shapes.size());
    for (const SampleShape& shape : type.shapes) {
      tokens += part * static_cast<double>(shape.tokens);
      patches += part * static_cast<double>(shape.patches);
    }
  }
  const auto count = static_cast<double>(samples);
  return {samples, std::llround(tokens * count), std::llround(patches * count / 4) * 4};
}

TypeEstimate estimate_type(const TypeOfSamples& type, const train::Forecast& forecast, const memory::Plan& plan) {
  TypeEstimate estimate;
  estimate.name = type.name;
  estimate.part = type.part;
  estimate.samples = std::ssize(type.shapes);
  estimate.heaviest = memory::heaviest(type.shapes, 1).front();
  estimate.sample_bytes = forecast.dry().activation_bytes(times(estimate.heaviest, 1), plan);
  estimate.batch_bytes = forecast.dry().activation_bytes(times(estimate.heaviest, plan.micro_batch), plan);
  return estimate;
}

std::string duration(double seconds) {
  if (seconds < 120) return fmt::format("{:.0f} s", seconds);
  if (seconds < 7200) return fmt::format("{:.0f} min", seconds / 60);
  return fmt::format("{:.1f} h", seconds / 3600);
}

}  // namespace

RunEstimate estimate_run(const train::Config& config, const train::ForecastSamples& samples,
                         const std::vector<TypeOfSamples>& types, int ranks, const EstimateInput& input) {
  RunEstimate estimate;
  estimate.asked = input;
  estimate.batch = config.batch.effective;
  const double draws = input.epochs * static_cast<double>(input.samples);
  estimate.steps = static_cast<std::int64_t>(std::ceil(draws / static_cast<double>(estimate.batch)));
  if (input.rate) estimate.seconds = static_cast<double>(estimate.steps * estimate.batch) / *input.rate;
  train::Forecast forecast(config, {samples.dims, all_shapes(types), samples.types}, ranks);
  for (const std::int64_t card : input.cards) {
    CardEstimate of_card{card, std::nullopt, 0, 0};
    const auto found = forecast.card(card, input.overhead, 0, input.expandable_segments);
    if (found.best) {
      const memory::Plan& plan = found.best->plan;
      of_card.plan = plan;
      of_card.peak = found.best->live;
      const std::int64_t beside = found.best->live - forecast.activation_bytes(plan);
      of_card.usual = beside + forecast.dry().activation_bytes(usual_micro_batch(types, plan.micro_batch), plan);
      if (estimate.types.empty())
        for (const auto& type : types) estimate.types.push_back(estimate_type(type, forecast, plan));
    }
    estimate.cards.push_back(of_card);
  }
  return estimate;
}

std::string to_text(const RunEstimate& estimate) {
  std::string text = fmt::format(
      "{} samples, {:g} epochs, batches of {}: {} steps{}\n\n", estimate.asked.samples, estimate.asked.epochs,
      estimate.batch, estimate.steps,
      estimate.seconds ? fmt::format(", {} at {:.4g} samples/s", duration(*estimate.seconds), *estimate.asked.rate)
                       : "; give --rate, or --run with a run that was made, for the time");
  if (!estimate.types.empty())
    text +=
        "| type | part of the draws | heaviest sample | activations of one | of a micro-batch of them |\n"
        "|---|---:|---|---:|---:|\n";
  for (const auto& type : estimate.types)
    text += fmt::format("| {} | {:.1f} % | {} tokens, {} patches | {} | {} |\n", type.name, 100 * type.part,
                        type.heaviest.tokens, type.heaviest.patches, format_bytes(type.sample_bytes),
                        format_bytes(type.batch_bytes));
  text += "\n| GPU memory | plan | peak | usual micro-batch |\n|---|---|---:|---:|\n";
  for (const auto& card : estimate.cards)
    text += card.plan ? fmt::format("| {} | {} | {} | {} |\n", format_bytes(card.card), memory::to_string(*card.plan),
                                    format_bytes(card.peak), format_bytes(card.usual))
                      : fmt::format("| {} | nothing fits | | |\n", format_bytes(card.card));
  return text;
}

std::string to_json(const RunEstimate& estimate) {
  Json json{{"samples", estimate.asked.samples},
            {"epochs", estimate.asked.epochs},
            {"batch", estimate.batch},
            {"steps", estimate.steps},
            {"seconds", nullptr},
            {"samples_per_second", nullptr},
            {"types", Json::array()},
            {"cards", Json::array()}};
  if (estimate.seconds) json["seconds"] = *estimate.seconds;
  if (estimate.asked.rate) json["samples_per_second"] = *estimate.asked.rate;
  for (const auto& type : estimate.types)
    json["types"].push_back({{"name", type.name},
                             {"part", type.part},
                             {"samples", type.samples},
                             {"tokens", type.heaviest.tokens},
                             {"patches", type.heaviest.patches},
                             {"sample_bytes", type.sample_bytes},
                             {"batch_bytes", type.batch_bytes}});
  for (const auto& card : estimate.cards) {
    Json one{{"card", card.card}, {"micro_batch", nullptr}, {"peak", nullptr}, {"usual", nullptr}};
    if (card.plan)
      one = {{"card", card.card},
             {"micro_batch", card.plan->micro_batch},
             {"recompute_blocks", card.plan->recompute_blocks},
             {"peak", card.peak},
             {"usual", card.usual}};
    json["cards"].push_back(one);
  }
  return json.dump(2) + "\n";
}

}  // namespace plimsoll
