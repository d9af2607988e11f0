// What it costs to cut a share by predicted bytes (batch.packing = "bytes") instead of by a fixed count, and what it
// saves. Run it
//   build/packing_bench [rounds, 200]
// Lines `FIGURE name = value unit`. One rank, one thread, the tiny model, a share of 8. First all samples are alike, so
// that both ways run the same micro-batches of two: the difference is the packing's own. Steps of the two are timed by
// turns over the same samples. Then samples are of many lengths, and the bytes that the fixed count needs at its
// heaviest are all that packing may use: fewer micro-batches at the same peak.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <span>
#include <vector>

#include "bench/tiny_session.h"
#include "core/error.h"

namespace plimsoll::train {
namespace {

constexpr double kBound = 0.01;
constexpr int kMicroBatch = 2;

/// One session that cuts its share one way.
class Cutter {
 public:
  Cutter(const TinyRanks& ranks, const char* packing) : config_(ranks.config) {
    config_.batch.packing = packing;
    session_.emplace(config_, *ranks.communicator, *ranks.source);
  }
  /// Milliseconds of the step over these samples; no micro-batch may need more than `bytes`.
  double step_ms(std::span<const model::StreamSample> samples, std::int64_t bytes) {
    memory::Plan plan;
    plan.micro_batch = kMicroBatch;
    memory::Fill fill;
    fill.bytes = bytes;
    ++step_;
    const auto [spent, result] = timed_step(*session_, step_, samples, plan, fill);
    micro_batches_ += result.guardian.micro_batches;
    return spent;
  }
  Session& session() { return *session_; }
  std::int64_t micro_batches() const { return micro_batches_; }

 private:
  Config config_;
  std::optional<Session> session_;
  std::int64_t step_ = 0, micro_batches_ = 0;
};

/// The most that any two samples of the source need together.
std::int64_t bytes_of_two(Session& session) {
  memory::MicroBatchShape two{kMicroBatch};
  for (int i = 0; i < kMicroBatch; ++i) two += session.heaviest.at(static_cast<std::size_t>(i));
  return session.predictor->bytes(two, {});
}

void time_overhead(TinyRanks& ranks, int rounds) {
  Drawn drawn(ranks);
  Cutter by_count(ranks, "count"), by_bytes(ranks, "bytes");
  const std::int64_t bytes = bytes_of_two(by_count.session());
  std::vector<double> counts, ratios;
  for (int round = -3; round < rounds; ++round) {  // the first few warm up
    const auto samples = drawn.share_of(8 * (round + 3), 8);
    const bool first = round % 2 == 0;  // who goes first takes turns too
    double packed = first ? by_bytes.step_ms(samples, bytes) : 0;
    const double counted = by_count.step_ms(samples, bytes);
    if (!first) packed = by_bytes.step_ms(samples, bytes);
    if (round < 0) continue;
    counts.push_back(counted);
    ratios.push_back(packed / counted);
  }
  if (by_bytes.micro_batches() != by_count.micro_batches())
    fail(ExitCode::kUsage, "{} micro-batches by bytes and {} by count: they were to be the same",
         by_bytes.micro_batches(), by_count.micro_batches());
  const double over = median(ratios) - 1;
  fmt::print("FIGURE step of 4 equal micro-batches, cut by a fixed count, median = {:.3f} ms\n", median(counts));
  fmt::print("FIGURE the same cut by predicted bytes, more, median of {} turns = {:.2f} % (bound {} %: {})\n",
             ratios.size(), 100 * over, 100 * kBound, over < kBound ? "met" : "NOT met");
}

void count_micro_batches(TinyRanks& ranks, int rounds) {
  Drawn drawn(ranks);
  Cutter by_count(ranks, "count"), by_bytes(ranks, "bytes");
  const std::int64_t bytes = bytes_of_two(by_count.session());
  double counted = 0, packed = 0;
  for (int round = 0; round < rounds; ++round) {
    const auto samples = drawn.share_of(8 * round, 8);
    counted += by_count.step_ms(samples, bytes);
    packed += by_bytes.step_ms(samples, bytes);
  }
  fmt::print("FIGURE samples of many lengths, micro-batches by bytes over those by count, same bytes = {:.3f}\n",
             static_cast<double>(by_bytes.micro_batches()) / static_cast<double>(by_count.micro_batches()));
  fmt::print("FIGURE their samples/s by bytes over those by count = {:.3f}\n", counted / packed);
}

void run(int rounds) {
  TinyRanks ranks("packing-bench");
  if (ranks.communicator->world() != 1) fail(ExitCode::kUsage, "packing_bench runs on one rank, without mpirun");
  ranks.config.train.max_steps = 1 << 16;
  ranks.config.data.synthetic_text = 24;
  ranks.config.data.synthetic_side = 56;
  ranks.source = make_source(ranks.config);
  time_overhead(ranks, rounds);
  ranks.config.data.synthetic_text = ranks.config.data.synthetic_side = 0;
  ranks.source = make_source(ranks.config);
  count_micro_batches(ranks, std::min(rounds, 40));
}

}  // namespace
}  // namespace plimsoll::train

int main(int argc, char** argv) {
  return plimsoll::train::tiny_bench_program([&] {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 200;
    if (rounds < 1) plimsoll::fail(plimsoll::ExitCode::kUsage, "usage: packing_bench [rounds >= 1]");
    plimsoll::train::run(rounds);
  });
}
