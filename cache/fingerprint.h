#pragma once
// What must be exact for cached features to be those that the model would make: a change of any of it leads to another
// folder, and what was cached before is not used. Without torch.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace plimsoll::cache {

/// Named facts, in a fixed order. The text is what people see in `fingerprint.json`.
class Fingerprint {
 public:
  /// Replaces nothing: a name comes once.
  void add(std::string name, std::string value) { facts_.emplace_back(std::move(name), std::move(value)); }
  const std::vector<std::pair<std::string, std::string>>& facts() const { return facts_; }
  /// xxh3-64 over names and values.
  std::uint64_t hash() const;
  /// One JSON object, indented.
  std::string text() const;
  /// The first fact that another one, given as text(), has differently: "model: \"a\" there, \"b\" here". Empty when
  /// there is none; a text that is none of ours says so.
  std::string difference(const std::string& other_text) const;

 private:
  std::vector<std::pair<std::string, std::string>> facts_;
};

}  // namespace plimsoll::cache
