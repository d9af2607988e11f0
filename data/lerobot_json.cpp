#include "data/lerobot_json.h"

#include <sstream>

#include "core/file.h"

namespace plimsoll::data {

using Json = nlohmann::json;

Json read_json(const std::string& path) {
  try {
    return Json::parse(read_file(path));
  } catch (const Json::exception& error) {
    fail(ExitCode::kData, "{}: is not JSON: {}", path, error.what());
  }
}

std::vector<Json> read_json_lines(const std::string& path) {
  std::istringstream text(read_file(path));
  std::vector<Json> lines;
  std::string line;
  for (std::int64_t number = 1; std::getline(text, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    try {
      lines.push_back(Json::parse(line));
    } catch (const Json::exception& error) {
      fail(ExitCode::kData, "{}: line {} is not JSON: {}", path, number, error.what());
    }
  }
  return lines;
}

void flatten(const Json& json, std::vector<double>& out, const std::string& where) {
  if (json.is_array()) {
    for (const Json& item : json) flatten(item, out, where);
  } else if (json.is_number() || json.is_boolean()) {
    out.push_back(json.is_boolean() ? (json.get<bool>() ? 1.0 : 0.0) : json.get<double>());
  } else {
    fail(ExitCode::kData, "{}: {} is no number", where, json.dump().substr(0, 40));
  }
}

}  // namespace plimsoll::data
