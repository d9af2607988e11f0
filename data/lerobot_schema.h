#pragma once
// What LeRobot v3.0 writes into its files besides the data: column lists, schema metadata and info.json. For
// lerobot_writer.cpp.

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/lerobot_row.h"
#include "data/lerobot_writer.h"
#include "data/parquet_writer.h"
#include "data/summary.h"

namespace plimsoll::data {

/// Columns of data files: features that are no videos, then the index columns.
std::vector<ColumnSpec> data_columns(const std::vector<WriterFeature>& features);
/// Metadata of their schema: the key `huggingface`, by which the datasets library knows image columns.
std::map<std::string, std::string> data_metadata(const std::vector<WriterFeature>& features);

/// Metadata of meta/tasks.parquet: the key `pandas`; without it LeRobot reads integers in place of the texts.
std::map<std::string, std::string> tasks_metadata();

/// Columns of meta/episodes: without the statistics, then `stats/<feature>/<name>` in the order of statistics_cells().
std::vector<ColumnSpec> episode_columns(const std::vector<WriterFeature>& features);
void append_statistics_cells(const Summary& summary, std::vector<Cell>& row);

/// A feature's entry in meta/stats.json; pictures are [3][1][1].
nlohmann::ordered_json statistics_json(const Summary& summary, bool picture);

struct DatasetTotals {
  std::int64_t episodes = 0, frames = 0, tasks = 0;
};
nlohmann::ordered_json info_json(const LeRobotWriterOptions& options, const DatasetTotals& totals);

}  // namespace plimsoll::data
