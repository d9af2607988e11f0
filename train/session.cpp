#include "train/session.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <exception>

#include "core/bytes.h"
#include "core/error.h"
#include "core/hash.h"
#include "core/scope.h"
#include "ddp/handshake.h"
#include "model/peft.h"
#include "train/model_files.h"
#include "train/options.h"

namespace plimsoll::train {
namespace {

std::vector<SampleShape> training_shapes(const data::SampleSource& source) {
  std::vector<SampleShape> shapes;
  shapes.reserve(source.training().size());
  for (const std::int64_t index : source.training()) shapes.push_back(source.shape_of(index));
  return shapes;
}

memory::MicroBatchShape total(std::span<const SampleShape> shapes) {
  memory::MicroBatchShape sum{static_cast<std::int64_t>(shapes.size()), 0, 0};
  for (const auto& shape : shapes) {
    sum.tokens += shape.tokens;
    sum.patches += shape.patches;
  }
  return sum;
}

// What may differ between a run and its resumption: none of it changes what is learned.
const std::vector<std::string> kFreeSettings = {"run.dir",
                                                "run.threads",
                                                "memory",
                                                "launch",
                                                "report",
                                                "batch.micro",
                                                "batch.min_micro",
                                                "batch.max_micro",
                                                "batch.accumulation",
                                                "data.workers",
                                                "data.prefetch",
                                                "data.path",
                                                "model.path",
                                                "train.checkpoint_every",
                                                "train.eval_samples"};

const std::vector<std::int64_t>& nonempty(const std::vector<std::int64_t>& samples) {
  if (samples.empty())
    fail(ExitCode::kData, "the dataset has no training samples; lower data.eval_fraction or add episodes");
  return samples;
}

}  // namespace

Session::Session(const Config& given, ddp::Communicator& comm, const data::SampleSource& samples)
    : config(given),
      communicator(comm),
      source(samples),
      meter(memory::CpuAllocator::install()),
      budget(rank_budget(config.memory, comm.rank(), comm.world(), available_memory(comm.world()))),
      options(vla_options(config, source.dims())),
      stream(nonempty(source.training()), static_cast<std::uint64_t>(config.run.seed)),
      steps(total_steps(config, static_cast<std::int64_t>(source.training().size()))),
      share((config.batch.effective + comm.world() - 1) / comm.world()) {
  if (config.batch.effective < comm.world()) {
    fail(ExitCode::kUsage, "batch.effective is {} for {} ranks; every rank needs at least one sample",
         config.batch.effective, comm.world());
  }
  meter.set_budget(budget);
  dry = std::make_unique<DryStep>(options, static_cast<std::uint64_t>(config.run.seed), config.batch.effective,
                                  kLossSlots + ddp::slot_count(comm.world()));
  heaviest = memory::heaviest(training_shapes(source), static_cast<std::size_t>(share));
  if (dry->static_bytes() > budget) {
    fail(ExitCode::kMemory, "rank {}: the model alone needs {} and the budget is {} (memory.budget); no plan fits",
         comm.rank(), format_bytes(dry->static_bytes()), format_bytes(budget));
  }
  predictor = std::make_unique<memory::Predictor>(
      [this](const memory::MicroBatchShape& shape, int blocks) { return dry->activation_bytes(shape, blocks); });
  model = std::make_unique<model::VlaModel>(options, at::Device(at::kCPU));
  buffers = std::make_unique<FlatBuffers>(model->parameters(), kLossSlots + ddp::slot_count(comm.world()));
  shake_hands();
  size_workspace();
  choose_plan();
  step = std::make_unique<Step>(*model, model->packing_rules(static_cast<std::uint64_t>(config.run.seed), false),
                                at::Device(at::kCPU), *buffers, communicator, meter, *predictor, step_options(config));
  controller = std::make_unique<Controller>(policy_config(config), comm.world(), share, model->language_blocks());
}

void Session::size_workspace() {
  const Setting& setting = config.memory.workspace;
  if (setting.is("auto")) return meter.set_workspace(choose_workspace());
  const auto bytes = setting.is_string() ? parse_bytes(setting.as_string(), "memory.workspace") : setting.as_integer();
  if (meter.live() + bytes > budget) {
    fail(ExitCode::kMemory,
         "rank {}: the model and a workspace of {} (memory.workspace) need {} and the budget is {} (memory.budget)",
         communicator.rank(), format_bytes(bytes), format_bytes(meter.live() + bytes), format_bytes(budget));
  }
  meter.set_workspace(bytes);
}

// The arena must hold the scratch of the largest micro-batch that the policy may ever choose, all heaviest samples.
// Where that leaves no room for the smallest plan, the policy gets a lower bound instead, the same on all ranks.
std::int64_t Session::choose_workspace() {
  const auto smallest = std::min(heaviest.size(), static_cast<std::size_t>(config.batch.min_micro));
  const int blocks = configured_recompute(config.memory, model->language_blocks()).value_or(model->language_blocks());
  const std::int64_t least = meter.live() + predictor->bytes(total(std::span(heaviest).first(smallest)), blocks);
  const auto scratch = [&](std::size_t micro) { return dry->scratch_bytes(std::span(heaviest).first(micro)); };
  const auto whole = std::min(heaviest.size(), static_cast<std::size_t>(config.batch.max_micro));
  auto micro = whole;
  while (micro > smallest && least + scratch(micro) > budget) micro = std::max(smallest, micro / 2);
  if (const auto needed = least + scratch(micro); needed > budget) {
    fail(ExitCode::kMemory,
         "rank {}: a micro-batch of {} needs {} and the budget is {} (memory.budget); no plan fits. Raise the budget, "
         "set "
         "memory.recompute = \"all\", or lower data.resolution",
         communicator.rank(), smallest, format_bytes(needed), format_bytes(budget));
  }
  const std::vector<std::int64_t> mine = {static_cast<std::int64_t>(micro)};
  for (const auto& numbers : ddp::share_numbers(communicator, mine))
    micro = std::min(micro, static_cast<std::size_t>(numbers.at(0)));
  if (micro < whole) config.batch.max_micro = static_cast<std::int64_t>(micro);
  return scratch(micro);
}

void Session::shake_hands() {
  const std::string adapter = fmt::format("{} + {}", config.model.path, config.model.adapter);
  const std::string build = xxh3_128_of_file("/proc/self/exe");
  // Frozen weights and the tokenizer are no part of the trained weights' hash.
  const std::uint64_t files = communicator.world() > 1 ? hash_of_model_files(config.model.path) : 0;
  const std::vector<ddp::HandshakeItem> items = {
      {"build", xxh3_64(std::as_bytes(std::span(build))), build},
      {"configuration", config_hash(config), config.run.dir},
      {"buffer layout", buffers->layout_hash(), fmt::format("{} trainable elements", buffers->elements())},
      {"weights", buffers->weight_hash(), adapter},
      {"model files", files, config.model.path},
      {"dataset", source.hash(), fmt::format("{} samples", source.size())},
  };
  ddp::compare_items(communicator, items);
  const std::vector<std::int64_t> mine = {budget};
  for (const auto& numbers : ddp::share_numbers(communicator, mine)) budgets.push_back(numbers.at(0));
}

std::int64_t Session::predicted_peak(const memory::Plan& wanted) const {
  const auto count = std::min(heaviest.size(), static_cast<std::size_t>(wanted.micro_batch));
  return meter.live() + predictor->bytes(total(std::span(heaviest).first(count)), wanted.recompute_blocks);
}

void Session::choose_plan() {
  const int blocks = model->language_blocks();
  const auto configured = configured_recompute(config.memory, blocks);
  const auto fits = [&](int micro, int recompute, double fraction) {
    return static_cast<double>(predicted_peak({0, micro, recompute})) <= fraction * static_cast<double>(budget);
  };
  plan.resolution = static_cast<int>(config.data.resolution);
  // Each rank says what fits under its own budget; all take the least.
  const int smallest = static_cast<int>(config.batch.min_micro);
  const int largest = static_cast<int>(std::min(config.batch.max_micro, share));
  const std::int64_t wish = configured ? *configured : (fits(smallest, 0, config.memory.target) ? 0 : blocks);
  const std::vector<std::int64_t> recompute_wish = {wish};
  for (const auto& numbers : ddp::share_numbers(communicator, recompute_wish)) {
    plan.recompute_blocks = std::max(plan.recompute_blocks, static_cast<int>(numbers.at(0)));
  }
  int micro = memory::largest_micro_batch(smallest, largest,
                                          [&](int n) { return fits(n, plan.recompute_blocks, config.memory.target); });
  // A single sample may use the band above the target; more than the budget it may not.
  if (micro == 0 && fits(smallest, plan.recompute_blocks, 1.0)) micro = smallest;
  if (!config.batch.micro.is("auto")) micro = static_cast<int>(config.batch.micro.as_integer());
  const std::vector<std::int64_t> mine = {micro, predicted_peak({0, smallest, plan.recompute_blocks}), budget};
  const auto all = ddp::share_numbers(communicator, mine);
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank][0] == 0) {
      fail(ExitCode::kMemory,
           "rank {}: a micro-batch of {} needs {} and the budget is {} (memory.budget); no plan fits. Raise the "
           "budget, set "
           "memory.recompute = \"all\", or lower data.resolution",
           rank, smallest, format_bytes(all[rank][1]), format_bytes(all[rank][2]));
    }
    micro = std::min(micro, static_cast<int>(all[rank][0]));
  }
  plan.micro_batch = micro;
  if (config.memory.policy == "fixed" && !config.batch.accumulation.is("auto")) {
    memory::check_fixed(plan.micro_batch, config.batch.accumulation.as_integer(), communicator.world(),
                        config.batch.effective);
  }
}

