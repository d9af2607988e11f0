#include "report/mlflow_log.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <exception>
#include <map>
#include <random>

#include "core/file.h"
#include "report/mlflow_messages.h"

namespace plimsoll::report {
namespace {

std::int64_t milliseconds_now() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
}

// Of all runs that a server will ever hold.
std::string new_token() {
  std::random_device source;
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", source(), source(), source(), source());
}

std::string name_of(const std::filesystem::path& run_dir) {
  const auto path = std::filesystem::absolute(run_dir).lexically_normal();
  const auto name = path.has_filename() ? path.filename() : path.parent_path().filename();
  return name.empty() ? "run" : name.string();
}

const char* mlflow_status(ExitCode code) {
  if (code == ExitCode::kDone) return "FINISHED";
  return code == ExitCode::kStopped ? "KILLED" : "FAILED";
}

}  // namespace

MlflowLog::MlflowLog(const MlflowOptions& options)
    : options_(options),
      spool_(options.run_dir),
      sender_(options.run_dir, checked_server_address(options.uri, "report.mlflow_uri"), options.times) {
  if (options.resumed && spool_.told().begun)
    go_on();
  else
    begin();
}

MlflowLog::~MlflowLog() {
  if (finished_) return;
  try {
    end("FAILED", std::min(options_.flush, std::chrono::milliseconds(1000)));
  } catch (const std::exception& error) {
    spdlog::warn("{}", error.what());
  }
}

void MlflowLog::begin() {
  const std::int64_t now = milliseconds_now();
  // A run that was killed before its first checkpoint is begun anew in the same folder.
  if (spool_.told().begun && !spool_.told().ended) append(mlflow_state_line("KILLED", now));
  append(mlflow_begin_line(options_.experiment, name_of(options_.run_dir), new_token(), now));
  append(mlflow_params_line(mlflow_flatten(options_.configuration, "the configuration")));
}

void MlflowLog::go_on() {
  last_step_ = spool_.told().last_step;
  if (spool_.told().ended) append(mlflow_state_line("RUNNING", milliseconds_now()));
  std::map<std::string, std::string> missing, changed;
  const auto& told = spool_.told();
  // Compared as the server knows them: cleaned and cut.
  const std::string line = mlflow_params_line(mlflow_flatten(options_.configuration, "the configuration"));
  for (const MlflowEntry& setting : parse_mlflow_line(line).entries) {
    const auto param = told.params.find(setting.key);
    const auto resumed = told.tags.find(mlflow_key("resumed." + setting.key));
    if (param == told.params.end())
      missing[setting.key] = setting.value;  // a new key, or a crash before any was written
    else if ((resumed == told.tags.end() ? param->second : resumed->second) != setting.value)
      changed["resumed." + setting.key] = setting.value;
  }
  if (!missing.empty()) append(mlflow_params_line(missing));
  if (!changed.empty()) append(mlflow_tags_line(changed));
}

void MlflowLog::step(const StepRecord& record) {
  if (record.step <= last_step_) return;
  append(mlflow_step_line(record, milliseconds_now()));
  last_step_ = record.step;
}

void MlflowLog::sync() { spool_.sync(); }

void MlflowLog::finish(ExitCode code) {
  loader_setting();
  end(mlflow_status(code), options_.flush);
}

void MlflowLog::loader_setting() {
  const auto file = options_.run_dir / "loader.toml";
  if (!std::filesystem::exists(file)) return;
  const std::string text = read_file(file, ExitCode::kCheckpoint);
  std::map<std::string, std::string> tags{{"loader.toml", text}};
  try {
    for (const auto& [key, value] : mlflow_flatten(text, file.string())) tags["recommended." + key] = value;
  } catch (const Error& error) {  // no reason for a run that is done to fail
    spdlog::warn("{}; its text goes to the MLflow server all the same", error.what());
  }
  append(mlflow_tags_line(tags));
}

void MlflowLog::append(const std::string& line) {
  spool_.append(line);
  sender_.wake();
}

void MlflowLog::end(const std::string& status, std::chrono::milliseconds limit) {
  finished_ = true;
  append(mlflow_state_line(status, milliseconds_now()));
  if (!sender_.finish(limit)) {
    spdlog::warn("MLflow server {}: not everything was sent; the rest waits in {}", options_.uri,
                 mlflow_spool_file(options_.run_dir).string());
  }
}

}  // namespace plimsoll::report
