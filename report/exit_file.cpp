#include "report/exit_file.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "core/file.h"

namespace plimsoll::report {
namespace {

using Json = nlohmann::ordered_json;

bool known(int code) {
  static constexpr std::array<ExitCode, 7> kCodes{ExitCode::kDone,   ExitCode::kUsage, ExitCode::kMemory,
                                                  ExitCode::kData,   ExitCode::kPeer,  ExitCode::kCheckpoint,
                                                  ExitCode::kStopped};
  return std::any_of(kCodes.begin(), kCodes.end(),
                     [code](ExitCode known_code) { return static_cast<int>(known_code) == code; });
}

ExitRecord parse(const std::string& text) {
  const Json json = Json::parse(text);
  ExitRecord record;
  const int code = json.at("exit_code").get<int>();
  if (!known(code)) fail(ExitCode::kData, "exit code {} is unknown", code);
  record.exit_code = static_cast<ExitCode>(code);
  record.reason = json.at("reason").get<std::string>();
  record.step = json.at("step").get<std::int64_t>();
  if (!json.at("checkpoint").is_null()) record.checkpoint = json.at("checkpoint").get<std::string>();
  record.attempt = json.at("attempt").get<std::int64_t>();
  return record;
}

}  // namespace

std::filesystem::path exit_file(const std::filesystem::path& run_dir) { return run_dir / "exit.json"; }

void write_exit_record(const std::filesystem::path& run_dir, const ExitRecord& record) {
  Json json;
  json["exit_code"] = static_cast<int>(record.exit_code);
  json["reason"] = record.reason;
  json["step"] = record.step;
  json["checkpoint"] = record.checkpoint ? Json(*record.checkpoint) : Json(nullptr);
  json["attempt"] = record.attempt;
  const std::string text = json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  write_file_durably(exit_file(run_dir), text, ExitCode::kCheckpoint);
}

std::optional<ExitRecord> read_exit_record(const std::filesystem::path& run_dir) {
  try {
    return parse(read_file(exit_file(run_dir)));
  } catch (const std::exception&) {  // absent or not ours: either way this attempt did not end properly
    return std::nullopt;
  }
}

void remove_exit_record(const std::filesystem::path& run_dir) {
  std::error_code ignored;
  std::filesystem::remove(exit_file(run_dir), ignored);
}

std::int64_t attempt_number() {
  const char* text = std::getenv("PLIMSOLL_ATTEMPT");
  return text == nullptr ? 1 : std::max<std::int64_t>(1, std::atoll(text));
}

}  // namespace plimsoll::report
