#pragma once
// The samples that the configuration asks for.

#include <memory>

#include "data/lerobot_source.h"
#include "data/sample_source.h"
#include "train/config.h"

namespace plimsoll::train {

/// The datasets of data.path or data.mix, processed for model.path, or synthetic samples if data.synthetic_samples is
/// set. Throws Error(kUsage) when none is given or what is given does not fit, Error(kData) as the source does.
std::unique_ptr<data::SampleSource> make_source(const Config& config);

/// The former only. Throws Error(kUsage) when data.path names no dataset.
std::unique_ptr<data::LeRobotSource> make_lerobot_source(const Config& config);

}  // namespace plimsoll::train
