#include "train/loader_tuner.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <exception>
#include <filesystem>
#include <thread>

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

double machine_in_use() {
  static const auto total = static_cast<double>(machine_memory());
  return 1.0 - static_cast<double>(available_memory(1)) / total;
}

}  // namespace

void LoaderTuner::Sums::add(const Sums& other) {
  steps += other.steps;
  load_ms += other.load_ms;
  wall_ms += other.wall_ms;
  utilisation += other.utilisation;
  held_bytes += other.held_bytes;
}

LoaderTuner::LoaderTuner(Session& session, RunLog& log)
    : session_(session),
      log_(log),
      limits_(limits_of(session)),
      now_{session.config.data.workers, session.config.data.prefetch} {}

// On the CPU the device is busy whenever the step does not wait.
LoaderTuner::Sums LoaderTuner::look(double load_ms, double wall_ms) const {
  Sums one{1, load_ms, wall_ms, wall_ms > 0 ? 1.0 - load_ms / wall_ms : 0.0,
           static_cast<double>(session_.loader->held_bytes())};
  if (session_.device.utilisation) one.utilisation = session_.device.utilisation().value_or(one.utilisation);
  return one;
}

// The machine is asked where an interval or an epoch ends, not in every step.
double LoaderTuner::memory_in_use(const Sums& sums) const {
  const auto most = static_cast<double>(session_.loader->most_bytes());
  return most > 0 ? sums.held_bytes / static_cast<double>(sums.steps) / most : machine_in_use();
}

void LoaderTuner::took(std::int64_t step, double load_ms, double wall_ms) {
  const Sums one = look(load_ms, wall_ms);
  interval_.add(one);
  epoch_.add(one);
  by_setting_[{now_.workers, now_.prefetch}].add(one);
  if (session_.config.data.adaptive && interval_.steps >= session_.config.data.adjust_every) adjust(step);
  const auto samples = static_cast<std::int64_t>(session_.source.training().size());
  const std::int64_t batch = session_.config.batch.effective;
  if (step * batch / samples > (step - 1) * batch / samples) close_epoch(step);
}

void LoaderTuner::adjust(std::int64_t step) {
  const auto steps = static_cast<double>(interval_.steps);
  const data::LoaderUse use{interval_.load_ms / steps, (interval_.wall_ms - interval_.load_ms) / steps,
                            interval_.utilisation / steps, memory_in_use(interval_)};
  interval_ = {};
  const data::LoaderDecision decision = data::decide_loader(use, now_, limits_);
  if (decision.setting == now_) return;
  spdlog::info("step {}: loader: {} -> {}: {}", step, setting_text(now_), setting_text(decision.setting),
               decision.reason);
  now_ = decision.setting;
  ++adjusted_;
  session_.loader->set_workers(static_cast<int>(now_.workers));
  session_.loader->set_prefetch(now_.prefetch);
}

void LoaderTuner::close_epoch(std::int64_t step) {
  const auto steps = static_cast<double>(epoch_.steps);
  const double share = epoch_.wall_ms > 0 ? epoch_.load_ms / epoch_.wall_ms : 0.0;
  log_.line(fmt::format(
      "[loader] epoch ends in step {}: adjusted {} time{} | {} | steps waited {:.0f} % | device {:.0f} % busy | "
      "host memory {:.0f} %",
      step, adjusted_, adjusted_ == 1 ? "" : "s", setting_text(now_), 100 * share, 100 * epoch_.utilisation / steps,
      100 * memory_in_use(epoch_)));
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
  const auto mean = [](const Sums& sums) { return sums.wall_ms / static_cast<double>(sums.steps); };
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
      "# For the configuration of the next run.\n[data]\nworkers = {}\nprefetch = {}\n",
      sums.steps, mean(sums), sums.load_ms / static_cast<double>(sums.steps), setting.first, setting.second);
}

}  // namespace plimsoll::train
