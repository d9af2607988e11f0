#pragma once
// Configuration: every key is declared once, in the room that reads it, and everything else (reading TOML, `--set`,
// checks, writing it back, the manual, the hash) follows from that one declaration.
//
//   // memory/config.h
//   struct BudgetChange {                                   // an item of a list of tables
//     std::int64_t step = 0;
//     Setting budget = 1.0;
//     template <class V> void visit(V& v) {
//       v("step", step, "Step before which it happens.", at_least(1));
//       v("budget", budget, "The new budget.", either({byte_size(), fraction()}));
//     }
//   };
//   struct MemoryConfig {
//     Setting budget = "auto";
//     double target = 0.85;
//     std::string policy = "reactive";
//     std::vector<BudgetChange> budget_changes;
//     template <class V> void visit(V& v) {
//       v("budget", budget, "Bytes a rank may use; one, or one per rank.", each(either({one_of({"auto"}), byte_size(),
//       fraction()}))); v("target", target, "Fraction of the budget to aim at.", between(0.1, 1.0)); v("policy",
//       policy, "How the plan is chosen.", one_of({"fixed", "reactive"})); v("budget_changes", budget_changes, "Budget
//       changes during the run.");
//     }
//   };
//   // train/config.h
//   struct Config {
//     RunConfig run;
//     memory::MemoryConfig memory;
//     template <class V> void visit(V& v) {
//       v.table("run", run, "Where the run lives.");
//       v.table("memory", memory, "Budgets and how plans are chosen.");     // two structs may share a table
//     }
//   };
//   const auto config = load_config<Config>("configs/demo.toml", {"memory.target=0.9", "memory.budget=[\"300MiB\",
//   0.5]"});
//
// Types of a field: bool, int, int64, double, std::string, Setting (number, word or list of them), vectors of string,
// double or int64, vectors of a struct with visit(). A vector of scalars also reads a single one. Values that a key's
// `auto` may take are the owner's business. Everything here throws Error(kUsage) whose text starts with the origin
// ("demo.toml:12: ", "--set: ") and names key, value and what was expected.

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/setting.h"

namespace plimsoll {

/// A condition on one value: false for a value of another kind, so that alternatives can be listed with either().
struct Check {
  std::string expects;  ///< for errors and the manual: "at least 1", "one of \"a\", \"b\""
  std::function<bool(const Setting&)> holds;
};
Check at_least(double low);
Check above(double low);
Check between(double low, double high);  ///< both ends included
Check count(std::int64_t low);           ///< an integer from `low`, for keys that take other kinds too
Check one_of(std::vector<std::string> words);
Check byte_size();  ///< "24GiB", or an integer of bytes; above 0
Check fraction();   ///< a float in (0, 1]
Check not_empty();  ///< a string or list that must be given
/// A string that begins with these words and goes on.
Check starting_with(std::string words);
Check either(std::vector<Check> alternatives);
Check each(Check check);  ///< holds for a scalar, or for every item of a list that is not empty

namespace config_detail {

/// A field without its type: how to read, write, describe and check it.
struct Field {
  std::string key;
  std::string doc;
  std::string type;  ///< "integer", "list of strings", ...
  std::vector<Check> checks;
  std::function<Setting()> get;
  /// `path` is "table.key", for errors.
  std::function<void(const Setting&, const std::string& path)> set;
  std::vector<Field> item_fields;  ///< of a list of tables
};
struct Table {
  std::string name;
  std::string doc;
  std::vector<Field> fields;
};

[[noreturn]] void refuse_type(const Setting& value, const std::string& path, const std::string& expected);
void read_value(const Setting& value, const std::string& path, bool& out);
void read_value(const Setting& value, const std::string& path, int& out);
void read_value(const Setting& value, const std::string& path, std::int64_t& out);
void read_value(const Setting& value, const std::string& path, double& out);
void read_value(const Setting& value, const std::string& path, std::string& out);
void read_value(const Setting& value, const std::string& path, Setting& out);
/// Assigns every entry of `table` to the field of its name; refuses unknown ones; runs all checks, defaults included.
void read_fields(const Setting& table, const std::string& path, std::vector<Field>& fields);
Setting write_fields(const std::vector<Field>& fields);

template <class T>
struct TypeName;
template <>
struct TypeName<bool> {
  static constexpr const char *kOne = "true or false", *kMany = "list of booleans";
};
template <>
struct TypeName<int> {
  static constexpr const char *kOne = "integer", *kMany = "list of integers";
};
template <>
struct TypeName<std::int64_t> : TypeName<int> {};
template <>
struct TypeName<double> {
  static constexpr const char *kOne = "number", *kMany = "list of numbers";
};
template <>
struct TypeName<std::string> {
  static constexpr const char *kOne = "string", *kMany = "list of strings";
};
template <>
struct TypeName<Setting> {
  static constexpr const char *kOne = "number, string or list", *kMany = "list";
};

/// Collects the fields of the struct it visits. The struct must outlive what it collects.
class FieldCollector {
 public:
  std::vector<Field> fields;

