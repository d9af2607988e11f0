// `plimsoll plan`: what fits on cards of given sizes, before anybody buys them. Reads config.json and metadata; nothing
// of the model is allocated.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/bytes.h"
#include "core/error.h"
#include "core/file.h"
#include "core/scope.h"
#include "data/sample_stream.h"
#include "launcher/commands.h"
#include "launcher/plan_estimate.h"
#include "launcher/plan_report.h"
#include "launcher/run_config.h"
#include "memory/planning/first_plan.h"
#include "memory/planning/policy.h"
#include "model/init_model.h"
#include "report/run_streams.h"
#include "report/run_summary.h"
#include "train/device.h"
#include "train/forecast.h"
#include "train/options.h"
#include "train/source.h"
#include "train/task_types.h"

namespace plimsoll {
namespace {

constexpr std::size_t kRunnersUp = 3;
constexpr int kGuidesPictures = 2, kGuidesSide = 448, kGuidesRank = 8;  // of the rows that people wrote by hand
constexpr int kTextTokens = 88;  // of a prompt's template and instruction: two pictures of 448 px make it 600 tokens

/// The folder of a built-in model, gone with this object.
class BuiltInModel {
 public:
  explicit BuiltInModel(const std::string& size) {
    std::string name = (std::filesystem::temp_directory_path() / "plimsoll-plan-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr)
      fail(ExitCode::kData, "{}: cannot be made; set TMPDIR to a folder that can be written", name);
    folder_ = name;
    write_file_durably(folder_ / "config.json", model::qwen_config_json(model::init_config(size), "bfloat16").dump(2));
  }
  ~BuiltInModel() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  BuiltInModel(const BuiltInModel&) = delete;
  BuiltInModel& operator=(const BuiltInModel&) = delete;
  std::string path() const { return folder_.string(); }

 private:
  std::filesystem::path folder_;
};

/// What the plan is made for.
struct Subject {
  train::ForecastSamples samples;
  std::string words;
  std::vector<TypeOfSamples> types;  ///< the same shapes, by [tasks]
};

bool has_data(const train::Config& config) {
  if (config.data.synthetic_samples > 0) return true;
  const std::string first = !config.data.path.empty()  ? config.data.path[0]
                            : !config.data.mix.empty() ? config.data.mix[0].path
                                                       : "";
  return !first.empty() && std::filesystem::exists(std::filesystem::path(first) / "meta");
}

std::int64_t task_number(const std::vector<std::string>& tasks, const std::string& wanted) {
  const auto found = std::find(tasks.begin(), tasks.end(), wanted);
  if (found != tasks.end()) return found - tasks.begin();
  if (tasks.empty()) fail(ExitCode::kUsage, "--task \"{}\": these samples are of no task; leave it out", wanted);
  const bool digits = !wanted.empty() && wanted.find_first_not_of("0123456789") == std::string::npos;
  if (digits && wanted.size() < 10 && std::stoul(wanted) < tasks.size()) return std::stol(wanted);
  fail(ExitCode::kUsage, "--task \"{}\": no such task; give its number, 0 to {}, or its text, such as \"{}\"", wanted,
       tasks.size() - 1, tasks.front());
}

// Shapes by type; nothing where samples have none.
std::vector<TypeOfSamples> shapes_by_type(const train::TaskTypes& known, const data::SampleSource& source) {
  if (!known.any()) return {};
  std::vector<TypeOfSamples> types;
  for (std::size_t type = 0; type < known.names.size(); ++type)
    types.push_back({known.names[type], known.part_of(type), {}});
  for (const std::int64_t index : source.training())
    types[known.type_of(index)].shapes.push_back(source.shape_of(index));
  std::erase_if(types, [](const auto& type) { return type.shapes.empty(); });
  return types;
}

// Shapes of the dataset's training samples, of one task where one is asked for.
Subject from_data(const train::Config& config, const std::optional<std::string>& task) {
  const auto source = train::make_source(config);
  Subject subject;
  subject.samples.dims = source->dims();
  const std::int64_t only = task ? task_number(source->tasks(), *task) : -1;
  for (const std::int64_t index : source->training()) {
    if (only < 0 || source->task_of(index) == only) subject.samples.heaviest.push_back(source->shape_of(index));
  }
  const train::TaskTypes types = train::task_types(config.tasks, *source);
  subject.samples.types = types.names.size();
  subject.types = shapes_by_type(types, *source);
  if (subject.samples.heaviest.empty()) fail(ExitCode::kData, "no training sample{}", task ? " of task " + *task : "");
  const data::SampleStream stream(train::stream_order(types, *source, static_cast<std::uint64_t>(config.run.seed)));
  subject.samples.times = static_cast<std::size_t>(stream.most_draws_in_a_step(config.batch.effective));
  const auto heavy = memory::heaviest(subject.samples.heaviest, 1).front();
  subject.words = fmt::format("{} tokens, {} patches, of {} training samples{}", heavy.tokens, heavy.patches,
                              subject.samples.heaviest.size(), task ? " of task \"" + *task + "\"" : "");
  return subject;
}

Subject made_up(const train::Config& config, int images, int side, int text) {
  if (images < 0 || images > 64) fail(ExitCode::kUsage, "--images {}: give 0 to 64", images);
  if (side < 28 || side % 28 != 0 || side > 4480)
    fail(ExitCode::kUsage, "--side {}: give pixels from 28 to 4480 in steps of 28", side);
  if (text < 1 || text > 100000) fail(ExitCode::kUsage, "--text-tokens {}: give 1 to 100000", text);
  const std::int64_t patches = std::int64_t{images} * (side / 14) * (side / 14);
  Subject subject;
  subject.samples.dims.state = subject.samples.dims.action = 7;
  subject.samples.dims.sensor_window = config.sensor.window;
  subject.samples.dims.sensor_channels = config.sensor.window > 0 ? 6 : 0;
  subject.samples.heaviest = {{patches / 4 + text, patches}};
  subject.words = fmt::format("made up: {} picture{} of {} x {}, {} tokens, {} patches", images, images == 1 ? "" : "s",
                              side, side, subject.samples.heaviest[0].tokens, patches);
  return subject;
}

// Pictures as the run would resize them.
int side_of(const train::Config& config) {
  return config.data.resolution > 0 ? static_cast<int>(config.data.resolution) : kGuidesSide;
}

// The dataset's samples where it is there, else made-up ones.
Subject subject_of(const train::Config& config, const cxxopts::ParseResult& parsed) {
  const bool built_in = parsed.count("size") > 0;
  std::optional<std::string> task;
  if (parsed.count("task") > 0) task = parsed["task"].as<std::string>();
  if (task && built_in)
    fail(ExitCode::kUsage,
         "--task with --size {}: samples of a built-in model are made up; give --config with data.path instead",
         parsed["size"].as<std::string>());
  if (!built_in && has_data(config)) return from_data(config, task);
  if (task) fail(ExitCode::kUsage, "--task {}: needs a dataset; set data.path", *task);
  const int side = parsed.count("side") > 0 ? parsed["side"].as<int>() : side_of(config);
  return made_up(config, parsed["images"].as<int>(), side, parsed["text-tokens"].as<int>());
}

std::string gigabytes(std::int64_t bytes) { return fmt::format("{:.2f} GB", static_cast<double>(bytes) / 1e9); }

train::Config with_rank(train::Config config, int rank) {
  config.lora.alpha *= static_cast<double>(rank) / static_cast<double>(config.lora.rank);
  config.lora.rank = rank;
  return config;
}

memory::Plan everything_recomputed(const train::Forecast& forecast) {
  memory::Plan plan;
  plan.recompute_blocks = forecast.dry().model().language_blocks();
  return plan;
}

// Largest micro-batch per card and LoRA rank, everything recomputed.
void fill_table(const train::Config& config, const Subject& subject, const std::vector<std::int64_t>& cards,
                PlanReport& report) {
  for (const int rank : {4, 8, 16, 32}) {
    train::Forecast forecast(with_rank(config, rank), subject.samples, report.ranks);
    for (const std::int64_t card : cards) {
      TableCell cell{card, rank, everything_recomputed(forecast), 0, 0};
      cell.plan.micro_batch = 0;
      const auto largest = forecast.largest_micro_batch(card - report.overhead, cell.plan, report.expandable_segments);
      if (largest) cell = {card, rank, largest->plan, largest->live, largest->reserved};
      report.table.push_back(cell);
    }
    report.dry_runs += forecast.dry_runs();
  }
}

// The guides' rows and figures say nothing of a model of another size than theirs.
bool is_of_the_guides(const train::Forecast& forecast) { return forecast.dry().model().language_blocks() == 36; }

// Rows from guides for Qwen2.5-VL-3B with two pictures, LoRA rank 8 and recompute.
void fill_rows(train::Forecast& forecast, PlanReport& report) {
  for (const auto& [card, micro] : {std::pair{24_GiB, 2}, {24_GiB, 4}, {40_GiB, 4}, {80_GiB, 8}}) {
    memory::Plan plan = everything_recomputed(forecast);
    const std::int64_t usable = card - report.overhead;
    const auto largest = forecast.largest_micro_batch(usable, plan, report.expandable_segments);
    plan.micro_batch = micro;
    const train::PlanBytes needed = forecast.bytes(plan, usable, report.expandable_segments);
    const std::int64_t allowed = usable / 10000 * report.target;
    report.rows.push_back({card, micro, needed.live, needed.reserved, allowed, needed.within(allowed),
                           largest ? largest->plan.micro_batch : 0});
  }
}

std::int64_t sum_of(const memory::Breakdown& parts, std::string_view prefix) {
  std::int64_t sum = 0;
  for (const auto& [label, bytes] : parts) sum += label.starts_with(prefix) ? bytes : 0;
  return sum;
}

// Whose moments they are, and of how many parameters the guide's would be.
std::string optimiser_reason(const train::Config& config, const memory::Breakdown& parts) {
  constexpr double kMillion = 1e6, kWeight = 4.0, kMoments = 8.0, kGuides = 0.5e9;  // bytes but for the first
  const double trained = static_cast<double>(sum_of(parts, "optimiser")) / kMoments / kMillion;
  const double adapters = static_cast<double>(sum_of(parts, "adapters")) / kWeight / kMillion;
  return fmt::format(
      "two fp32 moments, 8 bytes a trained parameter: those of {:.1f} million here; 0.5 GB would be those of {:.1f} "
      "million. Trained are the adapters of rank {}, {:.1f} million, and action expert and sensor, {:.1f} million",
      trained, kGuides / kMoments / kMillion, config.lora.rank, adapters, trained - adapters);
}

std::string model_reason(std::int64_t weights) {
  constexpr double kBillion = 1e9, kWeight = 2.0, kGuides = 6e9;  // bytes but for the first
  return fmt::format(
      "{:.2f} billion parameters at 2 bytes, vision tower and token embeddings among them; 6 GB would be those of "
      "{:.2f} billion",
      static_cast<double>(weights) / kWeight / kBillion, kGuides / kWeight / kBillion);
}

// What is live at the peak of one micro-batch, largest first, the language model's together.
std::string parts_at_peak(const memory::Breakdown& parts) {
  constexpr std::string_view kActivations = "activations: ", kLanguage = "language";
  std::map<std::string, std::int64_t> sums;
  for (const auto& [label, bytes] : parts) {
    if (!label.starts_with(kActivations)) continue;
    const std::string_view part = std::string_view(label).substr(kActivations.size());
    sums[part.starts_with(kLanguage) ? "language model" : std::string(part)] += bytes;
  }
  std::vector<std::pair<std::string, std::int64_t>> sorted(sums.begin(), sums.end());
  std::sort(sorted.begin(), sorted.end(), [](const auto& one, const auto& other) { return one.second > other.second; });
  std::vector<std::string> words;
  constexpr std::int64_t kShown = 5'000'000;  // less is 0.00 GB
  for (const auto& [part, bytes] : sorted)
    if (bytes >= kShown) words.push_back(fmt::format("{} {}", part, gigabytes(bytes)));
  return fmt::format("{}", fmt::join(words, ", "));
}

// The guides' own figures for a micro-batch of 2 beside those of the dry run.
void fill_figures(const train::Config& config, const Subject& subject, train::Forecast& forecast, PlanReport& report) {
  memory::Plan with = everything_recomputed(forecast), without;
  with.micro_batch = without.micro_batch = 2;
  const auto parts = forecast.breakdown(with), parts_without = forecast.breakdown(without);
  const std::int64_t kept = sum_of(parts, "activations"), all = sum_of(parts_without, "activations");
  const std::int64_t blocks = sum_of(parts, "activations: language"),
                     all_blocks = sum_of(parts_without, "activations: language");
  train::Config other = config;
  other.model.dtype = "fp32";
  train::Forecast twin(other, subject.samples, 1);
  const std::int64_t ours = forecast.live(with), theirs = twin.live(with);
  const auto saved = [](std::int64_t less, std::int64_t more) {
    return fmt::format("{:.0f} %", 100.0 * (1.0 - static_cast<double>(less) / static_cast<double>(more)));
  };
  report.guide = {
      {"model", "6 GB", gigabytes(sum_of(parts, "weights")), model_reason(sum_of(parts, "weights"))},
      {"optimiser", "0.5 GB", gigabytes(sum_of(parts, "optimiser")), optimiser_reason(config, parts)},
      {"gradients", "0.1 GB", gigabytes(sum_of(parts, "gradients") + sum_of(parts, "staging")),
       "fp32, and twice: a failed micro-batch must not touch what is summed already"},
      {"activations, recomputed", "5 to 7 GB", gigabytes(kept),
       fmt::format("{}: packed without padding, no logits, no dense masks, frozen vision tower without a graph",
                   parts_at_peak(parts))},
      {"activations, all kept", "10 to 15 GB", gigabytes(all),
       fmt::format("{}: the same; norms are made again in backward and attention keeps no scores",
                   parts_at_peak(parts_without))},
      {"total", "14 to 17 GB", gigabytes(ours), "the sum of the above, the trained weights and the workspace"},
      {"recompute saves", "50 to 70 %", saved(kept, all),
       fmt::format("of the activations: of the language model's {} are left {}, the blocks' inputs and the one block "
                   "that is made again; what others hold beside the blocks, such as logits, recomputing does not save",
                   gigabytes(all_blocks), gigabytes(blocks))},
      {"bf16 saves", "about 30 %", saved(ours, theirs),
       "of the total against fp32 throughout: weights and activations halve, trained parts stay in fp32"},
  };
}

// Rows and figures under the guides' own setting, whatever is planned for.
void fill_guides(const train::Config& config, PlanReport& report) {
  train::Config theirs = with_rank(config, kGuidesRank);
  theirs.model.dtype = "bf16";
  const Subject subject = made_up(theirs, kGuidesPictures, kGuidesSide, kTextTokens);
  train::Forecast forecast(theirs, subject.samples, 1);
  fill_rows(forecast, report);
  fill_figures(theirs, subject, forecast, report);
  report.dry_runs += forecast.dry_runs();
}

PlannedCard planned(train::Forecast& forecast, std::int64_t card, std::int64_t overhead, bool expandable_segments) {
  const auto found = forecast.card(card, overhead, kRunnersUp, expandable_segments);
  PlannedCard result{found.card, found.usable, std::nullopt, found.runners_up, {}};
  if (!found.best) return result;
  const train::PlanBytes& best = *found.best;
  result.best = {best.plan, best.live, best.reserved, best.fragmentation, best.retries};
  result.breakdown = forecast.breakdown(found.best->plan);
  return result;
}

std::vector<std::int64_t> cards_of(const std::string& sizes, std::int64_t overhead) {
  auto cards = parse_sizes(sizes, "--budget");
  for (const std::int64_t card : cards)
    if (card <= overhead)
      fail(ExitCode::kUsage, "--budget {}: its driver and libraries take {} of it (--overhead); give a larger card",
           format_bytes(card), format_bytes(overhead));
  return cards;
}

// As much recomputed and offloaded as the configuration says, else everything and nothing.
int safe_batch(const train::Config& config, train::Forecast& forecast, std::int64_t usable, bool expandable_segments) {
  memory::Plan plan = everything_recomputed(forecast);
  plan.recompute_blocks =
      train::configured_recompute(config.memory, plan.recompute_blocks).value_or(plan.recompute_blocks);
  plan.offload = config.memory.offload.is("on") && plan.recompute_blocks > 0;
  const auto largest = forecast.largest_micro_batch(usable, plan, expandable_segments);
  return largest ? largest->plan.micro_batch : 0;
}

// That share the effective batch; each has a card.
int ranks_of(const train::Config& config, const cxxopts::ParseResult& parsed) {
  const std::int64_t ranks = parsed.count("ranks") > 0 ? parsed["ranks"].as<std::int64_t>() : config.launch.ranks;
  if (ranks < 1 || ranks > config.batch.effective)
    fail(ExitCode::kUsage, "{} ranks ({}): give 1 to {}, which is batch.effective, or raise that", ranks,
         parsed.count("ranks") > 0 ? "--ranks" : "launch.ranks", config.batch.effective);
  return static_cast<int>(ranks);
}

// What --estimate asks; of the samples that are known where --samples does not say.
EstimateInput estimate_input(const cxxopts::ParseResult& parsed, const train::Config& config, const Subject& subject) {
  EstimateInput input;
  input.samples =
      parsed.count("samples") > 0 ? parsed["samples"].as<std::int64_t>() : std::ssize(subject.samples.heaviest);
  input.epochs = parsed.count("epochs") > 0 ? parsed["epochs"].as<double>() : static_cast<double>(config.train.epochs);
  if (input.samples < 1) fail(ExitCode::kUsage, "--samples {}: give 1 or more", input.samples);
  if (!(input.epochs > 0)) fail(ExitCode::kUsage, "--epochs {}: give more than 0", input.epochs);
  if (static_cast<double>(input.samples) * input.epochs > 1e15)
    fail(ExitCode::kUsage, "--samples {} --epochs {}: more than 10^15 draws; give less", input.samples, input.epochs);
  if (parsed.count("epochs") == 0 && config.train.max_steps > 0) {
    input.steps = config.train.max_steps;
    input.epochs = static_cast<double>(input.steps * config.batch.effective) / static_cast<double>(input.samples);
  }
  if (parsed.count("rate") > 0) input.rate = parsed["rate"].as<double>();
  if (parsed.count("run") > 0)
    input.rate = report::summarise_run(report::read_run(parsed["run"].as<std::string>())).steps.samples_per_second;
  if (input.rate && !(*input.rate > 0))
    fail(ExitCode::kUsage, "samples/s are {}: give a --rate above 0, or a --run that made steps", *input.rate);
  return input;
}

int print_estimate(const train::Config& config, const Subject& subject, const PlanReport& report,
                   const std::vector<std::int64_t>& cards, const cxxopts::ParseResult& parsed) {
  EstimateInput input = estimate_input(parsed, config, subject);
  input.cards = cards;
  input.overhead = report.overhead;
  input.expandable_segments = report.expandable_segments;
  std::vector<TypeOfSamples> types = subject.types;
  if (types.empty()) types = {{"all samples", 1, subject.samples.heaviest}};
  const RunEstimate estimate = estimate_run(config, subject.samples, types, report.ranks, input);
  fmt::print("{}", parsed.count("json") > 0 ? to_json(estimate) : to_text(estimate));
  return 0;
}

bool is_a_gpu(const std::string& device) {
  if (device != "cuda" && device != "cpu") fail(ExitCode::kUsage, "--device \"{}\": give cuda or cpu", device);
  return device == "cuda";
}

cxxopts::Options plan_options() {
  cxxopts::Options options("plimsoll plan",
                           "Say what fits on cards of given sizes, by dry run: nothing of the model is allocated. The "
                           "samples are those of data.path where it is there, else made up");
  add_config_options(options);
  auto add = options.add_options();
  add("budget", "Sizes of cards, separated by commas",
      cxxopts::value<std::string>()->default_value("24GiB,40GiB,80GiB"));
  add("device",
      "What the budgets are of: cuda (cards: what our CUDA kernels take, by the caching allocator's rules), or cpu (a "
      "machine's memory), whatever run.device says",
      cxxopts::value<std::string>()->default_value("cuda"));
  add("overhead", "Bytes of a card that its driver and libraries take: a run on a GPU says what it measured",
      cxxopts::value<std::string>()->default_value("1GiB"));
  add("ranks", "Ranks that share the effective batch, with a card each (default: launch.ranks)",
      cxxopts::value<std::int64_t>());
  add("size", "Plan for a built-in model instead of model.path: tiny, wide or 3b", cxxopts::value<std::string>());
  add("images", "Pictures of a made-up sample", cxxopts::value<int>()->default_value("2"));
  add("side", "Pixels of their sides (default: data.resolution, else 448)", cxxopts::value<int>());
  add("text-tokens", "Tokens of its text", cxxopts::value<int>()->default_value(std::to_string(kTextTokens)));
  add("task", "Only samples of this task of the dataset: its number or text", cxxopts::value<std::string>());
  add("safe-batch", "Print one number: the largest micro-batch that fits the first budget");
  add("estimate", "What a whole run takes: peak, memory of a micro-batch by type of samples, steps, time");
  add("samples", "--estimate: training samples (default: those of the dataset)", cxxopts::value<std::int64_t>());
  add("epochs", "--estimate: passes over them (default: train.max_steps, else train.epochs)", cxxopts::value<double>());
  add("rate",
      "--estimate: samples a second of all ranks together (default: of a row that `plimsoll tune` measured with this "
      "model, where memory.table finds one)",
      cxxopts::value<double>());
  add("run", "--estimate: take that from the run in this folder", cxxopts::value<std::string>());
  add("no-table", "Leave out the tables of LoRA ranks and hand-made rows");
  add("expandable-segments", "Reserved bytes as under PyTorch's expandable_segments:True");
  add("json", "Print JSON");
  return options;
}

}  // namespace

int run_plan(const std::vector<std::string>& args) {
  cxxopts::Options options = plan_options();
  const auto parsed = parse_options(options, args);
  if (!parsed) return 0;
  train::Config config = read_config(*parsed);
  std::optional<BuiltInModel> built_in;
  if (parsed->count("size") > 0) config.model.path = built_in.emplace((*parsed)["size"].as<std::string>()).path();
  if (config.model.path.empty())
    fail(ExitCode::kUsage, "no model: give --config with model.path, --set model.path=DIR, or --size 3b");
  const bool for_a_gpu = is_a_gpu((*parsed)["device"].as<std::string>());
  if (for_a_gpu) train::let_dry_runs_stand_for_a_gpu();
  const Subject subject = subject_of(config, *parsed);

  PlanReport report;
  report.for_a_gpu = for_a_gpu;
  report.overhead = parse_bytes((*parsed)["overhead"].as<std::string>(), "--overhead");
  report.target = train::policy_config(config).target;  // refuses what a run would refuse
  report.effective = config.batch.effective;
  report.ranks = ranks_of(config, *parsed);
  const auto cards = cards_of((*parsed)["budget"].as<std::string>(), report.overhead);
  report.expandable_segments = parsed->count("expandable-segments") > 0;
  if (parsed->count("estimate") > 0) return print_estimate(config, subject, report, cards, *parsed);
  train::Forecast forecast(config, subject.samples, report.ranks);
  if (parsed->count("safe-batch") > 0) {
    fmt::print("{}\n", safe_batch(config, forecast, cards.front() - report.overhead, report.expandable_segments));
    return 0;
  }
  report.model =
      fmt::format("model: {}, {}, LoRA rank {}", built_in ? (*parsed)["size"].as<std::string>() : config.model.path,
                  config.model.dtype, config.lora.rank);
  report.sample = subject.words;
  report.static_bytes = forecast.dry().static_bytes();
  for (const std::int64_t card : cards)
    report.cards.push_back(planned(forecast, card, report.overhead, report.expandable_segments));
  if (parsed->count("no-table") == 0) {
    fill_table(config, subject, cards, report);
    if (is_of_the_guides(forecast)) fill_guides(config, report);
  }
  report.dry_runs += forecast.dry_runs();
  fmt::print("{}", parsed->count("json") > 0 ? to_json(report) : to_text(report));
  return 0;
}

}  // namespace plimsoll
