#include "core/config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.h"
#include "core/file.h"
#include "core/toml.h"

namespace plimsoll::config_detail {
namespace {

std::string from(const Setting& value) { return value.origin.empty() ? std::string() : value.origin + ": "; }

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t change = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({change, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

std::string nearest(std::string_view word, const std::vector<std::string>& known) {
  const auto best = std::min_element(known.begin(), known.end(), [&](const std::string& a, const std::string& b) {
    return edit_distance(word, a) < edit_distance(word, b);
  });
  return best == known.end() ? std::string() : *best;
}

[[noreturn]] void refuse_key(const Setting& value, const std::string& path, const std::vector<std::string>& known) {
  fail(ExitCode::kUsage, "{}unknown key {}; the nearest known one is {}", from(value), path, nearest(path, known));
}

void check(const Field& field, const std::string& path, const Setting& origin) {
  const Setting value = field.get();
  for (const Check& condition : field.checks) {
    if (condition.holds(value)) continue;
    fail(ExitCode::kUsage, "{}{} = {} is not allowed; expected: {} ({})", from(origin), path, value.to_toml(),
         condition.expects, field.type);
  }
}

Setting& entry(Setting::Table& table, const std::string& key) {
  for (auto& [name, value] : table) {
    if (name == key) return value;
  }
  return table.emplace_back(key, Setting()).second;
}

void apply_override(Setting::Table& document, const std::string& text) {
  const std::size_t equals = text.find('=');
  const std::size_t dot = text.find('.');
  if (equals == std::string::npos || dot == std::string::npos || dot > equals) {
    fail(ExitCode::kUsage, "--set {}: write --set table.key=value, for example --set memory.target=0.9", text);
  }
  Setting& table = entry(document, text.substr(0, dot));
  if (!table.is_table()) table = Setting(Setting::Table{});
  const std::string raw = text.substr(equals + 1);
  Setting value = parse_toml_value(raw).value_or(Setting(raw));
  value.origin = "--set";
  value.raw = raw;
  if (table.origin.empty()) table.origin = "--set";
  entry(table.as_table(), text.substr(dot + 1, equals - dot - 1)) = std::move(value);
}

std::vector<std::string> known_keys(const std::vector<Table>& tables) {
  std::vector<std::string> known;
  for (const Table& table : tables) {
    for (const Field& field : table.fields) known.push_back(table.name + "." + field.key);
  }
  return known;
}

std::vector<std::string> known_tables(const std::vector<Table>& tables) {
  std::vector<std::string> known;
  for (const Table& table : tables) known.push_back("[" + table.name + "]");
  return known;
}

void refuse_unknown(const Setting::Table& document, const std::vector<Table>& tables) {
  for (const auto& [name, section] : document) {
    const auto table =
        std::find_if(tables.begin(), tables.end(), [&name = name](const Table& t) { return t.name == name; });
    if (!section.is_table()) refuse_key(section, name, known_keys(tables));
    if (table == tables.end()) {
      fail(ExitCode::kUsage, "{}unknown table [{}]; the nearest known one is {}", from(section), name,
           nearest("[" + name + "]", known_tables(tables)));
    }
    for (const auto& [key, value] : section.as_table()) {
      const bool known = std::any_of(table->fields.begin(), table->fields.end(),
                                     [&key = key](const Field& field) { return field.key == key; });
      if (!known) refuse_key(value, name + "." + key, known_keys(tables));
    }
  }
}

void load_document(std::vector<Table> tables, Setting document, const std::vector<std::string>& overrides) {
  for (const std::string& text : overrides) apply_override(document.as_table(), text);
  refuse_unknown(document.as_table(), tables);
  for (Table& table : tables) {
    const Setting nothing{Setting::Table{}};
    const Setting* section = &nothing;
    for (const auto& [name, value] : document.as_table()) {
      if (name == table.name) section = &value;
    }
    read_fields(*section, table.name, table.fields);
  }
}

/// A scalar of a `--set` may have been meant as text: `--set run.dir=2024`.
const std::string* text_of(const Setting& value) {
  if (value.is_string()) return &value.as_string();
  return value.raw.empty() || value.is_list() || value.is_table() ? nullptr : &value.raw;
}

template <class Integer>
void read_integer(const Setting& value, const std::string& path, Integer& out) {
  if (!value.is_integer()) refuse_type(value, path, "integer");
  const std::int64_t number = value.as_integer();
  if (number < std::numeric_limits<Integer>::min() || number > std::numeric_limits<Integer>::max()) {
    refuse_type(value, path, fmt::format("integer up to {}", std::numeric_limits<Integer>::max()));
  }
  out = static_cast<Integer>(number);
}

}  // namespace

void refuse_type(const Setting& value, const std::string& path, const std::string& expected) {
  fail(ExitCode::kUsage, "{}{} = {} is of the wrong type; expected: {}", from(value), path, value.to_toml(), expected);
}

void read_value(const Setting& value, const std::string& path, bool& out) {
  if (!value.is_bool()) refuse_type(value, path, "true or false");
  out = value.as_bool();
}
void read_value(const Setting& value, const std::string& path, int& out) { read_integer(value, path, out); }
void read_value(const Setting& value, const std::string& path, std::int64_t& out) { read_integer(value, path, out); }
void read_value(const Setting& value, const std::string& path, double& out) {
  if (!value.is_number() || !std::isfinite(value.as_double())) refuse_type(value, path, "finite number");
  out = value.as_double();
}
void read_value(const Setting& value, const std::string& path, std::string& out) {
  const std::string* text = text_of(value);
  if (text == nullptr) refuse_type(value, path, "string");
  out = *text;
}
void read_value(const Setting& value, const std::string& path, Setting& out) {
  const Setting::List items = value.items();
  const bool allowed =
      std::none_of(items.begin(), items.end(), [](const Setting& item) { return item.is_table() || item.is_list(); });
  if (!allowed) refuse_type(value, path, "number, string or list of them");
  out = value;
  out.origin.clear();
  out.raw.clear();
}

void read_fields(const Setting& table, const std::string& path, std::vector<Field>& fields) {
  if (!table.is_table()) refuse_type(table, path, "table");
  std::vector<std::string> known;
  for (const Field& field : fields) known.push_back(path + "." + field.key);
  for (const auto& [key, value] : table.as_table()) {
    const std::string key_path = path + "." + key;
    const auto at = std::find(known.begin(), known.end(), key_path);
    if (at == known.end()) refuse_key(value, key_path, known);
    Field& field = fields[static_cast<std::size_t>(at - known.begin())];
    field.set(value, key_path);
    check(field, key_path, value);
  }
  for (std::size_t i = 0; i < fields.size(); ++i) check(fields[i], known[i], Setting());
}

void TableCollector::add(const std::string& name, const std::string& doc, std::vector<Field> fields) {
  const auto at = std::find_if(tables.begin(), tables.end(), [&](const Table& table) { return table.name == name; });
  Table& table = at == tables.end() ? tables.emplace_back(Table{name, doc, {}}) : *at;
  std::move(fields.begin(), fields.end(), std::back_inserter(table.fields));
}

void load(std::vector<Table> tables, const std::string& path, const std::vector<std::string>& overrides) {
  const std::string text = path.empty() ? std::string() : read_file(path, ExitCode::kUsage);
  load_text(std::move(tables), text, path, overrides);
}

void load_text(std::vector<Table> tables, std::string_view text, const std::string& name,
               const std::vector<std::string>& overrides) {
  load_document(std::move(tables), parse_toml(text, name), overrides);
}

}  // namespace plimsoll::config_detail
