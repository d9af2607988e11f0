#include "train/policy.h"

#include "core/error.h"
#include "memory/guardian.h"
#include "model/vla.h"
#include "train/checkpoint.h"
#include "train/device.h"
#include "train/evaluate.h"
#include "train/flat_buffers.h"
#include "train/options.h"
#include "train/session.h"
#include "train/source.h"

namespace plimsoll::train {
namespace {

// Far behind any position that training reaches, and before those of evaluate.cpp.
constexpr std::uint64_t kFirstEpisodePosition = std::uint64_t{1} << 61;
constexpr std::uint64_t kStepsOfAnEpisode = std::uint64_t{1} << 20;
// Held-out samples that are measured on together.
constexpr std::int64_t kMeasuredAtOnce = 16;

std::uint64_t position_of(const data::PolicyQuery& query) {
  return kFirstEpisodePosition + static_cast<std::uint64_t>(query.episode) * kStepsOfAnEpisode +
         static_cast<std::uint64_t>(query.step);
}

model::VlaOptions acting_options(const Config& config, const data::SampleDims& dims, const PolicyOptions& options) {
  model::VlaOptions result = vla_options(config, dims);
  if (options.sampling_steps > 0) result.expert.sampling_steps = static_cast<int>(options.sampling_steps);
  return result;
}

memory::DeviceMemory& with_all_that_is_free(const Device& device) {
  device.memory->set_budget(device.available());
  return *device.memory;
}

}  // namespace

struct Policy::Parts {
  Parts(const Config& chosen, const PolicyOptions& options)
      : config(chosen),
        device(open_device(config.run.device, 0)),
        meter(with_all_that_is_free(device)),
        source(make_lerobot_source(config)),
        model(acting_options(config, source->dims(), options), device.place),
        rules(model.packing_rules(options.seed, true)) {
    set_threads(config.run, 1);
  }

  std::vector<float> executable(std::span<const float> chunk, const data::PolicyQuery& query) const {
    return source->executable(chunk, query.frames.back());
  }

  Config config;
  Device device;
  memory::DeviceMemory& meter;
  std::unique_ptr<data::LeRobotSource> source;
  model::VlaModel model;
  model::PackingRules rules;
};

std::filesystem::path newest_checkpoint_of(const Config& config) {
  const auto root = std::filesystem::path(config.run.dir) / "checkpoints";
  if (auto newest = newest_checkpoint(root)) return *newest;
  fail(ExitCode::kCheckpoint, "{}: holds no complete checkpoint of a run", root.string());
}

Policy::Policy(const Config& config, const PolicyOptions& options) : parts_(std::make_unique<Parts>(config, options)) {}
Policy::~Policy() = default;

std::int64_t Policy::read(const std::filesystem::path& checkpoint) {
  // Only to find the tensors by name: the weights stay where these buffers put them, the rest of them goes.
  FlatBuffers buffers(parts_->model.parameters(), 0);
  const RunState state = read_checkpoint(checkpoint, buffers);
  if (state.configuration != learned_settings_hash(parts_->config))
    fail(ExitCode::kUsage,
         "{}: was written under settings that learn something else than these; evaluate it with its run's own "
         "configuration (--run, or the config.toml in the run's folder)",
         checkpoint.string());
  return state.step;
}

std::vector<std::vector<float>> Policy::chunks(std::span<const data::PolicyQuery> queries) const {
  std::vector<Sample> samples;
  samples.reserve(queries.size());
  for (const auto& query : queries)
    samples.push_back(parts_->source->sample_of(query.frames, query.table->instruction()));
  std::vector<std::vector<float>> chunks;
  const auto attempt = [&](memory::Piece piece) {
    std::vector<model::StreamSample> drawn;
    for (std::size_t i = piece.begin; i < piece.begin + piece.count; ++i)
      drawn.push_back({&samples[i], position_of(queries[i])});
    const at::Tensor actions =
        parts_->model.sample_actions(model::pack(drawn, parts_->rules, parts_->device.place)).cpu();
    const std::span values(actions.data_ptr<float>(), static_cast<std::size_t>(actions.numel()));
    const std::size_t stride = values.size() / piece.count;
    for (std::size_t i = 0; i < piece.count; ++i)
      chunks.push_back(parts_->executable(values.subspan(i * stride, stride), queries[piece.begin + i]));
  };
  const auto unknown = [](memory::Piece, std::int64_t) { return std::int64_t{0}; };
  const auto report =
      memory::Guardian(parts_->meter).run(samples.size(), samples.size(), {attempt, [] {}, unknown, nullptr, nullptr});
  if (report.failed)
    fail(ExitCode::kMemory, "episode {}, step {}: one observation alone does not fit: {}",
         queries[report.failed_sample].episode, queries[report.failed_sample].step, report.error);
  return chunks;
}

ActionError Policy::action_error(std::int64_t count) const {
  const auto seed = static_cast<std::uint64_t>(parts_->config.run.seed);
  const Examinee examinee{parts_->model, *parts_->source, parts_->device.place, parts_->meter, seed, kMeasuredAtOnce,
                          nullptr,       nullptr};
  return measure_action_error(examinee, count, *ddp::make_solo());
}

}  // namespace plimsoll::train
