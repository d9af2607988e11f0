#include "data/dataset_mapping.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "core/error.h"
#include "data/lerobot_info.h"

namespace plimsoll::data {
namespace {

using Names = std::vector<std::string>;

bool contains(const Names& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// "role=feature", or one word for both.
struct CameraRole {
  std::string role, feature;
};

CameraRole parse_camera(const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos) return {text, text};
  return {text.substr(0, equals), text.substr(equals + 1)};
}

std::string words_of(const Names& names) { return names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", ")); }

/// One dataset's cameras, checked against the roles of all.
class CameraMapping {
 public:
  CameraMapping(const DatasetMapping& mapping, const Names& roles, const std::string& where)
      : mapping_(mapping), roles_(roles), where_(where) {
    for (const std::string& text : mapping.cameras) add(text);
    for (const std::string& role : mapping.missing_cameras) check_missing(role);
  }

  Names features() const {
    Names features;
    for (const std::string& role : roles_) {
      if (!contains(mapping_.missing_cameras, role)) features.push_back(feature_of(role));
    }
    return features;
  }

 private:
  void add(const std::string& text) {
    const CameraRole camera = parse_camera(text);
    if (camera.role.empty() || camera.feature.empty())
      fail(ExitCode::kUsage, "{}: cameras has \"{}\"; write \"role=feature\"", where_, text);
    if (!contains(roles_, camera.role))
      fail(ExitCode::kUsage, "{}: cameras has \"{}\", but the roles are {} (data.cameras); choose one of these", where_,
           text, words_of(roles_));
    for (const CameraRole& other : cameras_) {
      if (other.role == camera.role)
        fail(ExitCode::kUsage, "{}: cameras gives the role \"{}\" to {} and to {}; leave one out", where_, camera.role,
             other.feature, camera.feature);
    }
    cameras_.push_back(camera);
  }

  void check_missing(const std::string& role) const {
    if (!contains(roles_, role))
      fail(ExitCode::kUsage, "{}: missing_cameras has \"{}\", but the roles are {}; leave it out", where_, role,
           words_of(roles_));
    for (const CameraRole& camera : cameras_) {
      if (camera.role == role)
        fail(ExitCode::kUsage, "{}: \"{}\" is among missing_cameras, and cameras has {} for it; leave one out", where_,
             role, camera.feature);
    }
  }

  std::string feature_of(const std::string& role) const {
    if (cameras_.empty()) return role;
    for (const CameraRole& camera : cameras_) {
      if (camera.role == role) return camera.feature;
    }
    fail(ExitCode::kUsage,
         "{}: has no camera for the role \"{}\"; add \"{}=FEATURE\" to its cameras, or the role to its missing_cameras",
         where_, role, role);
  }

  const DatasetMapping& mapping_;
  const Names& roles_;
  const std::string& where_;
  std::vector<CameraRole> cameras_;
};

Names roles_of(const std::vector<DatasetMapping>& given, const MappingDefaults& defaults) {
  if (!defaults.cameras.empty()) return defaults.cameras;
  Names roles;
  for (const DatasetMapping& mapping : given) {
    for (const std::string& text : mapping.cameras) {
      const std::string role = parse_camera(text).role;
      if (!contains(roles, role)) roles.push_back(role);
    }
  }
  return roles.empty() ? read_lerobot_info(given.front().path).cameras() : roles;
}

std::string folder_name(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).lexically_normal();
  const std::string name = (folder.has_filename() ? folder : folder.parent_path()).filename().string();
  return name.empty() ? path : name;
}

std::string name_of(const DatasetMapping& mapping, const std::vector<DatasetMapping>& all) {
  if (!mapping.name.empty()) return mapping.name;
  const std::string own = folder_name(mapping.path);
  const auto alike = std::count_if(all.begin(), all.end(), [&](const DatasetMapping& other) {
    return other.name == own || (other.name.empty() && folder_name(other.path) == own);
  });
  return alike > 1 ? mapping.path : own;
}

void check_names(const std::vector<DatasetMapping>& given, const std::string& key) {
  for (std::size_t i = 0; i < given.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (!given[i].name.empty() && given[i].name == given[j].name)
        fail(ExitCode::kUsage, "{}[{}]: name is \"{}\", and so is that of {}[{}]; give each dataset its own", key, i,
             given[i].name, key, j);
    }
  }
}

std::string weight_key(const std::string& key, std::size_t i) {
  return key == "data.mix" ? fmt::format("data.mix[{}].weight", i) : fmt::format("data.weights[{}]", i);
}

void check_weights(const std::vector<DatasetMapping>& given, const std::string& key) {
  for (std::size_t i = 0; i < given.size(); ++i) {
    const Setting &weight = given[i].weight, &first = given.front().weight;
    const bool above_zero = weight.is_number() && std::isfinite(weight.as_double()) && weight.as_double() > 0;
    if (!above_zero && !weight.is("auto"))
      fail(ExitCode::kUsage, "{} ({}) is {}; give a number above 0", weight_key(key, i), given[i].path,
           weight.to_toml());
    if (weight.is("auto") != first.is("auto"))
      fail(ExitCode::kUsage, "{} ({}) is {}, and {} is {}; give every dataset a number, or none", weight_key(key, i),
           given[i].path, weight.to_toml(), weight_key(key, 0), first.to_toml());
  }
}

std::optional<double> weight_of(const DatasetMapping& mapping) {
  if (mapping.weight.is("auto")) return std::nullopt;
  return mapping.weight.as_double();
}

FeatureChoice choice(const std::string& own, const std::string& common, const std::vector<std::int64_t>& dimensions) {
  return {own.empty() ? common : own, dimensions};
}

}  // namespace

std::vector<ResolvedMapping> resolve_mappings(const std::vector<DatasetMapping>& given, const MappingDefaults& defaults,
                                              const std::string& key) {
  check_names(given, key);
  check_weights(given, key);
  const Names roles = roles_of(given, defaults);
  std::vector<ResolvedMapping> resolved;
  for (std::size_t i = 0; i < given.size(); ++i) {
    const DatasetMapping& mapping = given[i];
    const std::string own_key = key == "data.mix" ? fmt::format("{}[{}]", key, i) : key;
    const std::string where = fmt::format("{} ({})", own_key, mapping.path);
    resolved.push_back({mapping.path, name_of(mapping, given), own_key, CameraMapping(mapping, roles, where).features(),
                        choice(mapping.state, defaults.state, mapping.state_dimensions),
                        choice(mapping.action, defaults.action, mapping.action_dimensions),
                        choice(mapping.sensor, defaults.sensor, mapping.sensor_dimensions), weight_of(mapping)});
  }
  return resolved;
}

}  // namespace plimsoll::data
