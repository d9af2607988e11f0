#pragma once
// One value of the configuration, as TOML knows them: bool, integer, float, string, list, table.
//
// Used as a field's type it stands for keys that take a number or a word (`micro = "auto"` or `micro = 4`) or a list of
// such. Plain data; copying is cheap enough for what a configuration holds.

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace plimsoll {

class Setting {
 public:
  using List = std::vector<Setting>;
  using Table = std::vector<std::pair<std::string, Setting>>;  ///< in the order of the file

  Setting() : value_(std::string()) {}
  Setting(bool value) : value_(value) {}
  template <std::integral I>
  requires(!std::same_as<I, bool>) Setting(I value) : value_(static_cast<std::int64_t>(value)) {}
  Setting(double value) : value_(value) {}
  Setting(const char* value) : value_(std::string(value)) {}
  Setting(std::string value) : value_(std::move(value)) {}
  Setting(List value) : value_(std::move(value)) {}
  Setting(Table value) : value_(std::move(value)) {}

  bool is_bool() const { return std::holds_alternative<bool>(value_); }
  bool is_integer() const { return std::holds_alternative<std::int64_t>(value_); }
  bool is_number() const { return is_integer() || std::holds_alternative<double>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_list() const { return std::holds_alternative<List>(value_); }
  bool is_table() const { return std::holds_alternative<Table>(value_); }
  /// True for exactly this word: `if (config.micro.is("auto"))`.
  bool is(std::string_view word) const { return is_string() && std::get<std::string>(value_) == word; }

  /// Each throws std::bad_variant_access when the value is of another kind: ask first. as_double() also takes integers.
  bool as_bool() const { return std::get<bool>(value_); }
  std::int64_t as_integer() const { return std::get<std::int64_t>(value_); }
  double as_double() const { return is_integer() ? static_cast<double>(as_integer()) : std::get<double>(value_); }
  const std::string& as_string() const { return std::get<std::string>(value_); }
  const List& as_list() const { return std::get<List>(value_); }
  const Table& as_table() const { return std::get<Table>(value_); }
  Table& as_table() { return std::get<Table>(value_); }
  /// The list's items, or the value itself as the only one: for keys that take "one, or one per rank".
  List items() const { return is_list() ? as_list() : List{*this}; }

  /// The value as TOML: `4`, `0.5`, `"auto"`, `["a", "b"]`, `{ step = 3 }`. Floats read back to the same bits.
  std::string to_toml() const;

  /// Where it came from: "configs/demo.toml:12", "--set", or empty for a default. Not part of the value.
  std::string origin;
  /// The text after `=` of a `--set`, so that `--set run.dir=2024` can mean the string. Not part of the value.
  std::string raw;

  friend bool operator==(const Setting& a, const Setting& b) { return a.value_ == b.value_; }

 private:
  std::variant<bool, std::int64_t, double, std::string, List, Table> value_;
};

}  // namespace plimsoll
