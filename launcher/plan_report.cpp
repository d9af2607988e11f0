#include "launcher/plan_report.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/bytes.h"
#include "core/scope.h"

namespace plimsoll {
namespace {

using Json = nlohmann::ordered_json;

std::string percent(std::int64_t part, std::int64_t whole) {
  return fmt::format("{:.1f} %", whole > 0 ? 100.0 * static_cast<double>(part) / static_cast<double>(whole) : 0.0);
}

// Micro-batches of a step of each of so many ranks.
std::int64_t accumulation(std::int64_t effective, int ranks, int micro_batch) {
  const std::int64_t share = (effective + ranks - 1) / ranks;
  return micro_batch > 0 ? (share + micro_batch - 1) / micro_batch : 0;
}

std::string card_text(const PlannedCard& card, const PlanReport& report) {
  std::string text = fmt::format("{} card, {} usable, target {}:\n", format_bytes(card.card), format_bytes(card.usable),
                                 format_bytes(card.usable / 10000 * report.target));
  if (!card.best) {
    return text +
           fmt::format("  nothing fits: the model and its buffers alone are {}\n\n", format_bytes(report.static_bytes));
  }
  const PlannedPeak& best = *card.best;
  text += fmt::format("  best: {}; accumulation {}; peak {} ({} of usable), reserved {} ({} fragmented{})\n",
                      memory::to_string(best.plan), accumulation(report.effective, report.ranks, best.plan.micro_batch),
                      format_bytes(best.live), percent(best.live, card.usable), format_bytes(best.reserved),
                      percent(best.fragmentation, 10000),
                      best.retries == 0 ? "" : fmt::format(", after {} retries of the allocator", best.retries));
  for (const auto& other : card.runners_up)
    text += fmt::format("  next: {}; peak {}\n", memory::to_string(other.plan), format_bytes(other.bytes));
  std::map<std::string, std::int64_t> families;
  for (const auto& [label, bytes] : card.breakdown) families[std::string(family_of_label(label))] += bytes;
  for (const auto& [label, bytes] : families) text += fmt::format("    {:<34} {:>12}\n", label, format_bytes(bytes));
  return text + "\n";
}

std::string table_text(const PlanReport& report) {
  if (report.table.empty()) return "";
  std::string text = fmt::format(
      "| GPU memory | LoRA rank | batch | accumulation | effective batch | recompute | peak "
      "| reserved |\n|---|---:|---:|---:|---:|---|---:|---:|\n");
  for (const auto& cell : report.table) {
    const bool fits = cell.plan.micro_batch > 0;
    text += fmt::format("| {} | {} | {} | {} | {} | {} | {} | {} |\n", format_bytes(cell.card), cell.lora_rank,
                        fits ? std::to_string(cell.plan.micro_batch) : "none fits",
                        accumulation(report.effective, report.ranks, cell.plan.micro_batch), report.effective,
                        cell.plan.recompute_blocks > 0 ? "all" : "none", fits ? format_bytes(cell.live) : "",
                        fits ? format_bytes(cell.reserved) : "");
  }
  return text + "\n";
}

std::string rows_text(const PlanReport& report) {
  std::string text;
  for (const auto& row : report.rows) {
    const bool less = row.reserved <= row.allowed;
    text += fmt::format(
        "{} -> {} x {}, everything recomputed: {}, peak {}, reserved {} of {} allowed, {} {}; the largest that does is "
        "{}\n",
        format_bytes(row.card), row.micro_batch, accumulation(report.effective, 1, row.micro_batch),
        row.fits ? "fits" : "does not fit", format_bytes(row.live), format_bytes(row.reserved),
        format_bytes(row.allowed), format_bytes(less ? row.allowed - row.reserved : row.reserved - row.allowed),
        less ? "to spare" : "too much", row.largest);
  }
  return text.empty() ? text : "Rows made by hand:\n" + text + "\n";
}

std::string guide_text(const PlanReport& report) {
  if (report.guide.empty()) return "";
  std::string text = "| figure | by hand | dry run | why they differ |\n|---|---|---|---|\n";
  for (const auto& figure : report.guide)
    text += fmt::format("| {} | {} | {} | {} |\n", figure.name, figure.theirs, figure.ours, figure.reason);
  return text;
}

Json plan_json(const memory::Plan& plan) {
  return {{"micro_batch", plan.micro_batch},           {"resolution", plan.resolution},
          {"recompute_blocks", plan.recompute_blocks}, {"recompute_vision", plan.recompute_vision},
          {"recompute_expert", plan.recompute_expert}, {"offload", plan.offload}};
}

Json card_json(const PlannedCard& card, const PlanReport& report) {
  Json json{{"card", card.card}, {"usable", card.usable}, {"best", nullptr}};
  if (card.best) {
    json["best"] = {{"plan", plan_json(card.best->plan)},
                    {"accumulation", accumulation(report.effective, report.ranks, card.best->plan.micro_batch)},
                    {"peak", card.best->live},
                    {"reserved", card.best->reserved},
                    {"fragmentation_per_10000", card.best->fragmentation},
                    {"allocator_retries", card.best->retries},
                    {"breakdown", card.breakdown}};
  }
  json["runners_up"] = Json::array();
  for (const auto& other : card.runners_up)
    json["runners_up"].push_back({{"plan", plan_json(other.plan)}, {"peak", other.bytes}});
  return json;
}

}  // namespace

std::string to_text(const PlanReport& report) {
  std::string text = fmt::format(
      "{}\nheaviest sample: {}\neffective batch {} over {} rank{}, {} of every card taken for the driver and its "
      "libraries, {} dry "
      "runs\n"
      "These are the allocations of {}.{}\n\n",
      report.model, report.sample, report.effective, report.ranks, report.ranks == 1 ? "" : "s",
      format_bytes(report.overhead), report.dry_runs, report.for_a_gpu ? "our CUDA kernels" : "a run on the CPU",
      report.expandable_segments ? " Segments are expandable." : "");
  for (const auto& card : report.cards) text += card_text(card, report);
  return text + table_text(report) + rows_text(report) + guide_text(report);
}

std::string to_json(const PlanReport& report) {
  Json json{{"model", report.model},
            {"sample", report.sample},
            {"effective", report.effective},
            {"ranks", report.ranks},
            {"overhead", report.overhead},
            {"target_per_10000", report.target},
            {"static_bytes", report.static_bytes},
            {"dry_runs", report.dry_runs},
            {"device", report.for_a_gpu ? "cuda" : "cpu"},
            {"expandable_segments", report.expandable_segments}};
  for (const char* name : {"cards", "table", "rows", "guide"}) json[name] = Json::array();
  for (const auto& card : report.cards) json["cards"].push_back(card_json(card, report));
  for (const auto& cell : report.table) {
    json["table"].push_back({{"card", cell.card},
                             {"lora_rank", cell.lora_rank},
                             {"plan", plan_json(cell.plan)},
                             {"accumulation", accumulation(report.effective, report.ranks, cell.plan.micro_batch)},
                             {"peak", cell.live},
                             {"reserved", cell.reserved}});
  }
  for (const auto& row : report.rows) {
    json["rows"].push_back({{"card", row.card},
                            {"micro_batch", row.micro_batch},
                            {"peak", row.live},
                            {"reserved", row.reserved},
                            {"allowed", row.allowed},
                            {"fits", row.fits},
                            {"largest", row.largest}});
  }
  for (const auto& figure : report.guide) {
    json["guide"].push_back(
        {{"name", figure.name}, {"by_hand", figure.theirs}, {"dry_run", figure.ours}, {"reason", figure.reason}});
  }
  return json.dump(2) + "\n";
}

}  // namespace plimsoll
