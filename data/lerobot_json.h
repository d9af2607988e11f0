#pragma once
// JSON files under meta/ of a LeRobot dataset, with errors that name file and key. Private to this room.

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/error.h"

namespace plimsoll::data {

/// Throws Error(kData) when the file cannot be read or is no JSON. Python's NaN, Infinity and -Infinity, which JSON
/// does not have, are taken as texts of these names.
nlohmann::json read_json(const std::string& path);

/// A line each, of a .jsonl file; empty lines are left out. Throws Error(kData) naming the line, from 1.
std::vector<nlohmann::json> read_json_lines(const std::string& path);

/// `json[key]` as T. Throws Error(kData) naming `where` and the key when it lacks it, or has another type.
template <class T>
T entry(const nlohmann::json& json, const std::string& where, const std::string& key) {
  if (!json.is_object()) fail(ExitCode::kData, "{}: is no JSON object", where);
  const auto found = json.find(key);
  if (found == json.end()) fail(ExitCode::kData, "{}: lacks \"{}\"", where, key);
  try {
    return found->template get<T>();
  } catch (const nlohmann::json::exception&) {
    fail(ExitCode::kData, "{}: \"{}\" is {}, which is of another type than LeRobot has there", where, key,
         found->dump().substr(0, 80));
  }
}

/// Numbers of nested lists, one after another: statistics of pictures are [3][1][1]. Booleans are 0 and 1, and those
/// texts and null what they stand for. Throws Error(kData) naming `where`.
void flatten(const nlohmann::json& json, std::vector<double>& out, const std::string& where);

}  // namespace plimsoll::data
