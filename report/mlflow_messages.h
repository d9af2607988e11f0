#pragma once
// What is said to an MLflow tracking server: pure functions from records to lines of the spool (mlflow_spool.h), and
// from those to bodies of its REST calls.
//
// Protocol: MLflow's service.proto and utils/validation.py; what is said here about a server's behaviour was tried with
// MLflow 3.17. Times are milliseconds since 1970, on the wire too.

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "report/records.h"

namespace plimsoll::report {

/// One thing for runs/log-batch.
///
/// A server keeps a metric under (run, key, time, step, value): the same one sent again is stored once, so that a
/// request whose answer was lost may be repeated. (Servers on the old file store keep both; then a step has two equal
/// points.) A param may be sent again with the same value only; a tag's last value counts.
struct MlflowEntry {
  enum class Kind { kParam, kTag, kMetric };
  Kind kind = Kind::kMetric;
  std::string key;
  std::string value;         ///< of a param or tag
  double number = 0.0;       ///< of a metric; finite
  std::int64_t time_ms = 0;  ///< of a metric
  std::int64_t step = 0;     ///< of a metric
};

/// The server's limits for one call of runs/log-batch. Lengths are counted in bytes where the server counts characters.
inline constexpr std::size_t kMlflowMetrics = 1000, kMlflowParams = 100, kMlflowTags = 100, kMlflowEntries = 1000;
inline constexpr std::size_t kMlflowBodyBytes = 900000;  ///< of 1 MB
inline constexpr std::size_t kMlflowKeyBytes = 250, kMlflowParamBytes = 6000, kMlflowTagBytes = 5000;

/// One line of the spool, read.
struct MlflowLine {
  enum class Kind { kBegin, kEntries, kStatus, kDamaged };
  Kind kind = Kind::kDamaged;
  std::string experiment, name, token;  ///< kBegin
  std::string status;                   ///< kStatus: MLflow's word for it
  std::int64_t time_ms = 0;             ///< kBegin, kStatus
  std::int64_t step = 0;                ///< kEntries: of its metrics, 0 where it holds none
  std::vector<MlflowEntry> entries;     ///< kEntries
};
/// Never throws: what is no line of ours is kDamaged.
MlflowLine parse_mlflow_line(std::string_view line);

/// Lines, without line breaks. `token` finds the run again: it is sent as the run's tag "plimsoll.run".
std::string mlflow_begin_line(const std::string& experiment, const std::string& name, const std::string& token,
                              std::int64_t time_ms);
/// "RUNNING", "FINISHED", "FAILED" or "KILLED".
std::string mlflow_state_line(const std::string& status, std::int64_t time_ms);
/// Keys and values are cut and cleaned to what a server takes.
std::string mlflow_params_line(const std::map<std::string, std::string>& params);
std::string mlflow_tags_line(const std::map<std::string, std::string>& tags);
/// All metrics of a step. One that is not finite is left out and counted in "not_finite" instead: what servers make of
/// NaN differs between versions, and some lose what follows it.
std::string mlflow_step_line(const StepRecord& record, std::int64_t time_ms);

/// A TOML text as "table.key" -> value; lists and tables below that depth in TOML's own notation.
std::map<std::string, std::string> mlflow_flatten(std::string_view toml, const std::string& name);

/// `text` as a key that servers take: letters, digits, _ - . space and / between parts; at most 250 bytes.
std::string mlflow_key(const std::string& text);

/// As many runs of `entries`, in order, as the limits above ask for.
std::vector<std::span<const MlflowEntry>> mlflow_split(std::span<const MlflowEntry> entries);

/// Bodies of POST calls.
std::string mlflow_create_experiment_body(const std::string& name);
std::string mlflow_search_run_body(const std::string& experiment_id, const std::string& token);
std::string mlflow_create_run_body(const std::string& experiment_id, const MlflowLine& begin);
std::string mlflow_log_batch_body(const std::string& run_id, std::span<const MlflowEntry> entries);
std::string mlflow_update_run_body(const std::string& run_id, const MlflowLine& status);

/// From answers; nothing where they hold no such thing.
std::optional<std::string> mlflow_experiment_id(const std::string& answer);  ///< of create and get-by-name
std::optional<std::string> mlflow_run_id(const std::string& answer);         ///< of create, and the first one of search
std::string mlflow_error_code(const std::string& answer);                    ///< "" where it is no MLflow error
std::string mlflow_error_text(const std::string& answer);                    ///< one line for a person, cut

}  // namespace plimsoll::report
