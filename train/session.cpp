#include "train/session.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <numeric>

#include "core/bytes.h"
#include "core/error.h"
#include "core/hash.h"
#include "core/scope.h"
#include "ddp/handshake.h"
#include "memory/guardian.h"
#include "model/peft.h"
#include "train/calibration_file.h"
#include "train/evaluate.h"
#include "train/model_files.h"
#include "train/options.h"

namespace plimsoll::train {
namespace {

std::vector<SampleShape> shapes_at(const data::SampleSource& source, const std::vector<std::int64_t>& samples,
                                   std::int64_t resolution) {
  std::vector<SampleShape> shapes;
  shapes.reserve(samples.size());
  for (const std::int64_t index : samples) shapes.push_back(source.shape_at(index, resolution));
  return shapes;
}

// Of the evaluated samples, as many as the rank has that has most.
std::vector<SampleShape> heaviest_evaluated(const data::SampleSource& source, const Config& config, int world) {
  const auto samples = evaluated_samples(source, config.train.eval_samples);
  const auto ranks = static_cast<std::size_t>(world);
  return memory::heaviest(shapes_at(source, samples, config.data.resolution), (samples.size() + ranks - 1) / ranks);
}

// What may differ between a run and its resumption: none of it changes what is learned, but for another device's other
// order of sums.
const std::vector<std::string> kFreeSettings = {"run.dir",
                                                "run.device",
                                                "run.threads",
                                                "memory",
                                                "cache",
                                                "launch",
                                                "report",
                                                "batch.micro",
                                                "batch.min_micro",
                                                "batch.max_micro",
                                                "batch.accumulation",
                                                "batch.packing",
                                                "batch.max_memory",
                                                "batch.diversity",
                                                "data.workers",
                                                "data.prefetch",
                                                "data.adaptive",
                                                "data.adjust_every",
                                                "data.most_adjustments",
                                                "data.most_workers",
                                                "data.most_prefetch",
                                                "data.loader_bytes",
                                                "data.path",
                                                "model.path",
                                                "train.checkpoint_every",
                                                "train.eval_samples"};

// Settings that older checkpoints do not know: left as they are, a run learns what it learned without them.
void add_unused_settings(const Config& config, std::vector<std::string>& free) {
  const DataConfig& data = config.data;
  if (config.tasks.by == "off") free.emplace_back("tasks");
  if (data.synthetic_tasks == 0) free.emplace_back("data.synthetic_tasks");
  if (data.mix.empty()) free.emplace_back("data.mix");
  if (data.weights.empty()) free.emplace_back("data.weights");
  if (data.action_space == DataConfig().action_space) free.emplace_back("data.action_space");
  if (data.delta_dimensions.empty()) free.emplace_back("data.delta_dimensions");
  if (data.statistics == DataConfig().statistics) free.emplace_back("data.statistics");
  const auto has_no_weight = [](const auto& mapping) { return mapping.weight == data::DatasetMapping().weight; };
  if (std::ranges::all_of(data.mix, has_no_weight)) free.emplace_back("data.mix[].weight");
  const auto is_on_tasks = [](const TaskRule& rule) { return rule.field == TaskRule().field; };
  if (std::ranges::all_of(config.tasks.rules, is_on_tasks)) free.emplace_back("tasks.rules[].field");
}

// A cache whose features age changes what is learned; where it lies does not.
std::vector<std::string> free_settings(const Config& config) {
  std::vector<std::string> free = kFreeSettings;
  add_unused_settings(config, free);
  if (config.cache.mode != "hybrid" || config.train.stage != 2) return free;
  std::erase(free, "cache");
  free.insert(free.end(), {"cache.dir", "cache.disk_bytes", "cache.host_bytes", "cache.device_bytes"});
  return free;
}

// Of all runs that share a cache folder.
std::string new_run_name() {
  const auto now = std::chrono::system_clock::now().time_since_epoch().count();
  return fmt::format("{:x}-{:x}", now, ::getpid());
}

const data::SampleSource& nonempty(const data::SampleSource& source) {
  if (source.training().empty())
    fail(ExitCode::kData, "the dataset has no training samples; lower data.eval_fraction or add episodes");
  return source;
}

std::int64_t most_loader_bytes(const DataConfig& data) {
  return bytes_or_auto(data.loader_bytes, "data.loader_bytes").value_or(0);
}

// Of what was free before any rank loaded its model, by the ranks that share the device. More than a GPU has free would
// fail in the middle of loading, or whenever a plan fills it.
std::int64_t budget_on(const Device& device, const memory::MemoryConfig& config, int rank, int world) {
  const std::int64_t unused = device.free_at_start ? *device.free_at_start : device.available();
  const int sharers = device.sharers > 0 ? device.sharers : world;
  const std::int64_t overhead = device.overhead ? device.overhead() : 0;
  const std::int64_t for_a_rank = left_by_card(config, overhead, sharers, unused / sharers, device.total);
  const std::int64_t budget = rank_budget(config, rank, world, for_a_rank, device.total);
  // An earlier session of the process may have left cached blocks.
  const std::int64_t within_reach = device.free_at_start ? unused : unused + device.memory->reserved();
  if (!device.id.empty() && budget > within_reach) {
    fail(ExitCode::kMemory,
         "rank {}: memory.budget is {} and {} has {} free: other programs hold the rest; end them (nvidia-smi lists "
         "them), write less, or \"auto\" ({} a rank now)",
         rank, format_bytes(budget), device.name, format_bytes(within_reach), format_bytes(for_a_rank));
  }
  return budget;
}

}  // namespace

std::uint64_t learned_settings_hash(const Config& config) {
  Config anywhere = config;
  for (data::DatasetMapping& mapping : anywhere.data.mix) mapping.path.clear();  // as with data.path: it may have moved
  return config_hash(anywhere, free_settings(config));
}

Session::Session(const Config& given, ddp::Communicator& comm, const data::SampleSource& samples, Device on)
    : config(given),
      communicator(comm),
      source(samples),
      device(std::move(on)),
      meter(*device.memory),
      budget(budget_on(device, config.memory, comm.rank(), comm.world())),
      options(vla_options(config, source.dims())),
      tasks(task_types(config.tasks, nonempty(source))),
      order(stream_order(tasks, source, static_cast<std::uint64_t>(config.run.seed))),
      stream(order),
      steps(total_steps(config, static_cast<std::int64_t>(source.training().size()))),
      share((config.batch.effective + comm.world() - 1) / comm.world()) {
  if (config.batch.effective < comm.world()) {
    fail(ExitCode::kUsage, "batch.effective is {} for {} ranks; every rank needs at least one sample",
         config.batch.effective, comm.world());
  }
  check_budget_changes(config.memory, comm.world(), device.total);
  meter.set_workspace(0);  // of a session before this one
  meter.set_budget(budget);
  held_by_libraries_ = meter.live();
  const SumSlots sums = sum_slots(config, options, tasks.names.size(), comm.world());
  dry = std::make_unique<DryStep>(options, static_cast<std::uint64_t>(config.run.seed), config.batch.effective, sums,
                                  comm.world());
  heaviest = heaviest_at(static_cast<int>(config.data.resolution));
  evaluated = heaviest_evaluated(source, config, comm.world());
  if (dry->static_bytes() > budget) {
    fail(ExitCode::kMemory, "rank {}: the model alone needs {} and the budget is {} (memory.budget); no plan fits",
         comm.rank(), format_bytes(dry->static_bytes()), format_bytes(budget));
  }
  make_predictors();
  model = std::make_unique<model::VlaModel>(options, device.place);
  buffers = std::make_unique<FlatBuffers>(model->parameters(), sums.size() + ddp::slot_count(comm.world()));
  shake_hands();
  settle_budget();
  share_budgets();
  make_cache();
  size_workspace();
  choose_plan();
  meter.release_cached();  // of what was timed and of loading: no step's
  StepOptions how = step_options(config);
  how.sums = sums;
  step = std::make_unique<Step>(*model, model->packing_rules(static_cast<std::uint64_t>(config.run.seed), false),
                                device.place, *buffers, communicator, meter, *predictor, how);
  step->keep_features(cache.get());
  controller = std::make_unique<Controller>(
      policy_config(config), comm.world(), share,
      memory::TowerBlocks{model->language_blocks(), model->vision_blocks(), model->expert_blocks()}, candidates);
  controller->state().calibration = calibration;
}

std::vector<SampleShape> Session::heaviest_at(int resolution) const {
  const auto times = static_cast<std::size_t>(stream.most_draws_in_a_step(config.batch.effective));
  return memory::heaviest(shapes_at(source, source.training(), resolution), static_cast<std::size_t>(share), times);
}

Draws& Session::draws_at(int resolution) const {
  const auto found = draws_.find(resolution);
  if (found != draws_.end()) return found->second;
  const DrawOptions options_of{
      order, steps, config.batch.effective, communicator.world(), resolution, cache && cache->ages()};
  return draws_.emplace(resolution, Draws(source, options_of, heaviest_at(resolution))).first->second;
}

std::uint64_t Session::model_files() {
  if (model_files_ == 0) model_files_ = hash_of_model_files(config.model.path);
  return model_files_;
}

void Session::shake_hands() {
  const std::string adapter = fmt::format("{} + {}", config.model.path, config.model.adapter);
  const std::string build = xxh3_128_of_file("/proc/self/exe");
  // Frozen weights and the tokenizer are no part of the trained weights' hash.
  const std::uint64_t files = communicator.world() > 1 ? model_files() : 0;
  const std::vector<ddp::HandshakeItem> items = {
      {"build", xxh3_64(std::as_bytes(std::span(build))), build},
      {"configuration", config_hash(config), config.run.dir},
      {"buffer layout", buffers->layout_hash(), fmt::format("{} trainable elements", buffers->elements())},
      {"weights", buffers->weight_hash(), adapter},
      {"model files", files, config.model.path},
      {"dataset", source.hash(), fmt::format("{} samples", source.size())},
      {"types of samples", xxh3_64(std::as_bytes(std::span(tasks.of_sample))), fmt::format("by {}", config.tasks.by)},
  };
  ddp::compare_items(communicator, items);
}

void Session::share_budgets() {
  const std::vector<std::int64_t> mine = {budget};
  for (const auto& numbers : ddp::share_numbers(communicator, mine)) budgets.push_back(numbers.at(0));
}

std::vector<std::uint64_t> Session::positions_of(std::int64_t number) const {
  if (cache) return cache->share_of(number);
  const auto [begin, end] =
      data::share_of_step(number, config.batch.effective, communicator.rank(), communicator.world());
  std::vector<std::uint64_t> positions(end - begin);
  std::iota(positions.begin(), positions.end(), begin);
  return positions;
}

FeatureOrigin Session::feature_origin() {
  FeatureOrigin origin;
  origin.pictures = source.pictures_hash();
  origin.samples = source.hash();
  origin.model_files = model_files();
  origin.device = device.place.is_cpu() ? "cpu" : "cuda";
  if (cache && cache->ages()) origin.run = state.run;
  return origin;
}

void Session::open_cache() { cache->open(feature_origin(), state.features); }

void Session::make_cache() {
  const bool automatic = config.cache.mode == "auto";
  if (automatic) choose_cache();
  if (!keeps_features(config)) return;
  cache = std::make_unique<FeatureCache>(config, *model, source, order, communicator, device, budget);
  encode_predictor = std::make_unique<memory::Predictor>(
      [this](const auto& shape, const memory::Plan&) {
        return meter.reserves() ? bytes_of(dry->encoding(shape, cache->features()))
                                : dry->encode_bytes(shape, cache->features());
      },
      device.place.is_cpu() && !meter.reserves());
  if (cache->ages()) return;  // resume() knows the run
  std::string trouble;
  try {
    open_cache();
  } catch (const Error& error) {
    if (!automatic) throw;
    trouble = error.what();
  }
  if (!automatic) return;
  for (const auto& text : ddp::share_text(communicator, trouble)) {
    if (text.empty()) continue;
    if (communicator.rank() == 0) spdlog::warn("cache.mode = \"auto\": off, since {}", text);
    cache.reset();
    return;
  }
}

// The disk is rank 0's to judge: all must do the same.
void Session::choose_cache() {
  Config with = config;
  with.cache.mode = "prefix";
  const std::uint64_t room = room_for_features(config.cache, feature_fingerprint(with, feature_origin()));
  const CacheChoice choice = choose_cache_mode(config, *model, source, steps, room);
  config.cache.mode = ddp::share_text(communicator, choice.mode).front();
  if (communicator.rank() == 0) spdlog::info("cache.mode = \"auto\": {}: {}", choice.mode, choice.reason);
}

std::vector<model::StreamSample> Session::load_share(std::int64_t number,
                                                     std::vector<std::shared_ptr<const Sample>>& hold) {
  if (!loader) {
    data::LoaderOptions with;
    with.workers = static_cast<int>(config.data.workers);
    with.prefetch = config.data.prefetch;
    with.effective_batch = config.batch.effective;
    with.rank = communicator.rank();
    with.world = communicator.world();
    with.order = order;
    with.resolution = plan.resolution;
    with.first_step = number;
    with.most_bytes = most_loader_bytes(config.data);
    if (cache && cache->ages()) with.share = [this](std::int64_t of_step) { return cache->share_of(of_step); };
    loader = std::make_unique<data::Loader>(cache ? *cache : source, with);
  }
  const std::vector<double> weights = type_weights(tasks, counts_of(number), state.balance.weights);
  std::vector<model::StreamSample> samples;
  hold.clear();
  for (const std::uint64_t position : positions_of(number)) {
    hold.push_back(loader->get(position));
    const std::size_t type = tasks.type_of(hold.back()->index);
    const double weight = tasks.any() ? weights[type] : 1.0;
    samples.push_back({hold.back().get(), position, static_cast<float>(weight), static_cast<std::uint8_t>(type)});
  }
  return samples;
}

void Session::balance(std::int64_t number, const StepResult& result) {
  if (!config.tasks.gradnorm) return;
  const auto counts = counts_of(number);
  const std::vector<double> means = type_means(result, counts);
  state.balance =
      balanced(state.balance, {counts, means, result.type_norms}, {config.tasks.alpha, config.tasks.balance_lr});
}

std::vector<std::int64_t> Session::counts_of(std::int64_t number) {
  if (!tasks.any()) return {};
  std::vector<std::int64_t> counts(tasks.names.size());
  const auto [begin, end] = data::share_of_step(number, config.batch.effective, 0, 1);
  for (std::uint64_t position = begin; position < end; ++position) ++counts[tasks.type_of(stream.at(position))];
  return counts;
}

void Session::write_checkpoint() {
  std::string trouble;
  if (communicator.rank() == 0) {
    std::vector<model::Parameter> adapters;
    for (const auto& p : model->parameters()) {
      if (p.group == model::ParameterGroup::kVlm) adapters.push_back(p);
    }
    WriteAdapter write_adapter;
    if (!adapters.empty()) {
      write_adapter = [&](const std::filesystem::path& folder) {
        model::save_adapter(folder.string(), options.lora, adapters, options.path);
      };
    }
    try {
      train::write_checkpoint(checkpoint_root(), state, *buffers, write_adapter);
    } catch (const std::exception& error) {
      if (memory::is_device_failure()) throw;  // no fault of the checkpoint's: the whole rank is lost
      trouble = error.what();
    }
  }
  // The others must hear of it, or they would wait for rank 0 for ever.
  const auto texts = ddp::share_text(communicator, trouble);
  if (!texts.front().empty()) throw Error(ExitCode::kCheckpoint, texts.front());
  if (config.memory.policy == "predictive") write_calibration(*this);
}

std::filesystem::path Session::checkpoint_root() const { return std::filesystem::path(config.run.dir) / "checkpoints"; }

void Session::compare_on_all_ranks(const char* name, const std::string& value) {
  const std::vector<ddp::HandshakeItem> items = {{name, xxh3_64(std::as_bytes(std::span(value))), value}};
  ddp::compare_items(communicator, items);
}

void Session::resume(bool from_newest) {
  const auto newest = from_newest ? newest_checkpoint(checkpoint_root()) : std::nullopt;
  compare_on_all_ranks("newest checkpoint", newest ? newest->filename().string() : "none");
  const std::uint64_t learned = learned_settings_hash(config);
  if (!newest) {
    state.configuration = learned;
    state.run = ddp::share_text(communicator, new_run_name()).front();
    if (cache && cache->ages()) open_cache();
    if (config.train.stage1_checkpoint.empty()) return;
    const auto count = read_weights(config.train.stage1_checkpoint, *buffers);
    if (count == 0) {
      fail(ExitCode::kCheckpoint,
           "{}: holds no tensor of this model; train.stage1_checkpoint must be a checkpoint of stage 1",
           config.train.stage1_checkpoint);
    }
    compare_on_all_ranks("weights of train.stage1_checkpoint", fmt::format("{:012x}", buffers->weight_hash()));
    return;
  }
  state = read_checkpoint(*newest, *buffers);
  if (state.configuration != learned) {
    fail(ExitCode::kUsage,
         "{}: was written under settings that learn something else than these; resume with the run's own "
         "configuration, or start "
         "a new run.dir",
         newest->string());
  }
  compare_on_all_ranks("resumed weights", fmt::format("{:012x}", buffers->weight_hash()));
  step->agreement().skips_in_row = state.skips_in_row;
  controller->state() = memory::policy_state_from_json(state.policy);
  auto& learned_peaks = controller->state().calibration;
  if (!learned_peaks.is_of_world(communicator.world())) learned_peaks = learned_peaks.for_world(communicator.world());
  if (!state.window.empty()) controller->restore_window(memory::window_from_json(state.window));
  adopt_saved_plan();
  if (cache && plan.resolution != config.data.resolution)
    fail(ExitCode::kUsage,
         "{}: the run goes on with pictures of {} px, and cache.mode = \"{}\" keeps features of those of "
         "data.resolution = {}; set cache.mode = \"off\"",
         newest->string(), plan.resolution, config.cache.mode, config.data.resolution);
  if (cache && cache->ages()) open_cache();
  spdlog::info("resumed from {} at step {}", newest->string(), state.step);
}

}  // namespace plimsoll::train
