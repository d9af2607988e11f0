// `plimsoll eval`: a policy in closed loop at the demo's table, on scenes that it was not trained on.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/error.h"
#include "core/file.h"
#include "data/closed_loop.h"
#include "data/episode_film.h"
#include "data/video_writer.h"
#include "launcher/commands.h"
#include "launcher/eval_report.h"
#include "launcher/run_config.h"
#include "train/policy.h"

namespace plimsoll {
namespace {

namespace fs = std::filesystem;

cxxopts::Options eval_options() {
  cxxopts::Options options(
      "plimsoll eval",
      "Let a policy act in the simulator that the demo's dataset was recorded in, on scenes that no dataset has, and "
      "count successes: the gripper closed on the named pad for three steps. The policy is a run's newest checkpoint "
      "unless another is chosen; all choices meet the same scenes. Of several datasets it acts for the first of "
      "data.path or data.mix: with its mapping and statistics, at its table");
  const data::ClosedLoopOptions usual;
  const auto whole = [](std::int64_t value) {
    return cxxopts::value<std::int64_t>()->default_value(std::to_string(value));
  };
  add_config_options(options);
  auto add = options.add_options();
  add("run", "Folder of a run: its configuration and newest checkpoint", cxxopts::value<std::string>());
  add("checkpoint", "Checkpoint folder in place of the newest", cxxopts::value<std::string>());
  add("untrained", "The model with its initial weights instead");
  add("constant",
      "One action instead, whatever is seen: the dataset's mean, or with --constant=X,Y,CLOSE this one (movement along "
      "x and y, from -1 to 1 in units of a tenth of the table a step; the gripper closes where CLOSE is above 0.5)",
      cxxopts::value<std::string>()->implicit_value("mean"), "X,Y,CLOSE");
  add("expert", "The scripted expert of the demonstrations instead: the upper bound");
  add("episodes", "Episodes, a scene each", whole(usual.episodes));
  add("seed", "Seed of the scenes and of the policy's noise", whole(0));
  add("held-out",
      "Measure a model's action error too, on so many samples of data.path's or data.mix's held-out episodes, as "
      "training does; 0: do not",
      whole(0));
  add("difficulty", "Pads: fixed, permuted or anywhere (default: as in the dataset)", cxxopts::value<std::string>());
  add("max-steps", "Steps after which an episode has failed", whole(usual.max_steps));
  add("replan",
      "Actions of a chunk that are carried out before the next is asked for; 0: half of them, or 1 with "
      "--ensemble",
      whole(0));
  add("ensemble", "Temporal ensembling: mean of all predictions for a step, weighted exp(-M i), the oldest i = 0",
      cxxopts::value<double>()->implicit_value("0.01"), "M");
  add("sampling-steps", "Denoising steps; 0: expert.sampling_steps", whole(0));
  add("at-once", "Episodes whose actions are computed together, at most", whole(usual.at_once));
  add("out", "Folder for episodes.png, episodes.mp4 and eval.json", cxxopts::value<std::string>());
  add("pictures", "Episodes in pictures and video: the first ones", whole(4));
  add("json", "Print JSON, and nothing else");
  return options;
}

std::int64_t bounded(const cxxopts::ParseResult& parsed, const char* name, std::int64_t least, std::int64_t most) {
  const auto value = parsed[name].as<std::int64_t>();
  if (value < least || value > most)
    fail(ExitCode::kUsage, "--{} is {}, but must be between {} and {}", name, value, least, most);
  return value;
}

train::Config configuration(const cxxopts::ParseResult& parsed) {
  const bool run = parsed.count("run") > 0;
  if (run == (parsed.count("config") > 0))
    fail(ExitCode::kUsage, "{}",
         run ? "--run and --config were given: give one of them"
             : "option --run is missing (a run's folder), or --config");
  if (!run) return read_config(parsed);
  const fs::path folder = parsed["run"].as<std::string>();
  train::Config config = read_config(parsed, (folder / "config.toml").string());
  config.run.dir = folder.string();  // it may have been moved
  return config;
}

/// "checkpoint" or one of the three that need none.
std::string chosen_policy(const cxxopts::ParseResult& parsed) {
  std::string chosen;
  for (const char* name : {"checkpoint", "untrained", "constant", "expert"}) {
    if (parsed.count(name) == 0) continue;
    if (!chosen.empty()) fail(ExitCode::kUsage, "--{} and --{} were given: give one of them", chosen, name);
    chosen = name;
  }
  return chosen.empty() ? "checkpoint" : chosen;
}

bool is_model(const std::string& policy) { return policy == "checkpoint" || policy == "untrained"; }

fs::path checkpoint_of(const cxxopts::ParseResult& parsed, const train::Config& config) {
  if (parsed.count("checkpoint") > 0) return parsed["checkpoint"].as<std::string>();
  return train::newest_checkpoint_of(config);
}

void read_chunking(const cxxopts::ParseResult& parsed, EvalTerms& terms) {
  auto& loop = terms.loop;
  const std::int64_t replan = bounded(parsed, "replan", 0, 1 << 20);
  if (parsed.count("ensemble") > 0) loop.ensemble_decay = parsed["ensemble"].as<double>();
  if (!is_model(terms.policy) && (replan > 1 || loop.ensemble_decay))
    fail(ExitCode::kUsage, "--replan and --ensemble are for a model's chunks; --{} gives one action at a time",
         terms.policy);
  if (loop.ensemble_decay && !(*loop.ensemble_decay >= 0 && std::isfinite(*loop.ensemble_decay)))
    fail(ExitCode::kUsage, "--ensemble={}: must be at least 0", *loop.ensemble_decay);
  if (replan > terms.chunk)
    fail(ExitCode::kUsage, "--replan {}: a chunk has {} actions (expert.chunk)", replan, terms.chunk);
  loop.replan = replan > 0 ? replan : loop.ensemble_decay ? 1 : (terms.chunk + 1) / 2;
}

/// As the simulator takes an action.
std::vector<double> constant_action(const std::string& text, const std::vector<double>& mean) {
  if (text == "mean") return mean;
  std::vector<double> action;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    const double least = std::ssize(action) + 1 < data::Tabletop::kActionDim ? -1 : 0;  // the last: how far to close
    double value = 0;
    const auto [end, error] = std::from_chars(text.data() + at, text.data() + comma, value);
    if (error != std::errc() || end != text.data() + comma || !(value >= least && value <= 1)) break;
    action.push_back(value);
    at = comma + 1;
    if (at > text.size() && std::ssize(action) == data::Tabletop::kActionDim) return action;
  }
  fail(ExitCode::kUsage,
       "--constant=\"{}\": no action of the simulator; give three numbers, --constant=X,Y,CLOSE: movement along x and "
       "along y, each from -1 to 1, and CLOSE from 0 to 1; or --constant alone for the dataset's mean action",
       text);
}

/// Samples to measure the action error on.
std::int64_t held_out_samples(const cxxopts::ParseResult& parsed, const EvalTerms& terms) {
  const std::int64_t count = bounded(parsed, "held-out", 0, 1 << 30);
  if (count > 0 && !is_model(terms.policy))
    fail(ExitCode::kUsage,
         "--held-out measures what a model predicts, and --{} is none; a model's report has the error of the best "
         "constant action beside its own",
         terms.policy);
  return count;
}

EvalTerms read_terms(const cxxopts::ParseResult& parsed, const train::Config& config,
                     const data::DemoDataset& dataset) {
  EvalTerms terms;
  terms.policy = chosen_policy(parsed);
  terms.chunk = is_model(terms.policy) ? config.expert.chunk : 1;
  if (terms.policy == "constant")
    terms.constant = constant_action(parsed["constant"].as<std::string>(), dataset.mean_action);
  terms.held_out = held_out_samples(parsed, terms);
  auto& loop = terms.loop;
  loop.table = dataset.table;
  loop.blind = !is_model(terms.policy);
  loop.table.seed = static_cast<std::uint64_t>(bounded(parsed, "seed", 0, std::int64_t{1} << 62));
  if (parsed.count("difficulty") > 0)
    loop.table.difficulty = data::parse_difficulty(parsed["difficulty"].as<std::string>());
  loop.episodes = bounded(parsed, "episodes", 1, 1 << 20);
  loop.max_steps = bounded(parsed, "max-steps", 1, 1 << 16);
  loop.at_once = bounded(parsed, "at-once", 1, 1 << 16);
  if (parsed.count("out") > 0) loop.filmed = bounded(parsed, "pictures", 0, 64);
  read_chunking(parsed, terms);
  return terms;
}

/// The table takes an action as it was recorded: a policy that gives its dimensions in another order, or not all of
/// them, cannot be understood there.
void check_actions(const data::DatasetMapping& first) {
  std::vector<std::int64_t> own(data::Tabletop::kActionDim);
  std::iota(own.begin(), own.end(), std::int64_t{0});
  if (first.action_dimensions.empty() || first.action_dimensions == own) return;
  fail(ExitCode::kUsage,
       "data.mix[0].action_dimensions is [{}]: the simulator takes all {} dimensions of an action, in the order in "
       "which they were recorded; evaluate a run that was trained on them so (empty: all)",
       fmt::join(first.action_dimensions, ", "), own.size());
}

/// Of several datasets the first, as in train::Policy.
std::string first_dataset(const train::Config& config) {
  const auto& path = config.data.path;
  const auto& mix = config.data.mix;
  if (config.data.synthetic_samples > 0 || (path.empty() && mix.empty()))
    fail(ExitCode::kUsage,
         "neither data.path nor data.mix names a dataset{}: the simulator is set up as the one of `plimsoll demo-data` "
         "that was trained on",
         config.data.synthetic_samples > 0 ? " that is used (data.synthetic_samples is set)" : "");
  if (!path.empty() && !mix.empty())
    fail(ExitCode::kUsage, "data.path is {}, and data.mix names datasets too; give one of them", fmt::join(path, ", "));
  if (mix.empty()) return path.front();
  check_actions(mix.front());
  return mix.front().path;
}

data::DemoDataset demo_dataset(const train::Config& config) { return data::read_demo_dataset(first_dataset(config)); }

std::vector<data::EpisodeOutcome> run_model(const cxxopts::ParseResult& parsed, const train::Config& config,
                                            EvalTerms& terms) {
  const bool trained = terms.policy == "checkpoint";
  const fs::path checkpoint = trained ? checkpoint_of(parsed, config) : fs::path();
  train::PolicyOptions options;
  options.seed = terms.loop.table.seed;
  options.sampling_steps = bounded(parsed, "sampling-steps", 0, 1 << 20);
  train::Policy policy(config, options);
  if (trained) {
    terms.step = policy.read(checkpoint);
    terms.checkpoint = checkpoint.string();
  }
  if (terms.held_out > 0) terms.error = policy.action_error(terms.held_out);
  if (terms.error && terms.error->samples == 0)
    fail(ExitCode::kUsage, "--held-out {}: nothing is held out, data.eval_fraction is {}", terms.held_out,
         config.data.eval_fraction);
  return data::run_closed_loop(terms.loop, [&](auto queries) { return policy.chunks(queries); });
}

std::vector<data::EpisodeOutcome> run_policy(const cxxopts::ParseResult& parsed, const train::Config& config,
                                             EvalTerms& terms) {
  if (is_model(terms.policy)) return run_model(parsed, config, terms);
  if (terms.policy == "expert") return data::run_closed_loop(terms.loop, data::expert_chunks);
  const std::vector<float> action(terms.constant.begin(), terms.constant.end());
  return data::run_closed_loop(terms.loop,
                               [&](auto queries) { return std::vector<std::vector<float>>(queries.size(), action); });
}

fs::path prepared_folder(const cxxopts::ParseResult& parsed) {
  if (parsed.count("out") == 0) return {};
  fs::path folder = parsed["out"].as<std::string>();
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) fail(ExitCode::kUsage, "--out {}: {}", folder.string(), error.message());
  return folder;
}

