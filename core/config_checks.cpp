#include <fmt/ranges.h>

#include <algorithm>

#include "core/bytes.h"
#include "core/config.h"
#include "core/error.h"

namespace plimsoll {
namespace {

bool is_byte_size(const Setting& value) {
  if (value.is_integer()) return value.as_integer() > 0;
  if (!value.is_string()) return false;
  try {
    return parse_bytes(value.as_string(), "size") > 0;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

Check at_least(double low) {
  return {fmt::format("at least {}", low), [low](const Setting& v) { return v.is_number() && v.as_double() >= low; }};
}

Check above(double low) {
  return {fmt::format("above {}", low), [low](const Setting& v) { return v.is_number() && v.as_double() > low; }};
}

Check between(double low, double high) {
  return {fmt::format("{} to {}", low, high),
          [low, high](const Setting& v) { return v.is_number() && v.as_double() >= low && v.as_double() <= high; }};
}

Check count(std::int64_t low) {
  return {fmt::format("an integer, at least {}", low),
          [low](const Setting& v) { return v.is_integer() && v.as_integer() >= low; }};
}

Check one_of(std::vector<std::string> words) {
  std::string expects = words.size() == 1 ? "" : "one of ";
  for (const std::string& word : words) expects += fmt::format("{}\"{}\"", &word == &words[0] ? "" : ", ", word);
  return {std::move(expects), [words = std::move(words)](const Setting& v) {
            return v.is_string() && std::find(words.begin(), words.end(), v.as_string()) != words.end();
          }};
}

Check byte_size() { return {"a size like \"24GiB\" or an integer of bytes", is_byte_size}; }

Check fraction() {
  return {"a fraction above 0.0, at most 1.0", [](const Setting& v) {
            return v.is_number() && !v.is_integer() && v.as_double() > 0.0 && v.as_double() <= 1.0;
          }};
}

Check not_empty() {
  return {"a value (it has no default)", [](const Setting& v) {
            return v.is_list() ? !v.as_list().empty() : !v.is_string() || !v.as_string().empty();
          }};
}

Check starting_with(std::string words) {
  std::string expects = fmt::format("\"{}...\"", words);
  return {std::move(expects), [words = std::move(words)](const Setting& v) {
            return v.is_string() && v.as_string().size() > words.size() && v.as_string().starts_with(words);
          }};
}

Check either(std::vector<Check> alternatives) {
  std::string expects;
  for (const Check& check : alternatives) expects += (expects.empty() ? "" : ", or ") + check.expects;
  return {std::move(expects), [alternatives = std::move(alternatives)](const Setting& v) {
            return std::any_of(alternatives.begin(), alternatives.end(),
                               [&](const Check& check) { return check.holds(v); });
          }};
}

Check each(Check check) {
  return {check.expects + " (one, or a list of such)", [holds = std::move(check.holds)](const Setting& v) {
            const Setting::List items = v.items();
            return !items.empty() && std::all_of(items.begin(), items.end(), holds);
          }};
}

}  // namespace plimsoll