std::vector<model::StreamSample> Session::load_share(std::int64_t number,
                                                     std::vector<std::shared_ptr<const Sample>>& hold) {
  const auto [begin, end] =
      data::share_of_step(number, config.batch.effective, communicator.rank(), communicator.world());
  if (!loader) {
    data::LoaderOptions with;
    with.workers = static_cast<int>(config.data.workers);
    with.prefetch = config.data.prefetch;
    with.effective_batch = config.batch.effective;
    with.rank = communicator.rank();
    with.world = communicator.world();
    with.seed = static_cast<std::uint64_t>(config.run.seed);
    with.resolution = plan.resolution;
    with.first_step = number;
    loader = std::make_unique<data::Loader>(source, with);
  }
  std::vector<model::StreamSample> samples;
  hold.clear();
  for (std::uint64_t position = begin; position < end; ++position) {
    hold.push_back(loader->get(position));
    samples.push_back({hold.back().get(), position});
  }
  return samples;
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
      trouble = error.what();
    }
  }
  // The others must hear of it, or they would wait for rank 0 for ever.
  const auto texts = ddp::share_text(communicator, trouble);
  if (!texts.front().empty()) throw Error(ExitCode::kCheckpoint, texts.front());
}

std::filesystem::path Session::checkpoint_root() const { return std::filesystem::path(config.run.dir) / "checkpoints"; }

