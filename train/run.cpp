#include "train/run.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <exception>
#include <filesystem>
#include <new>

#include "core/bytes.h"
#include "core/file.h"
#include "core/log.h"
#include "memory/guardian.h"
#include "report/exit_file.h"
#include "report/http.h"
#include "report/report_files.h"
#include "train/evaluate.h"
#include "train/loop.h"
#include "train/options.h"
#include "train/source.h"
#include "train/stop_request.h"

namespace plimsoll::train {
namespace {

void write_exit(const Config& config, ddp::Communicator& communicator, const Outcome& outcome, std::int64_t step) {
  if (communicator.rank() != 0) return;
  const auto newest = newest_checkpoint(std::filesystem::path(config.run.dir) / "checkpoints");
  report::write_exit_record(
      config.run.dir, {outcome.code, outcome.reason, step, newest ? std::optional(newest->string()) : std::nullopt,
                       report::attempt_number()});
}

// The exit code says it too, should the last words find no space.
void write_error(const Config& config, const Outcome& outcome, std::int64_t step) {
  try {
    const auto newest = newest_checkpoint(std::filesystem::path(config.run.dir) / "checkpoints");
    report::write_exit_record(
        config.run.dir, {outcome.code, outcome.reason, step, newest ? std::optional(newest->string()) : std::nullopt,
                         report::attempt_number()});
  } catch (const Error& error) {
    spdlog::error("{}", error.what());
  }
}

void make_run_dir(const std::string& dir) {
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error)
    fail(ExitCode::kUsage, "run.dir = \"{}\": {}; choose a folder that can be made and written", dir, error.message());
}

// A new run would write over the lines of the old one, and a restart would go on from the old one's checkpoint.
void refuse_old_run(const std::string& dir) {
  const auto newest = newest_checkpoint(std::filesystem::path(dir) / "checkpoints");
  if (!newest) return;
  fail(ExitCode::kUsage, "{}: a checkpoint of an earlier run; go on from it with --resume, or give a new run.dir",
       newest->string());
}

std::string error_line(const char* when, const ActionError& error) {
  return fmt::format(
      "held-out action error at the {}: {:.4f} (best constant action {:.4f}), {} samples of unseen episodes; 95 % "
      "intervals +- {:.4f} and +- {:.4f}",
      when, error.sampled, error.best_constant, error.samples, error.sampled_margin, error.constant_margin);
}

std::string shortfall_line(const memory::Calibration& calibration) {
  std::int64_t compared = 0, largest = 0;
  for (const auto& entry : calibration.entries()) {
    compared += entry.observations;
    largest = std::max(largest, entry.offset_bytes);
  }
  return fmt::format("predictions: {} of {} peaks compared were above theirs, by at most {}", calibration.shortfalls(),
                     compared, format_bytes(largest));
}

Outcome train_one(const Config& config, const RunOptions& options, ddp::Communicator& communicator,
                  std::int64_t& step) {
  const bool trains = !options.plan_only && !options.build_cache;
  if (!options.resume && trains) refuse_old_run(config.run.dir);
  if (trains && communicator.rank() == 0) report::remove_exit_record(config.run.dir);  // how an earlier attempt ended
  Device device = open_device(config.run.device, communicator.local_rank());
  const auto on_device = communicator_on(device, communicator);
  set_threads(config.run, communicator.world());
  const auto source = make_source(config);
  Session session(config, on_device ? *on_device : communicator, *source, device);
  if (options.build_cache) {
    const BuiltCache built = build_cache(session, [&](const std::string& text) {
      if (communicator.rank() == 0) spdlog::info("{}", text);
    });
    if (communicator.rank() == 0) options.build_cache(built);
    if (built.known < built.samples)
      return {ExitCode::kData,
              fmt::format("{}: {} of {} samples have no features: the folder cannot be written, or cache.disk_bytes or "
                          "the disk has no more room; what there is is kept",
                          built.folder, built.samples - built.known, built.samples)};
    return {ExitCode::kDone, "cache built"};
  }
  session.resume(options.resume);
  step = session.state.step;
  if (options.plan_only) {
    if (communicator.rank() == 0) fmt::print("{}", session.plan_text());
    return {ExitCode::kDone, "plan only"};
  }
  if (config.memory.snapshot)
    session.meter.snapshot_next_failure(std::filesystem::path(config.run.dir) /
                                        fmt::format("out-of-memory-rank-{}.pickle", communicator.rank()));
  RunLog log(session, session.state.step);
  log.line(session.plan_text());
  if (communicator.rank() == 0) {
    write_file_durably(std::filesystem::path(config.run.dir) / "config.toml", config_to_toml(config));
  }
  const std::int64_t samples = config.train.eval_samples;
  if (samples > 0 && step == 0) log.line(error_line("start", measure_action_error(session, samples)));
  Loop loop(session, log);
  Outcome outcome = loop.run();
  step = session.state.step;
  log.line(shortfall_line(session.controller->state().calibration));
  if (samples > 0 && outcome.code == ExitCode::kDone)
    log.line(error_line("end", measure_action_error(session, samples)));
  if (const auto newest = newest_checkpoint(session.checkpoint_root())) {
    log.line(
        fmt::format("{} after step {}; checkpoint {}{}", outcome.reason, step, newest->string(),
                    std::filesystem::exists(*newest / "adapter") ? ", adapter " + (*newest / "adapter").string() : ""));
  }
  log.finish(outcome.code);
  return outcome;
}

// What libtorch threw and nothing below took. Call inside the catch block.
Outcome outcome_of(const c10::Error& error, int rank) {
  const std::string said = error.msg().substr(0, error.msg().find('\n'));  // CUDA's goes on with advice for programmers
  if (memory::is_out_of_memory())
    return {ExitCode::kMemory,
            fmt::format("rank {}: out of memory where nothing can be split: {}; end other programs that use the "
                        "device, or lower memory.budget",
                        rank, said)};
  // Like a peer that was killed: nothing is wrong with the run, and another attempt may get a sound device.
  if (memory::is_device_failure())
    return {ExitCode::kPeer,
            fmt::format("rank {}: the GPU failed: {}; restart from the last checkpoint (`plimsoll launch` does, else "
                        "--resume); if it fails again, look at it with nvidia-smi and in the kernel's log (Xid)",
                        rank, said)};
  return {ExitCode::kData, "internal error: " + error.msg()};
}

}  // namespace

