#pragma once
// What rank 0 writes and shows: metrics.jsonl, decisions.jsonl, status and progress lines. On other ranks every call does nothing.

#include <memory>
#include <optional>

#include "memory/planning/policy.h"
#include "report/console.h"
#include "report/json_lines.h"
#include "train/session.h"
#include "train/step.h"

namespace plimsoll::train {

/// One step as the loop saw it.
struct StepView {
  std::int64_t step = 0;
  memory::Plan plan;
  double learning_rate_factor = 1.0;
  const StepResult& result;
  double wall_ms = 0.0;
};

class RunLog {
 public:
  /// Opens the streams under config.run.dir and cuts what came after `resume_step`.
  RunLog(const Session& session, std::int64_t resume_step);

  void line(const std::string& text);
  void baseline(const memory::Decision& decision);
  void step(const StepView& view);
  /// A decision of the policy or of an escalation, with the reports of the step it came with.
  void decision(const memory::Decision& decision, const std::vector<ddp::Report>& reports);
  /// Waits for the disk: before a checkpoint is declared complete.
  void sync();

 private:
  report::PlanView view(const memory::Plan& plan) const;
  void status(const memory::Decision& decision, std::int64_t window);

  const Session& session_;
  bool active_;
  std::unique_ptr<report::JsonLines> metrics_, decisions_;
  std::unique_ptr<report::Console> console_;
  std::int64_t windows_ = 0;
  double smooth_ms_ = 0.0;
};

}  // namespace plimsoll::train