void Session::compare_on_all_ranks(const char* name, const std::string& value) {
  const std::vector<ddp::HandshakeItem> items = {{name, xxh3_64(std::as_bytes(std::span(value))), value}};
  ddp::compare_items(communicator, items);
}

void Session::resume(bool from_newest) {
  const auto newest = from_newest ? newest_checkpoint(checkpoint_root()) : std::nullopt;
  compare_on_all_ranks("newest checkpoint", newest ? newest->filename().string() : "none");
  const std::uint64_t learned = config_hash(config, kFreeSettings);
  if (!newest) {
    state.configuration = learned;
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
  adopt_saved_plan();
  spdlog::info("resumed from {} at step {}", newest->string(), state.step);
}

// The plan that the run had settled on (batch.micro is only where it began), where the settings leave it free and it
// still fits every rank; else the one just chosen.
void Session::adopt_saved_plan() {
  plan.resolution = state.resolution;
  if (config.memory.policy == "fixed") return;
  memory::Plan saved{state.resolution, static_cast<int>(state.micro_batch), state.recompute_blocks};
  const auto most = std::max<std::int64_t>(1, std::min(share, config.batch.max_micro));
  const auto least = std::min(most, config.batch.min_micro);
  saved.micro_batch = static_cast<int>(std::clamp<std::int64_t>(saved.micro_batch, least, most));
  const bool same = configured_recompute(config.memory, model->language_blocks()).value_or(saved.recompute_blocks) ==
                    saved.recompute_blocks;
  const std::vector<std::int64_t> fits = {same && predicted_peak(saved) <= budget ? 1 : 0};
  for (const auto& numbers : ddp::share_numbers(communicator, fits)) {
    if (numbers.at(0) == 0) return;
  }
  plan = saved;
}

std::string Session::plan_text() {
  auto breakdown = dry->static_breakdown();
  breakdown["workspace"] += meter.workspace();
  const auto count = std::min(heaviest.size(), static_cast<std::size_t>(plan.micro_batch));
  const auto shape = total(std::span(heaviest).first(count));
  for (const auto& [label, bytes] : dry->micro_batch(shape, plan.recompute_blocks).breakdown_at_peak()) {
    breakdown["activations: " + label] += bytes;
  }
  std::int64_t sum = 0;
  std::string text;
  for (const auto& [label, bytes] : breakdown) {
    text += fmt::format("  {:<28} {:>12}\n", label, format_bytes(bytes));
    sum += bytes;
  }
  return fmt::format(
      "plan: {}, effective batch {} over {} rank{}\npredicted peak of the heaviest micro-batch ({} samples, {} tokens, "
      "{} patches):\n{}  {:<28} {:>12}  {:.1f} % of {}\n",
      memory::to_string(plan), config.batch.effective, communicator.world(), communicator.world() == 1 ? "" : "s",
      shape.samples, shape.tokens, shape.patches, text, "sum", format_bytes(sum),
      100.0 * static_cast<double>(sum) / static_cast<double>(budget), format_bytes(budget));
}

}  // namespace plimsoll::train
