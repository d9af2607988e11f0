#include "report/mlflow_spool.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/error.h"
#include "core/file.h"

namespace plimsoll::report {
namespace {

constexpr int kMarkFormat = 1;

void take_in(const MlflowLine& line, MlflowTold& told) {
  switch (line.kind) {
    case MlflowLine::Kind::kBegin:
      told = {};
      told.begun = true;
      break;
    case MlflowLine::Kind::kStatus:
      told.ended = line.status != "RUNNING";
      break;
    case MlflowLine::Kind::kEntries:
      told.last_step = std::max(told.last_step, line.step);
      for (const MlflowEntry& entry : line.entries) {
        if (entry.kind == MlflowEntry::Kind::kParam) told.params.emplace(entry.key, entry.value);
        if (entry.kind == MlflowEntry::Kind::kTag) told.tags[entry.key] = entry.value;
      }
      break;
    case MlflowLine::Kind::kDamaged:
      break;
  }
}

MlflowMark parse_mark(const std::string& text) {
  const auto json = nlohmann::json::parse(text);
  MlflowMark mark;
  if (json.at("format").get<int>() != kMarkFormat) fail(ExitCode::kCheckpoint, "a mark of another format");
  mark.server = json.at("server").get<std::string>();
  mark.spool = json.at("spool").get<std::string>();
  mark.acknowledged = json.at("acknowledged").get<std::int64_t>();
  mark.refused = json.at("refused").get<std::int64_t>();
  mark.experiment_id = json.at("experiment_id").get<std::string>();
  mark.run_id = json.at("run_id").get<std::string>();
  return mark;
}

}  // namespace

std::filesystem::path mlflow_spool_file(const std::filesystem::path& run_dir) { return run_dir / "mlflow.jsonl"; }
std::filesystem::path mlflow_mark_file(const std::filesystem::path& run_dir) { return run_dir / "mlflow.json"; }
std::filesystem::path mlflow_refused_file(const std::filesystem::path& run_dir) {
  return run_dir / "mlflow-refused.jsonl";
}

MlflowSpool::MlflowSpool(const std::filesystem::path& run_dir) : file_(mlflow_spool_file(run_dir)) {
  MlflowSpoolReader reader(run_dir);
  while (const auto line = reader.next()) take_in(parse_mlflow_line(*line), told_);
  file_.cut(reader.offset());
}

void MlflowSpoolReader::seek(std::int64_t offset) {
  offset_ = offset;
  placed_ = false;
}

std::optional<std::string> MlflowSpoolReader::next() {
  if (!stream_.is_open()) stream_.open(path_, std::ios::binary);
  if (!stream_.is_open()) return std::nullopt;
  if (!placed_) {
    stream_.clear();  // an end of file that was seen before may have moved
    stream_.seekg(offset_);
  }
  std::string line;
  // Without the break the end of the file was reached: this line is still being written, or torn.
  placed_ = std::getline(stream_, line) && !stream_.eof();
  if (!placed_) return std::nullopt;
  offset_ += static_cast<std::int64_t>(line.size()) + 1;
  return line;
}

std::optional<MlflowMark> read_mlflow_mark(const std::filesystem::path& run_dir) {
  try {
    return parse_mark(read_file(mlflow_mark_file(run_dir)));
  } catch (const std::exception&) {  // absent or damaged: all is sent again, and stored once
    return std::nullopt;
  }
}

void write_mlflow_mark(const std::filesystem::path& run_dir, const MlflowMark& mark) {
  const auto spool = mlflow_spool_file(run_dir);
  const int descriptor = ::open(spool.c_str(), O_RDONLY | O_CLOEXEC);
  const bool synced = descriptor >= 0 && ::fsync(descriptor) == 0;
  const int error = errno;
  if (descriptor >= 0) ::close(descriptor);
  if (!synced) fail(ExitCode::kCheckpoint, "cannot sync {}: {}", spool.string(), std::strerror(error));
  const nlohmann::ordered_json json{{"format", kMarkFormat},   {"server", mark.server},
                                    {"spool", mark.spool},     {"acknowledged", mark.acknowledged},
                                    {"refused", mark.refused}, {"experiment_id", mark.experiment_id},
                                    {"run_id", mark.run_id}};
  write_file_durably(mlflow_mark_file(run_dir), json.dump(2) + "\n");
}

MlflowSendRight::~MlflowSendRight() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

bool MlflowSendRight::take() {
  if (descriptor_ >= 0) return true;
  const int descriptor = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return false;
  if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    ::close(descriptor);
    return false;
  }
  descriptor_ = descriptor;
  return true;
}

}  // namespace plimsoll::report
