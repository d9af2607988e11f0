#include "report/mlflow_delivery.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "core/error.h"

namespace plimsoll::report {
namespace {

constexpr const char* kApi = "/api/2.0/mlflow/";
constexpr const char* kUnknown = "RESOURCE_DOES_NOT_EXIST";
constexpr const char* kExists = "RESOURCE_ALREADY_EXISTS";

// Says something of the server or of us, not of what was sent.
bool passing(int status) {
  switch (status) {
    case 401:
    case 403:
    case 404:
    case 405:
    case 408:
    case 429:
      return true;
    default:
      return status < 400 || status >= 500;
  }
}

std::string first_token(const std::filesystem::path& run_dir) {
  MlflowSpoolReader reader(run_dir);
  const auto line = reader.next();
  return line ? parse_mlflow_line(*line).token : "";
}

}  // namespace

MlflowDelivery::MlflowDelivery(const std::filesystem::path& run_dir, const std::string& server,
                               MlflowTransport transport)
    : run_dir_(run_dir), server_(server), transport_(std::move(transport)), right_(run_dir), reader_(run_dir) {}

MlflowDelivery::Outcome MlflowDelivery::deliver() {
  if (!std::filesystem::exists(mlflow_spool_file(run_dir_))) return Outcome::kNothing;
  const bool ours = right_.take() || not_now("another process is sending them");
  if (ours && !load_mark()) return Outcome::kNothing;
  if (ours) {
    reader_.seek(mark_->acknowledged);
    const MlflowLine line = next_line();
    const std::int64_t end = reader_.offset();
    if (end == mark_->acknowledged) return Outcome::kNothing;
    if (send(line)) {
      mark_->acknowledged = end;
      write_mlflow_mark(run_dir_, *mark_);
      if (!trouble_.empty()) spdlog::info("MLflow server {}: records are taken again", server_);
      trouble_.clear();
      return Outcome::kMoved;
    }
  }
  if (trouble_.empty()) {
    spdlog::warn("MLflow server {}: {}; records wait in {}", server_, reason_, mlflow_spool_file(run_dir_).string());
  }
  trouble_ = reason_;
  return Outcome::kLater;
}

// Read only once the right to send is ours: whoever had it before may have moved it.
bool MlflowDelivery::load_mark() {
  if (mark_) return true;
  const std::string spool = first_token(run_dir_);
  if (spool.empty()) return false;  // nothing whole is in it yet
  mark_ = read_mlflow_mark(run_dir_);
  if (!mark_ || mark_->server != server_ || mark_->spool != spool) mark_ = MlflowMark{server_, spool, 0, 0, "", ""};
  return true;
}

// One line, or as many lines of entries as make one full request.
MlflowLine MlflowDelivery::next_line() {
  MlflowLine group;
  while (group.entries.size() < kMlflowEntries) {
    const std::int64_t before = reader_.offset();
    const auto text = reader_.next();
    if (!text) break;
    MlflowLine line = parse_mlflow_line(*text);
    const bool entries = line.kind == MlflowLine::Kind::kEntries;
    if (group.entries.empty() && !entries) return line;
    if (!entries) {
      reader_.seek(before);
      break;
    }
    group.kind = MlflowLine::Kind::kEntries;
    group.entries.insert(group.entries.end(), line.entries.begin(), line.entries.end());
  }
  return group;
}

bool MlflowDelivery::send(const MlflowLine& line) {
  if (line.kind == MlflowLine::Kind::kBegin) return begin(line);
  if (line.kind == MlflowLine::Kind::kDamaged) {
    not_now("a line cannot be read");
    refuse("the line that ends at byte " + std::to_string(reader_.offset()));
    return true;
  }
  if (mark_->run_id.empty()) {
    not_now("a line stands before any run");
    refuse("the line that ends at byte " + std::to_string(reader_.offset()));
    return true;
  }
  if (line.kind == MlflowLine::Kind::kStatus) return send_status(line);
  for (const auto part : mlflow_split(line.entries)) {
    if (!send_entries(part)) return false;
  }
  return true;
}

bool MlflowDelivery::begin(const MlflowLine& line) {
  mark_->run_id.clear();
  return find_experiment(line.experiment) && find_run(line);
}

bool MlflowDelivery::find_experiment(const std::string& name) {
  const std::string by_name = "experiments/get-by-name?experiment_name=" + percent_encoded(name);
  Sent sent = request(by_name, "");
  if (answer_.status == 404 && mlflow_error_code(answer_.body) == kUnknown) {
    sent = request("experiments/create", mlflow_create_experiment_body(name));
    // Refused where another run was quicker: then it can be found.
    if (sent == Sent::kRefused && mlflow_error_code(answer_.body) == kExists) sent = request(by_name, "");
  }
  if (sent != Sent::kYes) return false;
  const auto id = mlflow_experiment_id(answer_.body);
  if (!id) return not_now("its answer names no experiment: is it an MLflow server?");
  mark_->experiment_id = *id;
  return true;
}

bool MlflowDelivery::find_run(const MlflowLine& line) {
  // A run that was made before its answer was lost must not be made again.
  if (request("runs/search", mlflow_search_run_body(mark_->experiment_id, line.token)) != Sent::kYes) return false;
  auto run = mlflow_run_id(answer_.body);
  if (!run) {
    if (request("runs/create", mlflow_create_run_body(mark_->experiment_id, line)) != Sent::kYes) return false;
    run = mlflow_run_id(answer_.body);
  }
  if (!run) return not_now("its answer names no run: is it an MLflow server?");
  mark_->run_id = *run;
  return true;
}

bool MlflowDelivery::send_entries(std::span<const MlflowEntry> entries) {
  const std::string body = mlflow_log_batch_body(mark_->run_id, entries);
  const Sent sent = request("runs/log-batch", body);
  if (sent != Sent::kRefused) return sent == Sent::kYes;
  if (entries.size() == 1) {
    refuse(body);
    return true;
  }
  const std::size_t half = entries.size() / 2;
  return send_entries(entries.first(half)) && send_entries(entries.subspan(half));
}

bool MlflowDelivery::send_status(const MlflowLine& line) {
  const std::string body = mlflow_update_run_body(mark_->run_id, line);
  const Sent sent = request("runs/update", body);
  if (sent == Sent::kRefused) refuse(body);
  return sent != Sent::kLater;
}

MlflowDelivery::Sent MlflowDelivery::request(const std::string& call, const std::string& body) {
  answer_ = transport_(server_ + kApi + call, body);
  if (answer_.status >= 200 && answer_.status < 300) return Sent::kYes;
  if (answer_.status == 0) {
    not_now(answer_.failure);
    return Sent::kLater;
  }
  const std::string path = call.substr(0, call.find('?'));
  not_now(fmt::format("it answers {} with {}: {}", path, answer_.status, mlflow_error_text(answer_.body)));
  if (!passing(answer_.status)) return Sent::kRefused;
  if (answer_.status == 404 && mlflow_error_code(answer_.body) == kUnknown) start_anew();
  return Sent::kLater;
}

// Where the server has lost the run that we were writing to. Once, so that one that loses each does not get them all.
void MlflowDelivery::start_anew() {
  if (started_anew_ || mark_->run_id.empty()) return;
  started_anew_ = true;
  not_now(fmt::format("it no longer knows run {}; all is sent again, into a new one", mark_->run_id));
  mark_ = MlflowMark{server_, mark_->spool, 0, 0, "", ""};
  write_mlflow_mark(run_dir_, *mark_);
}

void MlflowDelivery::refuse(const std::string& what) {
  const auto path = mlflow_refused_file(run_dir_);
  const nlohmann::ordered_json json{{"reason", reason_}, {"what", what}};
  std::ofstream file(path, std::ios::app);
  file << json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << '\n' << std::flush;
  if (!file) fail(ExitCode::kCheckpoint, "cannot write {}; free space or choose another run.dir", path.string());
  ++mark_->refused;
  if (!std::exchange(said_refused_, true)) {
    spdlog::warn("MLflow server {}: {}; what it refuses is kept in {}, all else goes on", server_, reason_,
                 path.string());
  }
}

bool MlflowDelivery::not_now(const std::string& reason) {
  reason_ = reason;
  return false;
}

}  // namespace plimsoll::report
