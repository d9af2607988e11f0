#include "core/scope.h"

#include <map>
#include <mutex>
#include <string>
#include <utility>

namespace plimsoll {

const char* numbered_label(const char* name, int number) {
  static std::mutex mutex;
  // Never destroyed: events recorded under these labels may be read after main.
  static auto* const made = new std::map<std::pair<std::string_view, int>, std::string>;
  const std::scoped_lock lock(mutex);
  auto& text = (*made)[{name, number}];
  if (text.empty()) text = std::string(name) + ' ' + std::to_string(number);
  return text.c_str();
}

std::string_view family_of_label(std::string_view label) {
  const auto last = label.find_last_not_of("0123456789");
  if (last == std::string_view::npos || last + 1 == label.size() || label[last] != ' ') return label;
  return label.substr(0, last);
}

}  // namespace plimsoll
