#pragma once
// The scenarios of bench/memory_scenarios.json as budgets in bytes. For benchmarks that are run from the repository's
// root.

#include <algorithm>
#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "train/session.h"

namespace plimsoll::train {

inline constexpr int kRanks = 2;
inline constexpr const char* kScenarios = "bench/memory_scenarios.json";

struct Scenario {
  std::string name;
  std::vector<std::array<std::int64_t, kRanks>> budgets;  ///< bytes, phase by phase
};

/// Budgets of the file as bytes: multiples of what plans of a session's table need.
class ScenarioBudgets {
 public:
  explicit ScenarioBudgets(const Session& session)
      : table_(session.candidates), blocks_(session.model->language_blocks()) {}

  std::int64_t bytes(const nlohmann::json& budget) const {
    if (budget.contains("least")) return whole(least() / kPart * budget.at("least").get<double>());
    if (budget.contains("times")) return budget.at("times").get<std::int64_t>() * needed(budget.at("needs"));
    return whole(static_cast<double>(needed(budget.at("fits"))) * 1.02 / kPart * budget.value("part", 1.0));
  }

 private:
  static constexpr double kPart = 0.85;  ///< of a budget holds the plan that it is named after
  static std::int64_t whole(double bytes) { return static_cast<std::int64_t>(bytes); }
  double least() const {
    std::int64_t bytes = table_.all().front().bytes;
    for (const auto& candidate : table_.all()) bytes = std::min(bytes, candidate.bytes);
    return static_cast<double>(bytes);
  }
  /// Of a plan with nothing offloaded and no other tower recomputed.
  std::int64_t needed(const nlohmann::json& plan) const {
    const int micro_batch = plan.at(0), recompute = plan.at(1).get<int>() == 0 ? 0 : blocks_;
    for (const auto& candidate : table_.all()) {
      const memory::Plan& own = candidate.plan;
      if (own.micro_batch == micro_batch && own.recompute_blocks == recompute && own.recompute_expert == 0 &&
          !own.offload)
        return candidate.bytes;
    }
    fail(ExitCode::kUsage, "{}: no candidate of micro-batch {} that recomputes {} blocks", kScenarios, micro_batch,
         recompute);
  }

  const memory::CandidateTable& table_;
  int blocks_;
};

/// Those of the file. `session`: of two ranks, with nothing that limits its memory.
inline std::vector<Scenario> scenarios(const Session& session) {
  const ScenarioBudgets budgets(session);
  std::vector<Scenario> all;
  const auto file = nlohmann::json::parse(read_file(kScenarios));
  for (const auto& read : file.at("scenarios")) {
    Scenario& scenario = all.emplace_back();
    scenario.name = read.at("name").get<std::string>();
    for (const auto& phase : read.at("budgets")) {
      auto& now = scenario.budgets.emplace_back(scenario.budgets.empty() ? std::array<std::int64_t, kRanks>{}
                                                                         : scenario.budgets.back());
      for (std::size_t rank = 0; rank < now.size(); ++rank)
        if (!phase.at(rank).is_null()) now.at(rank) = budgets.bytes(phase.at(rank));
    }
  }
  return all;
}

}  // namespace plimsoll::train
