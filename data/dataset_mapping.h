#pragma once
// Which features of a dataset take which place in a sample, so that datasets of different layouts can be trained on
// together.
//
// A role is the name of a camera's place among a sample's pictures ("front", "wrist"), the same in all datasets. Roles
// come in the order of data.cameras; where that is empty, in the order in which the datasets' `cameras` first name
// them; where these are empty too, they are the cameras of the first dataset, sorted by name. A dataset whose own
// `cameras` is empty has for each role the feature of that name.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/config.h"

namespace plimsoll::data {

/// An entry of data.mix. Empty: as in the keys of [data] and [sensor] that hold for all datasets.
struct DatasetMapping {
  std::string path, name;
  std::vector<std::string> cameras, missing_cameras;
  std::string state, action, sensor;
  std::vector<std::int64_t> state_dimensions, action_dimensions, sensor_dimensions;
  Setting weight = "auto";

  template <class V>
  void visit(V& v) {
    v("path", path, "LeRobot dataset directory.", not_empty());
    v("name", name, "What the dataset is called elsewhere; empty: as its folder.");
    v("cameras", cameras,
      "Its camera features and the role that each takes, as \"role=feature\", or the feature alone where it is called "
      "as the role; empty: for each role the feature of that name. Roles and their order: data.cameras, or if that is "
      "empty as these lists first name them.");
    v("missing_cameras", missing_cameras,
      "Roles that this dataset has no camera for: its samples have fewer pictures. Without this they are refused.");
    v("state", state, "Feature that holds the state; empty: data.state.");
    v("state_dimensions", state_dimensions, "Its dimensions that are used, in this order, from 0; empty: all.");
    v("action", action, "Feature that holds the action; empty: data.action.");
    v("action_dimensions", action_dimensions, "Its dimensions that are used, in this order, from 0; empty: all.");
    v("sensor", sensor, "Feature that holds the sensor's channels; empty: sensor.feature.");
    v("sensor_dimensions", sensor_dimensions, "Its channels that are used, in this order, from 0; empty: all.");
    v("weight", weight,
      "How often its samples are drawn: of all draws, or of those of each type that [tasks] makes and gives a part, it "
      "has its weight by the sum of the weights of the datasets that have such samples. Either every dataset has a "
      "weight, or none, which is \"auto\": by their numbers of samples. With weights each dataset's samples come in "
      "passes of their own.",
      either({one_of({"auto"}), above(0)}));
  }
};

/// A feature of numbers and which of its dimensions are used.
struct FeatureChoice {
  std::string feature;                   ///< empty: none
  std::vector<std::int64_t> dimensions;  ///< in this order; empty: all
};

/// A mapping with nothing left open.
struct ResolvedMapping {
  std::string path, name;
  std::string key;                   ///< where it was given, for errors: "data.path" or "data.mix[1]"
  std::vector<std::string> cameras;  ///< features, in the order of their roles; without those that are missing
  FeatureChoice state, action, sensor;
  std::optional<double> weight;  ///< of its samples; of all datasets or of none
};

/// What holds for all datasets that do not say otherwise.
struct MappingDefaults {
  std::vector<std::string> cameras;  ///< roles in order; empty: see above
  std::string state, action, sensor;
};

/// Fills in what the datasets of `given` leave to the defaults. `key` names the setting that they come from; entries of
/// "data.mix" are numbered. Names of folders that are alike give way to the whole path. Reads the meta/ of the first
/// dataset where nothing names the cameras; throws Error(kData) as that does. Throws Error(kUsage) that names entry,
/// path, value and what to do: a role without a camera or with two, an unknown one, a name that two datasets have, a
/// weight that is no number above 0 or that others lack (of "data.path" it is called data.weights).
std::vector<ResolvedMapping> resolve_mappings(const std::vector<DatasetMapping>& given, const MappingDefaults& defaults,
                                              const std::string& key);

}  // namespace plimsoll::data
