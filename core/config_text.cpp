// The configuration as text: TOML, Markdown, and the hash of both ends' agreement.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/config.h"
#include "core/hash.h"

namespace plimsoll {
namespace {

std::string quote(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      result += {'\\', c};
    } else if (byte < 0x20 || byte == 0x7F) {
      result += fmt::format("\\u{:04X}", byte);
    } else {
      result += c;
    }
  }
  return result + "\"";
}

std::string number(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  const std::string text = fmt::format("{}", value);
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}

std::string join(const Setting::List& list) {
  std::string result;
  for (const Setting& item : list) result += (result.empty() ? "" : ", ") + item.to_toml();
  return "[" + result + "]";
}

std::string join(const Setting::Table& table) {
  std::string result;
  for (const auto& [key, value] : table)
    result += fmt::format("{}{} = {}", result.empty() ? "" : ", ", key, value.to_toml());
  return "{ " + result + " }";
}

std::string allowed(const config_detail::Field& field) {
  std::string result = field.type;
  for (const Check& check : field.checks) result += ", " + check.expects;
  return result;
}

/// In a Markdown table a bar would end the cell.
std::string cell(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '|') result += '\\';
    result += c;
  }
  return result;
}

std::string row(const std::string& key, const config_detail::Field& field) {
  return fmt::format("| `{}` | `{}` | {} | {} |\n", key, cell(field.get().to_toml()), cell(allowed(field)),
                     cell(field.doc));
}

}  // namespace

std::string Setting::to_toml() const {
  if (is_bool()) return as_bool() ? "true" : "false";
  if (is_integer()) return std::to_string(as_integer());
  if (is_number()) return number(as_double());
  if (is_string()) return quote(as_string());
  return is_list() ? join(as_list()) : join(as_table());
}

namespace config_detail {

Setting write_fields(const std::vector<Field>& fields) {
  Setting::Table table;
  for (const Field& field : fields) table.emplace_back(field.key, field.get());
  return Setting(std::move(table));
}

std::string dump(const std::vector<Table>& tables) {
  std::string text;
  for (const Table& table : tables) {
    text += fmt::format("{}# {}\n[{}]\n", text.empty() ? "" : "\n", table.doc, table.name);
    for (const Field& field : table.fields)
      text += fmt::format("# {}\n{} = {}\n", field.doc, field.key, field.get().to_toml());
  }
  return text;
}

std::string reference(const std::vector<Table>& tables) {
  std::string text;
  for (const Table& table : tables) {
    text += fmt::format("\n## [{}]\n\n{}\n\n| key | default | type and range | meaning |\n|---|---|---|---|\n",
                        table.name, table.doc);
    for (const Field& field : table.fields) {
      text += row(field.key, field);
      for (const Field& item : field.item_fields) text += row(field.key + "[]." + item.key, item);
    }
  }
  return text;
}

std::uint64_t hash(const std::vector<Table>& tables, const std::vector<std::string>& without) {
  const auto left_out = [&](const std::string& name) {
    return std::find(without.begin(), without.end(), name) != without.end();
  };
  // Without the keys of a list's items that are left out.
  const auto kept = [&](const Field& field, const std::string& path) {
    if (field.item_fields.empty()) return field.get();
    Setting::List items;
    for (const Setting& item : field.get().items()) {
      Setting::Table keys;
      for (const auto& [key, value] : item.as_table())
        if (!left_out(path + "[]." + key)) keys.emplace_back(key, value);
      items.emplace_back(std::move(keys));
    }
    return Setting(std::move(items));
  };
  std::string text;
  for (const Table& table : tables) {
    for (const Field& field : table.fields) {
      const std::string path = table.name + "." + field.key;
      if (!left_out(table.name) && !left_out(path)) text += path + " = " + kept(field, path).to_toml() + "\n";
    }
  }
  return xxh3_64(std::as_bytes(std::span(text)));
}

}  // namespace config_detail
}  // namespace plimsoll
