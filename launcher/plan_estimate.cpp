#include "launcher/plan_estimate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/bytes.h"
#include "memory/planning/first_plan.h"
#include "train/calibration_file.h"
#include "train/device.h"
#include "train/options.h"
#include "train/plan_table_file.h"

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

// Of so many samples the heaviest that there are; fewer shapes only where all are alike.
memory::MicroBatchShape heaviest_of(const train::ForecastSamples& known, std::int64_t samples) {
  const auto heaviest = memory::heaviest(known.heaviest, static_cast<std::size_t>(samples), known.times);
  memory::MicroBatchShape total{samples, 0, 0};
  for (std::int64_t i = 0; i < samples; ++i)
    total += heaviest[std::min(static_cast<std::size_t>(i), heaviest.size() - 1)];
  return total;
}

/// How micro-batches are cut on one card: by the plan's number of samples, or by bytes (Session::fill).
struct Cut {
  memory::Plan plan;
  std::int64_t most_samples = 0;
  std::int64_t most_bytes = std::numeric_limits<std::int64_t>::max();  ///< of activations; a single sample may be more
};

/// `beside`: what is live all the time.
Cut cut_on(const train::Config& config, const memory::Plan& plan, std::int64_t share, std::int64_t usable,
           std::int64_t beside) {
  if (config.batch.packing != "bytes") return {plan, plan.micro_batch};
  const Setting& most = config.batch.max_memory;
  std::int64_t bytes = usable * train::policy_config(config).target / 10000;
  if (!most.is("budget")) bytes = std::min(bytes, bytes_or_auto(most, "batch.max_memory").value_or(bytes));
  return {plan, std::min(share, config.batch.max_micro), std::max<std::int64_t>(1, bytes - beside)};
}

using ShapeOf = std::function<memory::MicroBatchShape(std::int64_t samples)>;

// As many of these samples as make a micro-batch, at least one.
std::int64_t samples_in(const Cut& cut, const train::Forecast& forecast, const ShapeOf& shape_of) {
  if (cut.most_bytes == std::numeric_limits<std::int64_t>::max()) return cut.most_samples;
  const auto fits = [&](int samples) {
    return forecast.dry().activation_bytes(shape_of(samples), cut.plan) <= cut.most_bytes;
  };
  return std::max(1, memory::largest_micro_batch(1, static_cast<int>(cut.most_samples), fits));
}

TypeEstimate estimate_type(const TypeOfSamples& type, const train::Forecast& forecast, const Cut& cut) {
  TypeEstimate estimate;
  estimate.name = type.name;
  estimate.part = type.part;
  estimate.samples = std::ssize(type.shapes);
  estimate.heaviest = memory::heaviest(type.shapes, 1).front();
  const auto of_type = [&](std::int64_t samples) { return times(estimate.heaviest, samples); };
  estimate.sample_bytes = forecast.dry().activation_bytes(of_type(1), cut.plan);
  estimate.batch_samples = samples_in(cut, forecast, of_type);
  estimate.batch_bytes = forecast.dry().activation_bytes(of_type(estimate.batch_samples), cut.plan);
  return estimate;
}

// A sample that fits nowhere is run alone.
std::int64_t most_by_bytes(const train::Config& config, const train::ForecastSamples& known,
                           const train::Forecast& forecast, const Cut& cut) {
  const auto& dry = forecast.dry();
  const std::int64_t together = dry.activation_bytes(heaviest_of(known, cut.most_samples), cut.plan);
  const std::int64_t alone = dry.activation_bytes(heaviest_of(known, 1), cut.plan);
  const std::int64_t training = std::max(alone, std::min(together, cut.most_bytes));
  if (config.train.eval_samples == 0) return training;
  return std::max(training, dry.evaluation_bytes(heaviest_of(known, cut.plan.micro_batch)));
}

// What one rank took alone, times the ranks.
void add_time(const train::Config& config, const train::Forecast& forecast, int ranks, std::int64_t usable,
              const RunEstimate& run, CardEstimate& card) {
  card.rate = run.asked.rate;
  if (!card.rate) {
    const train::RowWanted wanted{train::dry_runs_stand_for_a_gpu(),
                                  train::model_key(config, forecast.dry().layout_hash()), forecast.share()};
    const auto found = train::find_row(config.memory.table, wanted, usable);
    if (!found || found->row.milli_samples_per_second <= 0) return;
    card.rate = static_cast<double>(found->row.milli_samples_per_second) / 1000.0 * ranks;
    card.table = found->file;
  }
  card.seconds = static_cast<double>(run.steps * run.batch) / *card.rate;
}

std::string duration(double seconds) {
  if (seconds < 120) return fmt::format("{:.0f} s", seconds);
  if (seconds < 7200) return fmt::format("{:.0f} min", seconds / 60);
  return fmt::format("{:.1f} h", seconds / 3600);
}

/// Of one card that has a plan; types are taken in with the first.
CardEstimate estimate_card(const train::Config& config, const train::ForecastSamples& known,
                           const std::vector<TypeOfSamples>& types, const train::CardForecast& found, int ranks,
                           const train::Forecast& forecast, RunEstimate& run) {
  const memory::Plan& plan = found.best->plan;
  const std::int64_t beside = found.best->live - forecast.activation_bytes(plan);
  const Cut cut = cut_on(config, plan, forecast.share(), found.usable, beside);
  const auto usual = [&](std::int64_t samples) { return usual_micro_batch(types, samples); };
  CardEstimate card;
  card.card = found.card;
  card.plan = plan;
  card.peak = found.best->live;
  if (config.batch.packing == "bytes") {
    card.fill = cut.most_bytes;
    card.peak = beside + most_by_bytes(config, known, forecast, cut);
  }
  card.usual_samples = samples_in(cut, forecast, usual);
  card.usual = beside + forecast.dry().activation_bytes(usual(card.usual_samples), plan);
  if (run.types.empty())
    for (const auto& type : types) run.types.push_back(estimate_type(type, forecast, cut));
  add_time(config, forecast, ranks, found.usable, run, card);
  return card;
}

}  // namespace

