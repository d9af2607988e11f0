#include "core/toml.h"

#include <toml++/toml.h>

#include "core/error.h"

namespace plimsoll {
namespace {

Setting convert(const toml::node& node, const std::string& name);

Setting convert_table(const toml::table& table, const std::string& name) {
  Setting::Table result;
  for (const auto& [key, value] : table) result.emplace_back(std::string(key.str()), convert(value, name));
  return Setting(std::move(result));
}

Setting convert_list(const toml::array& array, const std::string& name) {
  Setting::List result;
  for (const auto& value : array) result.push_back(convert(value, name));
  return Setting(std::move(result));
}

Setting convert_value(const toml::node& node, const std::string& name) {
  switch (node.type()) {
    case toml::node_type::table:
      return convert_table(*node.as_table(), name);
    case toml::node_type::array:
      return convert_list(*node.as_array(), name);
    case toml::node_type::boolean:
      return Setting(node.as_boolean()->get());
    case toml::node_type::integer:
      return Setting(node.as_integer()->get());
    case toml::node_type::floating_point:
      return Setting(node.as_floating_point()->get());
    case toml::node_type::string:
      return Setting(node.as_string()->get());
    default:
      fail(ExitCode::kUsage, "{}:{}: no key takes a date or a time; write it as a \"string\"", name,
           node.source().begin.line);
  }
}

Setting convert(const toml::node& node, const std::string& name) {
  Setting result = convert_value(node, name);
  result.origin = fmt::format("{}:{}", name, node.source().begin.line);
  return result;
}

}  // namespace

Setting parse_toml(std::string_view text, const std::string& name) {
  try {
    return convert(toml::parse(text), name);
  } catch (const toml::parse_error& error) {
    fail(ExitCode::kUsage, "{}:{}: not valid TOML (column {}): {}", name, error.source().begin.line,
         error.source().begin.column, error.description());
  }
}

std::optional<Setting> parse_toml_value(std::string_view text) {
  try {
    const Setting document = parse_toml("x = " + std::string(text), "");
    // A line break in the text could smuggle in another key: that is no single value.
    if (document.as_table().size() != 1 || document.as_table()[0].first != "x") return std::nullopt;
    return document.as_table()[0].second;
  } catch (const Error&) {
    return std::nullopt;
  }
}

}  // namespace plimsoll
