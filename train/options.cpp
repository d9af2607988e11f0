#include "train/options.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <thread>

#include "core/bytes.h"
#include "core/error.h"
#include "train/host_memory.h"

namespace plimsoll::train {
namespace {

std::int64_t size_or_fraction(const Setting& value, std::int64_t whole, const char* key) {
  if (value.is_string()) return parse_bytes(value.as_string(), key);
  if (value.is_integer()) return value.as_integer();
  return static_cast<std::int64_t>(value.as_double() * static_cast<double>(whole));
}

}  // namespace

model::VlaOptions vla_options(const Config& config, const data::SampleDims& dims) {
  model::VlaOptions options;
  options.path = config.model.path;
  options.adapter = config.model.adapter;
  const auto dtype = config.model.dtype == "bf16" ? at::kBFloat16 : at::kFloat;
  options.precision = {dtype, dtype};
  options.stage = static_cast<int>(config.train.stage);
  options.lora = {static_cast<int>(config.lora.rank), config.lora.alpha, config.lora.dropout, config.lora.targets};
  const auto& e = config.expert;
  options.expert.kind = e.kind;
  options.expert.width = static_cast<int>(e.width);
  options.expert.depth = static_cast<int>(e.depth);
  options.expert.heads = static_cast<int>(e.heads);
  options.expert.draws = static_cast<int>(e.draws);
  options.expert.chunk = static_cast<int>(e.chunk);
  options.expert.diffusion_steps = static_cast<int>(e.diffusion_steps);
  options.expert.sampling_steps = static_cast<int>(e.sampling_steps);
  options.sensor.window = static_cast<int>(dims.sensor_window);
  options.sensor.channels = static_cast<int>(dims.sensor_channels);
  options.sensor.patch = static_cast<int>(config.sensor.patch);
  options.sensor.width = static_cast<int>(config.sensor.width);
  options.state_dim = static_cast<int>(dims.state);
  options.action_dim = static_cast<int>(dims.action);
  options.seed = static_cast<std::uint64_t>(config.run.seed);
  return options;
}

std::int64_t target_of(const memory::MemoryConfig& config) {
  if (!config.target.is("auto")) return memory::parse_fraction(config.target.as_double(), "memory.target");
  return memory::automatic_target(config.profile == "classic" ? memory::PolicyKind::kReactive
                                                              : memory::parse_policy(config.policy));
}

memory::PolicyConfig policy_config(const Config& config) {
  const auto& m = config.memory;
  memory::PolicyConfig policy = m.profile == "classic" ? memory::classic_profile() : memory::PolicyConfig{};
  policy.kind = memory::parse_policy(m.policy);
  policy.target = target_of(m);
  policy.margin = m.margin == 0 ? 0 : memory::parse_fraction(m.margin, "memory.margin");
  if (m.target.is("auto")) memory::keep_band_below_budget(policy);
  policy.adjustment_frequency = static_cast<int>(m.adjustment_frequency);
  if (m.profile != "classic") {
    policy.knobs = memory::parse_knobs(m.knobs);
    if (m.offload.is("off")) std::erase(policy.knobs, memory::Knob::kOffload);  // nor may a failure turn it
    policy.micro_batch = {static_cast<int>(config.batch.min_micro), static_cast<int>(config.batch.max_micro), 1};
    policy.resolution = {static_cast<int>(config.data.min_resolution), static_cast<int>(config.data.max_resolution),
                         28};
  }
  memory::check(policy);
  return policy;
}

bool turns(const Config& config, const char* knob) {
  const auto& knobs = config.memory.knobs;
  return std::find(knobs.begin(), knobs.end(), knob) != knobs.end();
}

std::vector<int> lower_resolutions(const Config& config) {
  const memory::PolicyConfig policy = policy_config(config);
  std::vector<int> lower;
  const bool turns = std::ranges::find(policy.knobs, memory::Knob::kResolution) != policy.knobs.end();
  if (policy.kind != memory::PolicyKind::kPredictive || config.memory.profile == "classic" || !turns) return lower;
  const auto& range = policy.resolution;
  for (int side = static_cast<int>(config.data.resolution) - range.step; side >= range.minimum; side -= range.step)
    lower.push_back(side);
  return lower;
}

StepOptions step_options(const Config& config) {
  const auto& t = config.train;
  StepOptions options;
  options.effective_batch = config.batch.effective;
  options.clip_norm = t.clip_norm;
  options.expert = {t.lr, t.beta1, t.beta2, 1e-8, t.weight_decay};
  options.adapters = {t.vl_lr, t.beta1, t.beta2, 1e-8, t.weight_decay};
  options.pack_by_bytes = config.batch.packing == "bytes";
  options.diversity = config.batch.diversity;
  options.most_samples = static_cast<std::size_t>(config.batch.max_micro);
  options.clip_apart = config.cache.mode == "hybrid" && t.stage == 2 && config.cache.live_fraction < 1;
  return options;
}

SumSlots sum_slots(const Config& config, const model::VlaOptions& model, std::size_t types, int world) {
  SumSlots sums;
  sums.types = types;
  sums.world = world;
  if (config.tasks.gradnorm && types > 0) {
    sums.out = model.action_dim;
    sums.in = model.expert.width;
  }
  return sums;
}

std::int64_t rank_budget(const memory::MemoryConfig& config, int rank, int world, std::int64_t available,
                         std::int64_t machine) {
  const auto values = config.budget.items();
  if (values.size() != 1 && values.size() != static_cast<std::size_t>(world)) {
    fail(ExitCode::kUsage, "memory.budget has {} entries for {} ranks; give one for all, or one per rank",
         values.size(), world);
  }
  const Setting& value = values[values.size() == 1 ? 0 : static_cast<std::size_t>(rank)];
  if (value.is("auto")) return available;
  const std::int64_t bytes = size_or_fraction(value, available, "memory.budget");
  if (bytes > machine) {
    fail(ExitCode::kUsage,
         "memory.budget = {} is more than the {} of this machine; write less, or \"auto\" ({} a rank now). What "
         "would fit on a larger one `plimsoll plan` says",
         value.to_toml(), format_bytes(machine), format_bytes(available));
  }
  return bytes;
}

bool budget_is_a_size(const memory::MemoryConfig& config, int rank) {
  const auto values = config.budget.items();
  const Setting& value = values[values.size() == 1 ? 0 : static_cast<std::size_t>(rank)];
  return value.is_integer() || (value.is_string() && !value.is("auto"));
}

std::int64_t left_by_card(const memory::MemoryConfig& config, std::int64_t overhead, int sharers,
                          std::int64_t available, std::int64_t machine) {
  const auto card = bytes_or_auto(config.card, "memory.card");
  if (!card) return available;
  if (*card > machine) {
    fail(ExitCode::kUsage, "memory.card = {} is more than the {} that this one has; write less, or \"auto\"",
         config.card.to_toml(), format_bytes(machine));
  }
  const std::int64_t left = *card / sharers - overhead;
  if (left <= 0) {
    fail(
        ExitCode::kUsage,
        "memory.card = {}: context, kernels and communicators of {} rank{} take {} each and leave nothing of it; write "
        "more",
        config.card.to_toml(), sharers, sharers == 1 ? "" : "s", format_bytes(overhead));
  }
  return std::min(left, available);
}

void check_budget_changes(const memory::MemoryConfig& config, int world, std::int64_t machine) {
  for (const auto& change : config.budget_changes) {
    if (change.rank >= world)
      fail(ExitCode::kUsage, "memory.budget_changes: rank {} at step {}, and there are {} ranks; give 0 to {}",
           change.rank, change.step, world, world - 1);
    if (const std::int64_t bytes = changed_budget(change, machine); bytes > machine)
      fail(ExitCode::kUsage, "memory.budget_changes: {} at step {} is more than the {} of this machine; write less",
           change.budget.to_toml(), change.step, format_bytes(machine));
  }
}

std::int64_t changed_budget(const memory::BudgetChange& change, std::int64_t budget) {
  return size_or_fraction(change.budget, budget, "memory.budget_changes");
}

std::optional<int> configured_recompute(const memory::MemoryConfig& config, int language_blocks) {
  const Setting& value = config.recompute;
  if (value.is("auto")) return std::nullopt;
  if (value.is("none")) return 0;
  if (value.is("all")) return language_blocks;
  const std::int64_t blocks = value.as_integer();
  if (blocks > language_blocks) {
    fail(ExitCode::kUsage, "memory.recompute is {} and the language model has {} blocks; give at most that, or \"all\"",
         blocks, language_blocks);
  }
  return static_cast<int>(blocks);
}

std::int64_t available_memory(int local_ranks) { return read_host_memory().available / std::max(1, local_ranks); }

std::int64_t machine_memory() { return read_host_memory().total; }

void set_threads(const RunConfig& config, int world) {
  const auto cores = static_cast<std::int64_t>(std::max(1U, std::thread::hardware_concurrency()));
  const auto threads = config.threads > 0 ? config.threads : std::max<std::int64_t>(1, cores / world);
  at::set_num_threads(static_cast<int>(threads));
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  std::string line, name = "a processor without a name";
  while (std::getline(file, line)) {
    const auto colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) {
      name = line.substr(colon + 2);
      break;
    }
  }
  const unsigned cores = std::max(1U, std::thread::hardware_concurrency());
  return fmt::format("{}, {} core{}", name, cores, cores == 1 ? "" : "s");
}

std::int64_t steps_of(std::int64_t draws, std::int64_t effective_batch) {
  return std::max<std::int64_t>(1, draws / effective_batch);
}

std::int64_t total_steps(const Config& config, std::int64_t training_samples) {
  if (config.train.max_steps > 0) return config.train.max_steps;
  return steps_of(config.train.epochs * training_samples, config.batch.effective);
}

}  // namespace plimsoll::train
