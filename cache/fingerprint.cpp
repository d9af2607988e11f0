#include "cache/fingerprint.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <span>

#include "core/hash.h"

namespace plimsoll::cache {

std::uint64_t Fingerprint::hash() const {
  const std::string all = text();
  return xxh3_64(std::as_bytes(std::span(all)));
}

std::string Fingerprint::text() const {
  nlohmann::ordered_json all = nlohmann::ordered_json::object();
  for (const auto& [name, value] : facts_) all[name] = value;
  return all.dump(2) + "\n";
}

std::string Fingerprint::difference(const std::string& other_text) const {
  const auto other = nlohmann::json::parse(other_text, nullptr, false);
  if (!other.is_object()) return "it is no fingerprint";
  for (const auto& [name, value] : facts_) {
    const auto found = other.find(name);
    const std::string there = found != other.end() && found->is_string() ? found->get<std::string>() : "nothing";
    if (there != value) return fmt::format("{}: \"{}\" there, \"{}\" here", name, there, value);
  }
  return other.size() == facts_.size() ? "" : "it has more facts than this program knows";
}

}  // namespace plimsoll::cache