void write_pictures(const fs::path& folder, const std::vector<data::EpisodeOutcome>& outcomes, int fps) {
  const auto png = data::encode_png(data::film_strip(outcomes));
  write_file_durably(folder / "episodes.png", {reinterpret_cast<const char*>(png.data()), png.size()}, ExitCode::kData);
  const fs::path film = folder / "episodes.mp4", unfinished = folder / ".episodes.mp4.writing";
  data::write_film(unfinished.string(), outcomes, fps);
  fs::rename(unfinished, film);
}

}  // namespace

int run_eval(const std::vector<std::string>& args) {
  auto options = eval_options();
  const auto parsed = parse_options(options, args);
  if (!parsed) return 0;
  const train::Config config = configuration(*parsed);
  const data::DemoDataset dataset = demo_dataset(config);
  EvalTerms terms = read_terms(*parsed, config, dataset);
  const fs::path folder = prepared_folder(*parsed);
  const auto start = std::chrono::steady_clock::now();
  const auto outcomes = run_policy(*parsed, config, terms);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const std::string json = eval_json(terms, outcomes, seconds).dump(2) + "\n";
  if (!folder.empty()) {
    if (terms.loop.filmed > 0) write_pictures(folder, outcomes, dataset.fps);
    write_file_durably(folder / "eval.json", json, ExitCode::kData);
  }
  const bool as_json = parsed->count("json") > 0;
  fmt::print("{}", as_json ? json : eval_text(terms, outcomes, seconds));
  if (!folder.empty() && !as_json) fmt::print("\nwritten to {}\n", folder.string());
  return 0;
}

}  // namespace plimsoll
