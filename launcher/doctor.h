#pragma once
// What `plimsoll doctor` finds out about the machine.

#include <filesystem>
#include <string>
#include <vector>

namespace plimsoll {

struct Finding {
  std::string name;    ///< "cores", "mpirun", ...
  std::string value;   ///< for a person
  bool ok = true;      ///< false: a run cannot work, or not for long
  std::string advice;  ///< what to do when not ok
};

/// All of them, in a fixed order. `run_dir` need not exist: its nearest existing parent tells the free space. Throws
/// nothing that a broken machine could cause: what cannot be found out is a finding that is not ok, or says "unknown".
std::vector<Finding> examine(const std::filesystem::path& run_dir);

/// "ok    cores   2 of 2" lines, with advice under what is not ok.
std::string findings_as_text(const std::vector<Finding>& findings);
/// {"ok": bool, "findings": [{"name", "value", "ok", "advice"}]}
std::string findings_as_json(const std::vector<Finding>& findings);

}  // namespace plimsoll