RunEstimate estimate_run(const train::Config& config, const train::ForecastSamples& samples,
                         const std::vector<TypeOfSamples>& types, int ranks, const EstimateInput& input) {
  RunEstimate estimate;
  estimate.asked = input;
  estimate.batch = config.batch.effective;
  // So little more that no whole number of draws falls short by rounding.
  const double draws = input.epochs * static_cast<double>(input.samples) + 1e-6;
  estimate.steps = input.steps > 0 ? input.steps : train::steps_of(static_cast<std::int64_t>(draws), estimate.batch);
  if (input.rate) estimate.seconds = static_cast<double>(estimate.steps * estimate.batch) / *input.rate;
  train::ForecastSamples known = samples;
  known.heaviest = all_shapes(types);
  train::Forecast forecast(config, known, ranks);
  for (const std::int64_t size : input.cards) {
    const auto found = forecast.card(size, input.overhead, 0, input.expandable_segments);
    CardEstimate nothing;
    nothing.card = size;
    estimate.cards.push_back(found.best ? estimate_card(config, known, types, found, ranks, forecast, estimate)
                                        : nothing);
  }
  return estimate;
}

namespace {

std::string head_text(const RunEstimate& estimate) {
  const std::string run = fmt::format("{} samples, {:.4g} epochs, batches of {}: {} steps", estimate.asked.samples,
                                      estimate.asked.epochs, estimate.batch, estimate.steps);
  if (estimate.seconds)
    return fmt::format("{}, {} at {:.4g} samples/s", run, duration(*estimate.seconds), *estimate.asked.rate);
  for (const auto& card : estimate.cards)
    if (card.seconds)
      return fmt::format("{}; their time is by {}, as `plimsoll tune` measured it on one rank, times the ranks", run,
                         card.table);
  return run +
         "; for the time give --rate, or --run with a run that was made, or measure plans on such a machine with "
         "`plimsoll tune` (memory.table)";
}

std::string card_text(const CardEstimate& card) {
  if (!card.plan) return fmt::format("| {} | nothing fits | | | |\n", format_bytes(card.card));
  const std::string cut =
      card.fill ? fmt::format("micro-batches up to {} of activations, about {} samples; under the plan of ",
                              format_bytes(*card.fill), card.usual_samples)
                : "";
  const std::string time =
      card.seconds ? fmt::format("{} at {:.4g} samples/s", duration(*card.seconds), *card.rate) : "";
  return fmt::format("| {} | {}{} | {} | {} | {} |\n", format_bytes(card.card), cut, memory::to_string(*card.plan),
                     format_bytes(card.peak), format_bytes(card.usual), time);
}

}  // namespace

std::string to_text(const RunEstimate& estimate) {
  std::string text = head_text(estimate) + "\n\n";
  if (!estimate.types.empty())
    text +=
        "| type | part of the draws | heaviest sample | activations of one | of a micro-batch of them |\n"
        "|---|---:|---|---:|---:|\n";
  for (const auto& type : estimate.types)
    text += fmt::format("| {} | {:.1f} % | {} tokens, {} patches | {} | {} ({} samples) |\n", type.name,
                        100 * type.part, type.heaviest.tokens, type.heaviest.patches, format_bytes(type.sample_bytes),
                        format_bytes(type.batch_bytes), type.batch_samples);
  text += "\n| GPU memory | plan | peak | usual micro-batch | time |\n|---|---|---:|---:|---:|\n";
  for (const auto& card : estimate.cards) text += card_text(card);
  return text;
}

namespace {

template <class T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json card_json(const CardEstimate& card) {
  if (!card.plan) return {{"card", card.card}, {"micro_batch", nullptr}, {"peak", nullptr}, {"usual", nullptr}};
  return {{"card", card.card},
          {"micro_batch", card.plan->micro_batch},
          {"recompute_blocks", card.plan->recompute_blocks},
          {"fill", or_null(card.fill)},
          {"peak", card.peak},
          {"usual", card.usual},
          {"usual_samples", card.usual_samples},
          {"samples_per_second", or_null(card.rate)},
          {"seconds", or_null(card.seconds)},
          {"table", card.table.empty() ? Json(nullptr) : Json(card.table)}};
}

}  // namespace

std::string to_json(const RunEstimate& estimate) {
  Json json{{"samples", estimate.asked.samples},
            {"epochs", estimate.asked.epochs},
            {"batch", estimate.batch},
            {"steps", estimate.steps},
            {"seconds", or_null(estimate.seconds)},
            {"samples_per_second", or_null(estimate.asked.rate)},
            {"types", Json::array()},
            {"cards", Json::array()}};
  for (const auto& type : estimate.types)
    json["types"].push_back({{"name", type.name},
                             {"part", type.part},
                             {"samples", type.samples},
                             {"tokens", type.heaviest.tokens},
                             {"patches", type.heaviest.patches},
                             {"sample_bytes", type.sample_bytes},
                             {"batch_bytes", type.batch_bytes},
                             {"batch_samples", type.batch_samples}});
  for (const auto& card : estimate.cards) json["cards"].push_back(card_json(card));
  return json.dump(2) + "\n";
}

}  // namespace plimsoll
