#pragma once
// Whether the files of a LeRobot dataset agree with each other: what its opening refuses (data/lerobot_dataset.h) and
// `plimsoll dataset check` lists with all else (data/lerobot_check.h), in the same words. Cheap: of data files only the
// schema is looked at.

#include <cstdint>
#include <string>

#include "data/faults.h"
#include "data/lerobot_info.h"
#include "data/parquet_table.h"

namespace plimsoll::data {

/// info.json's number of episodes and of frames beside the list of episodes: where they differ, a file of the list is
/// missing or of another recording, and only a part of the data would be trained on. (Episodes of v2 are compared when
/// they are read.)
void compare_totals(const LeRobotInfo& info, const Faults& faults);
/// The number of tasks alike: empty where they agree or info.json has none.
std::string task_total_difference(const LeRobotInfo& info);

/// Task texts that are no UTF-8, which a tokenizer would read as other texts.
void check_task_texts(const LeRobotInfo& info, const Faults& faults);

/// The texts that `list`, one of info.episode_lists, has for its episodes are among the tasks: else rows and list are
/// of different recordings. `foreign` is told of each that is not; `missing` of an entry, or a whole list, without.
void compare_episode_tasks(const LeRobotInfo& info, const std::string& list, const Faults& foreign,
                           const Faults& missing);

/// All of these; the first that is wrong is thrown as Error(kData).
void refuse_contradictions(const LeRobotInfo& info);

/// That a column's values are of another type than `declared`, which info.json says; empty where they are not, or where
/// info.json says nothing. Throws Error(kData) where there is no such column.
std::string type_difference(const ParquetTable& table, const std::string& column, const std::string& declared);

}  // namespace plimsoll::data
