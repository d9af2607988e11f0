#pragma once
// What a person sees while it runs: a baseline line, a line each window, and a live progress line. Pure functions from
// plain structs to text, and a thin writer.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

#include "report/records.h"

namespace plimsoll::report {

/// Memory and plan at the end of a window, of the rank that is nearest to its budget.
struct MemoryStatus {
  std::int64_t window = 0;  ///< 0: the baseline at start
  std::int64_t rank = 0, world = 1;
  std::int64_t current = 0, current_budget = 0;  ///< bytes live now, and the budget, of the rank that prints: rank 0
  std::int64_t peak = 0;                         ///< most bytes live at once in the window
  std::int64_t budget = 0;
  double target = 0.85;  ///< fraction of the budget
  PlanView plan;
  std::int64_t min_micro = 0, max_micro = 0;            ///< equal: the micro-batch is fixed
  std::int64_t blocks = 0;                              ///< of the language model, for "recompute 2 of 36 blocks"
  std::int64_t min_resolution = 0, max_resolution = 0;  ///< equal: the resolution is fixed
  std::int64_t retries = 0;                             ///< in the window, all ranks
  std::string note;  ///< the decision: "kept: inside the band", "micro-batch 4 -> 6: ..."
};

/// "[memory] window 3 | current 212.0 MiB (70.7 %) | peak 231.0 MiB (77.0 %) | target 255.0 MiB (85.0 %) | budget
/// 300.0 MiB | micro-batch 4 (1..16) x 4 | resolution 112 (fixed) | recompute 0 of 4 blocks | retries 0 | kept: inside
/// the band"; window 0 reads "[memory] baseline". With more than one rank it says whose peak and whose current bytes
/// are shown.
std::string status_line(const MemoryStatus& status);

struct Progress {
  std::int64_t step = 0, total = 0;
  double loss = 0.0;
  double samples_per_second = 0.0;
  std::int64_t peak = 0,
               budget = 0;  ///< since the window began, of the rank nearest to its budget: what its status line says
  std::chrono::duration<double> left{};  ///< until `total`
};

/// "step 120/400 (30 %) | loss 0.1234 | 18.2 samples/s | peak 231.0 MiB (77.0 %) | 1:02:03 left".
std::string progress_line(const Progress& progress);

/// "59 s", "12:05", "1:02:03", "2 d 03:04:05".
std::string format_duration(std::chrono::duration<double> duration);

/// Writes lines and the progress line so that neither spoils the other. Not thread-safe; rank 0 has the only one.
class Console {
 public:
  using Clock = std::chrono::steady_clock;
  /// `terminal`: redraw one progress line in place, at most ten times a second, cut at `columns`. Otherwise print it as
  /// an ordinary line every `every` steps and at the last.
  Console(std::FILE* to, bool terminal, std::int64_t every, std::size_t columns = 100);
  /// Leaves the progress line on the screen and the cursor under it.
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  void line(const std::string& text);
  void progress(const Progress& progress, Clock::time_point now = Clock::now());

 private:
  void draw();
  std::FILE* to_;
  bool terminal_;
  std::int64_t every_;
  std::size_t columns_;
  std::string shown_;  ///< the progress line on the screen
  Clock::time_point drawn_{};
};

/// Whether a person watches standard output: what `launch` says in PLIMSOLL_TERMINAL (mpirun gives its ranks a terminal
/// of its own making), else whether it is a terminal.
bool watched_by_a_person();
/// Columns of that terminal; 100 where nobody knows.
std::size_t terminal_columns();

}  // namespace plimsoll::report
