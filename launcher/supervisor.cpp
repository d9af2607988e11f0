#include "launcher/supervisor.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <csignal>

#include "core/error.h"
#include "launcher/child.h"
#include "report/exit_file.h"

namespace plimsoll {
namespace {

using Clock = std::chrono::steady_clock;

Clock::duration seconds(double value) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(value));
}

/// The state of one supervised run, over all of its attempts.
class Supervisor {
 public:
  explicit Supervisor(const Supervision& supervision)
      : supervision_(supervision), checkpoint_(newest_checkpoint(supervision.run_dir)) {
    if (supervision.time_limit > 0) deadline_ = Clock::now() + seconds(supervision.time_limit);
  }

  int run() {
    for (std::int64_t attempt = 1;; ++attempt) {
      const Ending ending = run_attempt(attempt);
      const auto record = report::read_exit_record(supervision_.run_dir);
      if (record && record->exit_code != ExitCode::kPeer) {
        spdlog::info("[launch] {} at step {}", record->reason, record->step);
        return static_cast<int>(record->exit_code);
      }
      if (!record && final_without_record(ending.code)) {
        spdlog::error(
            "[launch] the ranks ended with exit code {} and could not write exit.json: see their messages above",
            ending.code);
        return ending.code;
      }
      const std::string loss = record ? record->reason : "a rank was lost (" + ending.text + ")";
      if (!may_restart(attempt - 1, loss)) return static_cast<int>(ExitCode::kPeer);
      pause();
      if (stopping_) return static_cast<int>(ExitCode::kPeer);
    }
  }

 private:
  struct Ending {
    int code = -1;
    std::string text;
  };

  /// mpirun hands on the code that a rank left with. These mean that another attempt would end alike; mpirun's own
  /// troubles end with 1 and killed ranks with 128 and more.
  static bool final_without_record(int code) {
    for (const auto final : {ExitCode::kUsage, ExitCode::kMemory, ExitCode::kData, ExitCode::kCheckpoint}) {
      if (code == static_cast<int>(final)) return true;
    }
    return false;
  }

  Ending run_attempt(std::int64_t attempt) {
    report::remove_exit_record(supervision_.run_dir);
    std::vector<std::string> command = supervision_.command;
    const bool has_resume = std::find(command.begin(), command.end(), "--resume") != command.end();
    if (attempt > 1 && !has_resume) command.emplace_back("--resume");
    ::setenv("PLIMSOLL_ATTEMPT", std::to_string(attempt).c_str(), 1);
    Child child(command);
    while (!child.ended()) watch(child);
    kill_orphans(seconds(supervision_.kill_grace));
    return {child.exit_code(), child.ending()};
  }

  /// Waits for the next signal or deadline and acts on it.
  void watch(Child& child) {
    const int signal = wait_for_signal(next_deadline() - Clock::now());
    const auto now = Clock::now();
    if (signal == SIGINT || signal == SIGTERM || signal == SIGHUP || signal == SIGUSR1) request(signal, child, now);
    if (!stopping_ && now >= deadline_) stop("the time limit is reached", now);
    if (stopping_ && !killing_ && now >= resend_at_) {
      child.send(SIGUSR1);
      resend_at_ = now + seconds(supervision_.resend_pause);
    }
    if (killing_ && now >= kill_at_) {
      child.send(SIGKILL);
      kill_at_ = Clock::time_point::max();
    }
  }

  void request(int signal, Child& child, Clock::time_point now) {
    const bool again = stopping_ && (signal == SIGINT || signal == SIGTERM);
    if (!again) return stop(::strsignal(signal), now);
    if (killing_) return;
    spdlog::warn("[launch] second request to stop: the ranks are killed; resume from the last checkpoint");
    killing_ = true;
    kill_at_ = now + seconds(supervision_.kill_grace);
    child.send(SIGTERM);
  }

  void stop(const char* why, Clock::time_point now) {
    if (stopping_) return;
    spdlog::info("[launch] {}: asking the ranks to checkpoint and stop (once more to kill them)", why);
    stopping_ = true;
    resend_at_ = now;
  }

  Clock::time_point next_deadline() const {
    if (killing_) return kill_at_;
    return stopping_ ? resend_at_ : deadline_;
  }

  bool may_restart(std::int64_t restarts, const std::string& loss) {
    const std::int64_t newest = newest_checkpoint(supervision_.run_dir);
    if (newest != checkpoint_) fruitless_ = 0;
    checkpoint_ = newest;
    const std::string from = newest < 0 ? "no checkpoint" : fmt::format("step {}", newest);
    if (stopping_) {
      spdlog::error("[launch] {} while it was asked to stop; resume from {}", loss, from);
    } else if (restarts >= supervision_.max_restarts) {
      spdlog::error("[launch] {}; launch.max_restarts = {} is used up; {} is the last state", loss,
                    supervision_.max_restarts, from);
    } else if (fruitless_ >= kFruitlessRestarts) {
      spdlog::error("[launch] {}; {} restarts in a row wrote no new checkpoint: see the ranks' messages above", loss,
                    fruitless_);
    } else {
      ++fruitless_;
      spdlog::warn("[launch] {}; restart {} of {} from {}", loss, restarts + 1, supervision_.max_restarts, from);
      return true;
    }
    return false;
  }

  /// A request to stop that comes between two attempts ends the run.
  void pause() {
    const auto until = Clock::now() + seconds(supervision_.restart_pause);
    while (!stopping_ && Clock::now() < until) {
      const int signal = wait_for_signal(until - Clock::now());
      if (signal == SIGINT || signal == SIGTERM || signal == SIGHUP || signal == SIGUSR1) {
        stopping_ = true;
        spdlog::error("[launch] asked to stop before the restart; resume from the last checkpoint");
      }
    }
  }

  const Supervision& supervision_;
  std::int64_t checkpoint_;
  int fruitless_ = 0;
  bool stopping_ = false, killing_ = false;
  Clock::time_point deadline_ = Clock::time_point::max();
  Clock::time_point resend_at_ = Clock::time_point::max();
  Clock::time_point kill_at_ = Clock::time_point::max();
};

}  // namespace

int supervise(const Supervision& supervision) {
  const SignalWatch signals;
  return Supervisor(supervision).run();
}

std::int64_t newest_checkpoint(const std::filesystem::path& run_dir) {
  std::int64_t newest = -1;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(run_dir / "checkpoints", ignored)) {
    const std::string name = entry.path().filename().string();
    std::int64_t step = -1;
    if (name.rfind("step-", 0) != 0) continue;
    const auto [end, error] = std::from_chars(name.data() + 5, name.data() + name.size(), step);
    const bool complete = std::filesystem::exists(entry.path() / "complete.json", ignored);
    if (error == std::errc() && end == name.data() + name.size() && complete) newest = std::max(newest, step);
  }
  return newest;
}

}  // namespace plimsoll
