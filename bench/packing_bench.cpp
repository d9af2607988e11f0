// What it costs to cut a share by predicted bytes (batch.packing = "bytes") instead of by a fixed count, and what it
// saves. Run it
//   build/packing_bench [rounds, 200]
// Lines `FIGURE name = value unit`. One rank, one thread, the tiny model, a share of 8. First all samples are alike, so
// that both ways run the same micro-batches of two: the difference is the packing's own. Steps of the two are timed by
// turns over the same samples. Then samples are of many lengths, and the bytes that two of the heaviest need are all
// that packing may use: fewer micro-batches at the same peak. Last the same lengths, and the fixed count of each step
// is the one that makes as many micro-batches as packing made of it; a step's time then depends on how heavy each of
// them is, so that what is compared is the arranging itself, dry runs of new shapes in it, as a part of the step that
// is cut by count. The program exits with 1 where either cost is above the bound by more than two standard errors;
// fewer than 20 rounds say nothing.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bench/tiny_session.h"
#include "core/error.h"

namespace plimsoll::train {
namespace {

constexpr double kBound = 0.01;
constexpr int kMicroBatch = 2;
constexpr std::int64_t kShare = 8;
constexpr int kWarmUp = 3;  // rounds
constexpr std::size_t kFewest = 20;

/// A part of a step's time, and the standard error of it.
struct Part {
  double value = 0, error = 0;
  std::size_t rounds = 0;

  bool resolved() const { return rounds >= kFewest && std::abs(value - kBound) > 2 * error; }
  bool met() const { return !resolved() || value < kBound; }
  std::string text() const {
    const char* verdict = !resolved() ? "not resolved" : met() ? "met" : "NOT met";
    return fmt::format("{:.2f} +- {:.2f} % (bound {:g} %: {})", 100 * value, 100 * error, 100 * kBound, verdict);
  }
};

/// Of the mean, which counts rare dry runs; a median would not.
Part mean_of(const std::vector<double>& values) {
  const auto count = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (const double value : values) sum += value;
  for (const double value : values) squares += (value - sum / count) * (value - sum / count);
  return {sum / count, std::sqrt(squares) / count, values.size()};
}

/// What one step took.
struct Cut {
  double ms = 0, arranging_ms = 0;
  int micro_batches = 0;
  std::int64_t peak = 0;  ///< bytes above what is live between steps
};

/// One session that cuts its share one way.
class Cutter {
 public:
  Cutter(const TinyRanks& ranks, const char* packing) : config_(ranks.config) {
    config_.batch.packing = packing;
    session_.emplace(config_, *ranks.communicator, *ranks.source);
  }
  /// A step over these samples: by bytes no micro-batch may need more than `bytes`, by count it has `micro_batch`
  /// samples at most.
  Cut step(std::span<const model::StreamSample> samples, std::int64_t bytes, int micro_batch = kMicroBatch) {
    memory::Plan plan;
    plan.micro_batch = micro_batch;
    memory::Fill fill;
    fill.bytes = bytes;
    const std::int64_t live = session_->meter.live();
    const auto [spent, result] = timed_step(*session_, ++step_, samples, plan, fill);
    Cut cut;
    cut.ms = spent;
    cut.arranging_ms = static_cast<double>(result.arranging_us) / 1000;
    cut.micro_batches = result.guardian.micro_batches;
    cut.peak = result.reports.front().measured_peak_bytes - live;
    return cut;
  }
  Session& session() { return *session_; }

