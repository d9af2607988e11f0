#include "train/loader_tuner.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <exception>
#include <filesystem>
#include <thread>
#include <utility>

#include "core/file.h"
#include "train/options.h"

namespace plimsoll::train {
namespace {

data::LoaderLimits limits_of(const Session& session) {
  data::LoaderLimits limits;
  const auto& data = session.config.data;
  const std::int64_t cores = std::max(1U, std::thread::hardware_concurrency());
  const std::int64_t ranks = session.communicator.world();
  limits.most_workers =
      std::max(data.workers, data.most_workers > 0 ? data.most_workers : std::max<std::int64_t>(1, cores / ranks));
  limits.most_prefetch = std::max(data.prefetch, data.most_prefetch);
  return limits;
}

constexpr double kNoise = 1.02;

std::string setting_text(const data::LoaderSetting& s) {
  return fmt::format("{} thread{}, {} step{} ahead", s.workers, s.workers == 1 ? "" : "s", s.prefetch,
                     s.prefetch == 1 ? "" : "s");
}

double whole_machine() {
  static const auto total = static_cast<double>(machine_memory());
  return total;
}

double part_in_use() { return 1.0 - static_cast<double>(available_memory(1)) / whole_machine(); }

std::string memory_line(const data::Loader& loader) {
  const data::LoaderPeak peak = loader.peak();
  const std::string bound = loader.most_bytes() > 0 ? fmt::format(" (data.loader_bytes: {})", loader.most_bytes()) : "";
  return fmt::format("# At most {} bytes were held at once{}, a sample being {} at most.\n", peak.held, bound,
                     peak.sample);
}

// The machine is asked in an epoch's first step and in every so-many-th after it: asking reads several files.
constexpr std::int64_t kStepsPerLook = 10;

}  // namespace

void LoaderSums::add(const LoaderSums& other) {
  steps += other.steps;
  wait_ms += other.wait_ms;
  load_ms += other.load_ms;
  wall_ms += other.wall_ms;
  utilisation += other.utilisation;
  held_bytes += other.held_bytes;
  memory += other.memory;
  looks += other.looks;
}

double busy_part(const std::function<std::optional<double>()>& device_says, double wait_ms, double wall_ms) {
  const double by_time = wall_ms > 0 ? 1.0 - wait_ms / wall_ms : 0.0;
  return device_says ? device_says().value_or(by_time) : by_time;
}

std::string loader_epoch_line(std::int64_t step, std::int64_t adjusted, const data::LoaderSetting& setting,
                              const LoaderSums& epoch) {
  const double waited = epoch.wall_ms > 0 ? epoch.wait_ms / epoch.wall_ms : 0.0;
  return fmt::format(
      "[loader] epoch ends in step {}: adjusted {} time{} | {} | steps waited {:.0f} % | device {:.0f} % busy | "
      "host memory {:.0f} %",
      step, adjusted, adjusted == 1 ? "" : "s", setting_text(setting), 100 * waited,
      100 * epoch.mean(epoch.utilisation), 100 * epoch.mean_memory());
}

LoaderTuner::LoaderTuner(Session& session, RunLog& log, std::function<double()> machine_in_use)
    : session_(session),
      log_(log),
      machine_in_use_(machine_in_use ? std::move(machine_in_use) : part_in_use),
      limits_(limits_of(session)),
      now_{session.config.data.workers, session.config.data.prefetch} {}

LoaderSums LoaderTuner::look(double wait_ms, double wall_ms) {
  const data::Loader& loader = *session_.loader;
  const std::chrono::nanoseconds load_time = loader.load_time();
  const std::chrono::duration<double, std::milli> loaded_for = load_time - std::exchange(load_time_, load_time);
  LoaderSums one;
  one.steps = 1;
  one.wait_ms = wait_ms;
  one.load_ms = loaded_for.count() / static_cast<double>(now_.workers);
  one.wall_ms = wall_ms;
  one.utilisation = busy_part(session_.device.utilisation, wait_ms, wall_ms);
  one.held_bytes = static_cast<double>(loader.held_bytes());
  const auto most = static_cast<double>(loader.most_bytes());
  if (most > 0 || epoch_.steps % kStepsPerLook == 0) {
    one.looks = 1;
    one.memory = most > 0 ? one.held_bytes / most : machine_in_use_();
  }
  return one;
}

// Where the loader has no bound of its own, the machine's memory counts as it is now: a mean would come late.
data::LoaderUse LoaderTuner::use_of(const LoaderSums& seen) const {
  const auto most = static_cast<double>(session_.loader->most_bytes());
  data::LoaderUse use;
  use.wait_ms = seen.mean(seen.wait_ms);
  use.load_ms = seen.mean(seen.load_ms);
  use.process_ms = seen.mean(seen.wall_ms - seen.wait_ms);
  use.utilisation = seen.mean(seen.utilisation);
  use.memory = most > 0 ? seen.mean_memory() : machine_in_use_();
  const double of_a_step = seen.mean(seen.held_bytes) / static_cast<double>(now_.prefetch + 1);
  use.step_memory = of_a_step / (most > 0 ? most : whole_machine());
  return use;
}

void LoaderTuner::took(std::int64_t step, double wait_ms, double wall_ms) {
  const LoaderSums one = look(wait_ms, wall_ms);
  interval_.add(one);
  epoch_.add(one);
  by_setting_[{now_.workers, now_.prefetch}].add(one);
  const DataConfig& data = session_.config.data;
  const bool may_adjust = data.adaptive && (data.most_adjustments == 0 || adjusted_in_all_ < data.most_adjustments);
  if (may_adjust && interval_.steps >= data.adjust_every) adjust(step);
  const auto samples = static_cast<std::int64_t>(session_.source.training().size());
  const std::int64_t batch = session_.config.batch.effective;
  if (step * batch / samples > (step - 1) * batch / samples) close_epoch(step);
}

void LoaderTuner::adjust(std::int64_t step) {
  const data::LoaderUse use = use_of(std::exchange(interval_, {}));
  const data::LoaderDecision decision = data::decide_loader(use, now_, limits_);
  if (decision.setting == now_) return;
  spdlog::info("step {}: loader: {} -> {}: {}", step, setting_text(now_), setting_text(decision.setting),
               decision.reason);
  now_ = decision.setting;
  ++adjusted_;
  ++adjusted_in_all_;
  session_.loader->set_workers(static_cast<int>(now_.workers));
  session_.loader->set_prefetch(now_.prefetch);
}

void LoaderTuner::close_epoch(std::int64_t step) {
  log_.line(loader_epoch_line(step, adjusted_, now_, epoch_));
  epoch_ = {};
  adjusted_ = 0;
}

void LoaderTuner::recommend() const noexcept {
  if (session_.communicator.rank() != 0 || by_setting_.empty()) return;
  try {
    write_file_durably(std::filesystem::path(session_.config.run.dir) / "loader.toml", recommendation());
  } catch (const std::exception& error) {
    spdlog::warn("no loader.toml was written: {}", error.what());
  }
}

std::string LoaderTuner::recommendation() const {
  // A setting that was left after a few steps has not shown what it does.
  const std::int64_t least = session_.config.data.adjust_every / 2;
  const auto mean = [](const LoaderSums& sums) { return sums.mean(sums.wall_ms); };
  const auto cost = [&](const auto& entry) { return std::pair(entry.second.steps < least, mean(entry.second)); };
  auto best = cost(*by_setting_.begin());
  for (const auto& entry : by_setting_) best = std::min(best, cost(entry));
  // The least that does as well: what is within the noise is not worth a thread.
  const auto chosen = std::find_if(by_setting_.begin(), by_setting_.end(), [&](const auto& entry) {
    return cost(entry) <= std::pair(best.first, kNoise * best.second);
  });
  const auto& [setting, sums] = *chosen;
  return fmt::format(
      "# What this run's loader did best with: {} steps of {:.1f} ms, of which {:.1f} ms waiting for samples.\n"
      "{}# For the configuration of the next run.\n[data]\nworkers = {}\nprefetch = {}\n",
      sums.steps, mean(sums), sums.mean(sums.wait_ms), memory_line(*session_.loader), setting.first, setting.second);
}

}  // namespace plimsoll::train
