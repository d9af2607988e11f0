#include "ddp/agreement.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "core/bytes.h"
#include "core/error.h"

namespace plimsoll::ddp {
namespace {

template <class Predicate>
std::vector<int> ranks_where(std::span<const Report> reports, Predicate predicate) {
  std::vector<int> found;
  for (std::size_t rank = 0; rank < reports.size(); ++rank) {
    if (predicate(reports[rank])) found.push_back(static_cast<int>(rank));
  }
  return found;
}

std::string name_ranks(const std::vector<int>& ranks) {
  return fmt::format("{} {}", ranks.size() == 1 ? "rank" : "ranks", fmt::join(ranks, ", "));
}

/// The value most ranks hold; in a tie the one that the lowest rank holds.
template <class Value>
std::uint64_t majority(std::span<const Report> reports, Value value) {
  std::map<std::uint64_t, int> votes;
  for (const Report& report : reports) ++votes[value(report)];
  std::uint64_t winner = value(reports.front());
  for (const Report& report : reports) {
    if (votes[value(report)] > votes[winner]) winner = value(report);
  }
  return winner;
}

template <class Value>
void require_equal(std::span<const Report> reports, Value value, const char* what, const char* advice) {
  const std::uint64_t expected = majority(reports, value);
  const auto others = ranks_where(reports, [&](const Report& report) { return value(report) != expected; });
  if (others.empty()) return;
  fail(ExitCode::kUsage, "the ranks disagree on {}: {} has {:012x}, the others {:012x}; {}", what, name_ranks(others),
       value(reports[static_cast<std::size_t>(others.front())]), expected, advice);
}

std::string name_sample(const Report& report, int rank) {
  return report.sample_index < 0 ? fmt::format("rank {} (sample unknown)", rank)
                                 : fmt::format("rank {} (sample {})", rank, report.sample_index);
}

std::string name_samples(std::span<const Report> reports, const std::vector<int>& ranks) {
  std::vector<std::string> named;
  for (int rank : ranks) named.push_back(name_sample(reports[static_cast<std::size_t>(rank)], rank));
  return fmt::format("{}", fmt::join(named, ", "));
}

std::int64_t largest_request(std::span<const Report> reports) {
  std::int64_t largest = 0;
  for (const Report& report : reports) largest = std::max(largest, report.failed_request_bytes);
  return largest;
}

void replay(std::span<const Report> reports, const AgreementState& before, Verdict& verdict) {
  verdict.action = Action::kReplay;
  verdict.next = {before.skips_in_row, before.replays_in_row + 1};
  verdict.text = fmt::format(
      "no rank updates: out of memory with a single sample on {}, largest failed request {}; the same samples are "
      "replayed",
      name_samples(reports, verdict.ranks), format_bytes(largest_request(reports)));
}

void skip(std::span<const Report> reports, const AgreementState& before, Verdict& verdict) {
  verdict.action = Action::kSkip;
  verdict.next = {before.skips_in_row + 1, 0};
  const std::string where = name_samples(reports, verdict.ranks);
  if (verdict.next.skips_in_row >= kMostSkipsInRow) {
    fail(ExitCode::kData,
         "values are not finite in {} steps in a row, last on {}; look at these samples with `plimsoll dataset show`, "
         "or lower the learning rate",
         verdict.next.skips_in_row, where);
  }
  verdict.text = fmt::format(
      "no rank updates: values are not finite on {} ({} of {} allowed in a row); training goes on with the next "
      "samples",
      where, verdict.next.skips_in_row, kMostSkipsInRow - 1);
}

void add_stop(std::span<const Report> reports, Verdict& verdict) {
  const auto asked = ranks_where(reports, [](const Report& report) { return report.stop_requested; });
  if (asked.empty()) return;
  verdict.stop = true;
  if (!verdict.text.empty()) verdict.text += "; ";
  verdict.text += fmt::format("stop requested on {}: all ranks write a checkpoint and leave", name_ranks(asked));
}

}  // namespace

Verdict agree(std::span<const Report> reports, const AgreementState& before) {
  if (reports.empty()) fail(ExitCode::kUsage, "an agreement needs the report of at least one rank");
  require_equal(
      reports, [](const Report& r) -> std::uint64_t { return r.plan_hash; }, "the plan",
      "no rank goes on; restart from the last checkpoint and report this as a bug");
  require_equal(
      reports, [](const Report& r) { return r.weight_hash; }, "the trained weights",
      "memory of that machine may be faulty; restart from the last checkpoint");
  Verdict verdict;
  verdict.ranks = ranks_where(reports, [](const Report& r) { return r.failed; });
  if (!verdict.ranks.empty()) {
    replay(reports, before, verdict);
  } else {
    verdict.ranks = ranks_where(reports, [](const Report& r) { return r.non_finite; });
    if (!verdict.ranks.empty()) skip(reports, before, verdict);
  }
  add_stop(reports, verdict);
  return verdict;
}

}  // namespace plimsoll::ddp
