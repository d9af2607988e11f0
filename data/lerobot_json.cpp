#include "data/lerobot_json.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <optional>
#include <sstream>
#include <string_view>

#include "core/file.h"

namespace plimsoll::data {

using Json = nlohmann::json;

namespace {

constexpr std::string_view kNonFinite[] = {"-Infinity", "Infinity", "NaN"};

// Outside of texts only.
std::string with_non_finite_quoted(const std::string& text) {
  std::string out;
  bool in_text = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (in_text && text[i] == '\\' && i + 1 < text.size()) {
      out += text.substr(i++, 2);
      continue;
    }
    if (text[i] == '"') in_text = !in_text;
    const auto rest = std::string_view(text).substr(i);
    const auto* word = std::find_if(std::begin(kNonFinite), std::end(kNonFinite),
                                    [&](std::string_view name) { return !in_text && rest.starts_with(name); });
    if (word == std::end(kNonFinite)) {
      out += text[i];
    } else {
      out += '"' + std::string(*word) + '"';
      i += word->size() - 1;
    }
  }
  return out;
}

std::optional<double> non_finite(const Json& json) {
  if (json.is_null() || json == "NaN") return std::numeric_limits<double>::quiet_NaN();
  if (json == "Infinity") return std::numeric_limits<double>::infinity();
  if (json == "-Infinity") return -std::numeric_limits<double>::infinity();
  return std::nullopt;
}

// Most files are JSON as they are; the words are looked for, letter by letter, only in those that are not.
Json parse(const std::string& text) {
  Json plain = Json::parse(text, nullptr, false);
  if (!plain.is_discarded()) return plain;
  return Json::parse(with_non_finite_quoted(text));
}

}  // namespace

Json read_json(const std::string& path) {
  try {
    return parse(read_file(path));
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
      lines.push_back(parse(line));
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
  } else if (const auto value = non_finite(json)) {
    out.push_back(*value);
  } else {
    fail(ExitCode::kData, "{}: {} is no number", where, json.dump().substr(0, 40));
  }
}

}  // namespace plimsoll::data