ExitCode run(const Config& config, const RunOptions& options) {
  make_run_dir(config.run.dir);
  if (const auto& uri = config.report.mlflow_uri; !uri.empty())
    report::checked_server_address(uri, "report.mlflow_uri");  // by all ranks, before any of them waits for another
  const auto communicator = ddp::make_communicator(config.run.dir, config.launch.timeout);
  start_logging("info", communicator->rank(), communicator->world());
  watch_for_stop_requests();
  std::int64_t step = 0;
  Outcome outcome;
  try {
    outcome = train_one(config, options, *communicator, step);
    communicator->barrier();  // all durable work is done: only now may anybody leave
    if (!options.plan_only && !options.build_cache) {
      write_exit(config, *communicator, outcome, step);
      if (config.report.files && communicator->rank() == 0) report::write_report_of_ended_run(config.run.dir);
    }
  } catch (const ddp::PeerLeft& error) {
    // The culprit has written exit.json; this rank only leaves with its code.
    spdlog::error("{}", error.what());
    communicator->abort(static_cast<int>(error.code()));
  } catch (const c10::Error& error) {
    outcome = outcome_of(error, communicator->rank());
  } catch (const Error& error) {
    outcome = {error.code(), error.what()};
  } catch (const std::bad_alloc&) {
    outcome = {ExitCode::kMemory, fmt::format("rank {}: host memory is exhausted; lower data.prefetch, data.workers or "
                                              "memory.budget",
                                              communicator->rank())};
  } catch (const std::exception& error) {
    outcome = {ExitCode::kData, std::string("internal error: ") + error.what()};
  }
  if (outcome.code == ExitCode::kDone || outcome.code == ExitCode::kStopped) return outcome.code;
  spdlog::error("{}", outcome.reason);
  // Errors are mostly met by all ranks at once; where they are not, the others must not wait for this one.
  if (!options.build_cache && outcome.code != ExitCode::kPeer) write_error(config, outcome, step);
  if (communicator->world() > 1) communicator->abort(static_cast<int>(outcome.code));
  return outcome.code;
}

}  // namespace plimsoll::train
