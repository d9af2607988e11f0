#pragma once
// What is said, or refused, of a dataset that is about to be trained on, beyond what its opening refuses. Private to
// data/lerobot_source.cpp.

#include <cstdint>
#include <string>
#include <vector>

#include "data/mapped_dataset.h"
#include "data/vlm_input.h"

namespace plimsoll::data {

/// Lines for people about what is read all the same and is seldom meant: LeRobotDataset::notes() and, where the dataset
/// is normalised by its `own_statistics`, the dimensions in use that have no range there, of which normalisation makes
/// a constant. `mapping` is the dataset's.
std::vector<std::string> dataset_notes(const MappedDataset& mapped, const ResolvedMapping& mapping,
                                       bool own_statistics);

/// Throws Error(kData) when the prompt of the sample at `frame` has more `tokens` than the model has positions, naming
/// the tasks' file and the task in it. Cheap.
void check_prompt_length(const LeRobotDataset& dataset, std::int64_t frame, std::int64_t tokens,
                         const VlmProcessor& processor);

}  // namespace plimsoll::data
