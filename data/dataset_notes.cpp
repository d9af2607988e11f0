#include "data/dataset_notes.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>

#include "core/error.h"

namespace plimsoll::data {
namespace {

/// A feature's place in a sample, by the name that its settings have.
struct Role {
  const char* name = "";
  FeatureChoice choice;
  FeatureStatistics statistics;         // of the dimensions in use
  std::vector<std::size_t> relative{};  // of these, ascending: they go by statistics of their own
};

bool has_no_range(Normalisation kind, const FeatureStatistics& statistics, std::size_t i) {
  const auto equal = [&](const std::vector<double>& low, const std::vector<double>& high) {
    return i < std::min(low.size(), high.size()) && low[i] == high[i];
  };
  if (kind == Normalisation::kMeanStd) return i < statistics.std.size() && statistics.std[i] == 0;
  if (kind == Normalisation::kMinMax) return equal(statistics.min, statistics.max);
  return equal(statistics.q01, statistics.q99);
}

const char* why_no_range(Normalisation kind) {
  if (kind == Normalisation::kMeanStd) return "std is 0";
  return kind == Normalisation::kMinMax ? "min is max" : "q01 is q99";
}

/// As the feature numbers them.
std::vector<std::int64_t> dimensions_without_range(const Role& role, Normalisation kind) {
  std::vector<std::int64_t> found;
  for (std::size_t i = 0; i < role.statistics.mean.size(); ++i) {
    const bool relative = std::binary_search(role.relative.begin(), role.relative.end(), i);
    if (relative || !has_no_range(kind, role.statistics, i)) continue;
    found.push_back(role.choice.dimensions.empty() ? static_cast<std::int64_t>(i) : role.choice.dimensions[i]);
  }
  return found;
}

}  // namespace

std::vector<std::string> dataset_notes(const MappedDataset& mapped, const ResolvedMapping& mapping,
                                       bool own_statistics) {
  const LeRobotInfo& info = mapped.dataset().info();
  std::vector<std::string> notes = mapped.dataset().notes();
  if (!own_statistics) return notes;
  const VectorStatistics& statistics = mapped.statistics();
  const Role roles[] = {
      {"state", mapping.state, statistics.state.values},
      {"action", mapping.action, statistics.action.values, mapped.action_space().relative_dimensions()},
      {"sensor", mapping.sensor, statistics.sensor.values}};
  const Normalisation kind = mapped.options().normalisation;
  for (const Role& role : roles) {
    const auto constant = dimensions_without_range(role, kind);
    if (constant.empty()) continue;
    notes.push_back(fmt::format(
        "{}/{}: statistics of \"{}\": zero range ({}) in dimensions {}, which normalisation makes {}; correct the "
        "statistics, or leave them out by {}_dimensions in data.mix",
        info.root, info.statistics_file, role.choice.feature, why_no_range(kind), fmt::join(constant, ", "),
        kind == Normalisation::kMeanStd ? 0 : -1, role.name));
  }
  return notes;
}

void check_prompt_length(const LeRobotDataset& dataset, std::int64_t frame, std::int64_t tokens,
                         const VlmProcessor& processor) {
  const std::int64_t most = processor.most_tokens();
  if (most == 0 || tokens <= most) return;
  const LeRobotInfo& info = dataset.info();
  fail(ExitCode::kData,
       "{}/{}: task {} (its task_index) has {} bytes, and with its pictures takes {} tokens at index {}, but the model "
       "has {} positions (max_position_embeddings in its config.json); shorten the text, or lower data.resolution",
       info.root, info.tasks_file, dataset.row(frame).task_index, dataset.task(frame).size(), tokens, frame, most);
}

}  // namespace plimsoll::data
