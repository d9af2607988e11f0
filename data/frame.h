#pragma once
// One time step of a robot, before it is recorded and as a policy meets it.

#include <map>
#include <string>
#include <vector>

#include "data/image_file.h"

namespace plimsoll::data {

/// By names of a dataset's features, in the dataset's units.
struct Frame {
  std::map<std::string, std::vector<double>> numbers;
  std::map<std::string, Image> images;
};

}  // namespace plimsoll::data