 private:
  Config config_;
  std::optional<Session> session_;
  std::int64_t step_ = 0;
};

/// The most that any two samples of the source need together.
std::int64_t bytes_of_two(Session& session) {
  memory::MicroBatchShape two{kMicroBatch};
  for (int i = 0; i < kMicroBatch; ++i) two += session.heaviest.at(static_cast<std::size_t>(i));
  return session.predictor->bytes(two, {});
}

/// Whether the bound is met.
bool time_equal_samples(TinyRanks& ranks, int rounds) {
  Drawn drawn(ranks);
  Cutter by_count(ranks, "count"), by_bytes(ranks, "bytes");
  const std::int64_t bytes = bytes_of_two(by_count.session());
  std::vector<double> counts, more;
  for (int round = -kWarmUp; round < rounds; ++round) {
    const auto samples = drawn.share_of(kShare * (round + kWarmUp), kShare);
    const bool first = round % 2 == 0;  // who goes first takes turns too
    Cut packed;
    if (first) packed = by_bytes.step(samples, bytes);
    const Cut counted = by_count.step(samples, bytes);
    if (!first) packed = by_bytes.step(samples, bytes);
    if (packed.micro_batches != counted.micro_batches)
      fail(ExitCode::kUsage, "{} micro-batches by bytes and {} by count: they were to be the same",
           packed.micro_batches, counted.micro_batches);
    if (round < 0) continue;
    counts.push_back(counted.ms);
    more.push_back(packed.ms / counted.ms - 1);
  }
  const Part over{median(more), error_of_median(more), more.size()};
  fmt::print("FIGURE step of 4 equal micro-batches, cut by a fixed count, median = {:.3f} ms\n", median(counts));
  fmt::print("FIGURE the same cut by predicted bytes, more, median of {} turns = {}\n", more.size(), over.text());
  return over.met();
}

void count_micro_batches(TinyRanks& ranks, int rounds) {
  Drawn drawn(ranks);
  Cutter by_count(ranks, "count"), by_bytes(ranks, "bytes");
  const std::int64_t bytes = bytes_of_two(by_count.session());
  Cut counted, packed;
  const auto add = [](Cut& sum, const Cut& cut) {
    sum.ms += cut.ms;
    sum.micro_batches += cut.micro_batches;
    sum.peak = std::max(sum.peak, cut.peak);
  };
  for (int round = 0; round < rounds; ++round) {
    const auto samples = drawn.share_of(kShare * round, kShare);
    add(counted, by_count.step(samples, bytes));
    add(packed, by_bytes.step(samples, bytes));
  }
  fmt::print("FIGURE samples of many lengths, micro-batches by bytes over those by count, same bytes = {:.3f}\n",
             static_cast<double>(packed.micro_batches) / static_cast<double>(counted.micro_batches));
  fmt::print("FIGURE their samples/s by bytes over those by count = {:.3f}\n", counted.ms / packed.ms);
  const auto mib = [](std::int64_t size) { return static_cast<double>(size) / (1 << 20); };
  fmt::print("FIGURE bytes that two of the heaviest need = {:.3f} MiB\n", mib(bytes));
  fmt::print("FIGURE measured peak of a micro-batch by count = {:.3f} MiB\n", mib(counted.peak));
  fmt::print("FIGURE measured peak of a micro-batch by bytes = {:.3f} MiB\n", mib(packed.peak));
}

/// Whether the bound is met.
bool time_arranging(TinyRanks& ranks, int rounds) {
  Drawn drawn(ranks);
  Cutter by_count(ranks, "count"), by_bytes(ranks, "bytes");
  const std::int64_t bytes = bytes_of_two(by_count.session());
  std::vector<double> counted_ms, packed_ms, more;
  std::size_t count_runs = 0, byte_runs = 0;  // dry runs before the first round that counts
  for (int round = -kWarmUp; round < rounds; ++round) {
    if (round == 0) {
      count_runs = by_count.session().predictor->dry_runs();
      byte_runs = by_bytes.session().predictor->dry_runs();
    }
    const auto samples = drawn.share_of(kShare * (round + kWarmUp), kShare);
    const Cut packed = by_bytes.step(samples, bytes);
    const auto alike = static_cast<int>((kShare + packed.micro_batches - 1) / packed.micro_batches);
    const Cut counted = by_count.step(samples, bytes, alike);
    // Any two fit: never more than 4, so that there is such a count.
    if (packed.micro_batches != counted.micro_batches)
      fail(ExitCode::kUsage, "{} micro-batches by bytes and {} of {} samples by count: they were to be as many",
           packed.micro_batches, counted.micro_batches, alike);
    if (round < 0) continue;
    counted_ms.push_back(counted.arranging_ms);
    packed_ms.push_back(packed.arranging_ms);
    more.push_back((packed.arranging_ms - counted.arranging_ms) / counted.ms);
  }
  const Part over = mean_of(more);
  const auto a_step = [rounds](std::size_t now, std::size_t before) {
    return static_cast<double>(now - before) / rounds;
  };
  fmt::print("FIGURE samples of many lengths, arranging a step by bytes, mean = {:.4f} ms\n", mean_of(packed_ms).value);
  fmt::print("FIGURE the same by count = {:.4f} ms\n", mean_of(counted_ms).value);
  fmt::print("FIGURE their dry runs a step by bytes = {:.3f}\n",
             a_step(by_bytes.session().predictor->dry_runs(), byte_runs));
  fmt::print("FIGURE their dry runs a step by count = {:.3f}\n",
             a_step(by_count.session().predictor->dry_runs(), count_runs));
  fmt::print("FIGURE arranging by bytes, more, of a step in as many micro-batches, mean of {} steps = {}\n",
             more.size(), over.text());
  return over.met();
}

/// Whether both bounds are met.
bool run(int rounds) {
  TinyRanks ranks("packing-bench");
  if (ranks.communicator->world() != 1) fail(ExitCode::kUsage, "packing_bench runs on one rank, without mpirun");
  ranks.config.train.max_steps = 1 << 16;
  ranks.config.data.synthetic_text = 24;
  ranks.config.data.synthetic_side = 56;
  ranks.source = make_source(ranks.config);
  const bool equal = time_equal_samples(ranks, rounds);
  ranks.config.data.synthetic_text = ranks.config.data.synthetic_side = 0;
  ranks.source = make_source(ranks.config);
  count_micro_batches(ranks, std::min(rounds, 40));
  const bool arranged = time_arranging(ranks, rounds);
  return equal && arranged;
}

}  // namespace
}  // namespace plimsoll::train

int main(int argc, char** argv) {
  bool met = true;
  const int code = plimsoll::train::tiny_bench_program([&] {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 200;
    if (rounds < 1) plimsoll::fail(plimsoll::ExitCode::kUsage, "usage: packing_bench [rounds >= 1]");
    met = plimsoll::train::run(rounds);
  });
  return code != 0 || met ? code : 1;
}
