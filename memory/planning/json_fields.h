#pragma once
// Reads saved JSON and names the field that is missing or of the wrong kind. For the files of this folder.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "core/error.h"
#include "memory/planning/calibration.h"

namespace plimsoll::memory {

using Json = nlohmann::ordered_json;

/// Whose fields they are, and what to do when they are damaged, for the error's text.
struct Source {
  const char* what;
  const char* advice;
};

/// One object. Refers to the JSON it was made of. Every refusal is Error(kCheckpoint).
class Fields {
 public:
  Fields(const Json& json, std::string place, const Source& source)
      : json_(json), place_(std::move(place)), source_(source) {
    if (!json.is_object()) refuse_path(place_, "object");
  }

  bool has(const char* name) const { return json_.contains(name); }
  Fields object(const char* name) const { return {at(name), path(name), source_}; }

  template <class Integer>
  void read(const char* name, Integer& value) const {
    const Json& field = at(name);
    // What is above the largest signed number would come back as a negative one.
    const bool in_range = field.is_number_unsigned()
                              ? std::in_range<Integer>(field.get<std::uint64_t>())
                              : field.is_number_integer() && std::in_range<Integer>(field.get<std::int64_t>());
    if (!in_range) refuse(name, "whole number in range");
    value = static_cast<Integer>(field.get<std::int64_t>());
  }
  void read(const char* name, bool& value) const {
    if (!at(name).is_boolean()) refuse(name, "bool");
    value = at(name).get<bool>();
  }
  void read(const char* name, std::string& value) const {
    if (!at(name).is_string()) refuse(name, "text");
    value = at(name).get<std::string>();
  }
  /// What older files lack keeps the value it has.
  void read_if_there(const char* name, auto& value) const {
    if (has(name)) read(name, value);
  }
  void read_list(const char* name, const auto& read_entry) const {
    const Json& list = at(name);
    if (!list.is_array()) refuse(name, "list");
    for (std::size_t i = 0; i < list.size(); ++i)
      read_entry(Fields(list[i], path(name) + "[" + std::to_string(i) + "]", source_));
  }

  [[noreturn]] void refuse(const char* name, const char* wanted) const { refuse_path(path(name), wanted); }

 private:
  [[noreturn]] void refuse_path(const std::string& field, const char* wanted) const {
    fail(ExitCode::kCheckpoint, "{}: \"{}\" is no {}; {}", source_.what, field, wanted, source_.advice);
  }
  const Json& at(const char* name) const {
    const auto found = json_.find(name);
    if (found == json_.end()) refuse(name, "field of it");
    return *found;
  }
  std::string path(const char* name) const { return place_.empty() ? name : place_ + "." + name; }

  const Json& json_;
  std::string place_;
  Source source_;
};

/// The calibration's entries as a list, and back out of field `name`.
Json json_of(const Calibration& calibration);
void read_calibration(const Fields& fields, const char* name, Calibration& calibration);

}  // namespace plimsoll::memory