  template <class T, class... Checks>
  void operator()(const char* key, T& field, const char* doc, Checks... checks) {
    fields.push_back(make(field));
    fields.back().key = key;
    fields.back().doc = doc;
    fields.back().checks = std::vector<Check>{std::move(checks)...};
  }

 private:
  template <class T>
  static Field make(T& field) {
    Field result;
    result.type = TypeName<T>::kOne;
    result.get = [&field] { return Setting(field); };
    result.set = [&field](const Setting& value, const std::string& path) { read_value(value, path, field); };
    return result;
  }
  template <class T>
  static Field make(std::vector<T>& field) {
    if constexpr (requires(T item, FieldCollector v) { item.visit(v); }) {
      return make_tables(field);
    } else {
      Field result;
      result.type = TypeName<T>::kMany;
      result.get = [&field] { return Setting(Setting::List(field.begin(), field.end())); };
      result.set = [&field](const Setting& value, const std::string& path) {
        std::vector<T> items;
        for (const Setting& item : value.items()) read_value(item, path, items.emplace_back());
        field = std::move(items);
      };
      return result;
    }
  }
  template <class T>
  static Field make_tables(std::vector<T>& field) {
    Field result;
    result.type = "list of tables";
    T prototype;
    result.item_fields = collect_fields(prototype);
    for (Field& item : result.item_fields) {  // the prototype is gone in a moment: keep its values only
      item.get = [value = item.get()] { return value; };
      item.set = nullptr;
    }
    result.get = [&field] {
      Setting::List list;
      for (T& item : field) list.push_back(write_fields(collect_fields(item)));
      return Setting(std::move(list));
    };
    result.set = [&field](const Setting& value, const std::string& path) {
      if (!value.is_list()) refuse_type(value, path, "list of tables");
      std::vector<T> items(value.as_list().size());
      for (std::size_t i = 0; i < items.size(); ++i) {
        auto fields_of_item = collect_fields(items[i]);
        read_fields(value.as_list()[i], path + "[" + std::to_string(i) + "]", fields_of_item);
      }
      field = std::move(items);
    };
    return result;
  }
  template <class T>
  static std::vector<Field> collect_fields(T& item) {
    FieldCollector collector;
    item.visit(collector);
    return std::move(collector.fields);
  }
};

/// Collects the tables of a configuration; a table named twice gets the fields of both structs.
class TableCollector {
 public:
  std::vector<Table> tables;

  template <class Section>
  void table(const char* name, Section& section, const char* doc) {
    FieldCollector collector;
    section.visit(collector);
    add(name, doc, std::move(collector.fields));
  }

 private:
  void add(const std::string& name, const std::string& doc, std::vector<Field> fields);
};

template <class Config>
std::vector<Table> tables_of(Config& config) {
  TableCollector collector;
  config.visit(collector);
  return std::move(collector.tables);
}

void load(std::vector<Table> tables, const std::string& path, const std::vector<std::string>& overrides);
void load_text(std::vector<Table> tables, std::string_view text, const std::string& name,
               const std::vector<std::string>& overrides);
std::string dump(const std::vector<Table>& tables);
std::string reference(const std::vector<Table>& tables);
std::uint64_t hash(const std::vector<Table>& tables, const std::vector<std::string>& without);

}  // namespace config_detail

/// Reads the TOML file at `path` (empty: none, defaults only), then applies each "table.key=value" of `overrides` in
/// order. A value that is no TOML is taken as a string.
template <class Config>
Config load_config(const std::string& path, const std::vector<std::string>& overrides = {}) {
  Config config;
  config_detail::load(config_detail::tables_of(config), path, overrides);
  return config;
}

/// The same from a text; `name` stands for the file in errors.
template <class Config>
Config parse_config(std::string_view text, const std::string& name, const std::vector<std::string>& overrides = {}) {
  Config config;
  config_detail::load_text(config_detail::tables_of(config), text, name, overrides);
  return config;
}

/// The resolved configuration as TOML, every key in it, each under its sentence as a comment. Loads back identically.
template <class Config>
std::string config_to_toml(Config config) {
  return config_detail::dump(config_detail::tables_of(config));
}

/// The manual: a Markdown table per TOML table (key, type, default, allowed, meaning).
template <class Config>
std::string config_reference() {
  Config config;
  return config_detail::reference(config_detail::tables_of(config));
}

/// xxh3-64 of all resolved keys and values, equal wherever they are equal. Leaves out each "table", "table.key" and, of
/// the items of a list of tables, "table.key[].item" of `without` (what may differ between ranks or attempts), as if
/// there were no such key.
template <class Config>
std::uint64_t config_hash(Config config, const std::vector<std::string>& without = {}) {
  return config_detail::hash(config_detail::tables_of(config), without);
}

}  // namespace plimsoll
