#include "train/stopwatch.h"

#include <algorithm>
#include <chrono>

#include "ddp/handshake.h"
#include "memory/guardian.h"
#include "memory/planning/packing.h"
#include "memory/planning/wide.h"

namespace plimsoll::train {
namespace {

using Clock = std::chrono::steady_clock;

}  // namespace

std::int64_t middling(const data::SampleSource& source) {
  std::vector<std::int64_t> order = source.training();
  const auto weight = [&](std::int64_t index) { return memory::weight_of(source.shape_of(index)); };
  const auto middle = order.begin() + static_cast<std::ptrdiff_t>(order.size() / 2);
  std::nth_element(order.begin(), middle, order.end(),
                   [&](std::int64_t a, std::int64_t b) { return weight(a) < weight(b); });
  return *middle;
}

Stopwatch::Stopwatch(Session& session, std::int64_t sample, std::int64_t resolution)
    : session_(session),
      sample_(session.source.load_at(sample, resolution)),
      rules_(session.model->packing_rules(static_cast<std::uint64_t>(session.config.run.seed), false)) {}

// On the slowest rank; 0 when it does not fit some rank.
std::int64_t Stopwatch::time(const memory::Plan& plan) {
  std::vector<model::StreamSample> samples;
  for (int i = 0; i < plan.micro_batch; ++i) samples.push_back({&sample_, static_cast<std::uint64_t>(i)});
  const std::vector<std::int64_t> mine = {run(samples, plan)};
  std::int64_t most = 0;
  for (const auto& theirs : ddp::share_numbers(session_.communicator, mine)) {
    if (theirs.at(0) == 0) return 0;
    most = std::max(most, theirs.at(0));
  }
  spent_ += most;
  return most;
}

// 0 when it does not fit this rank.
std::int64_t Stopwatch::run(std::span<const model::StreamSample> samples, const memory::Plan& plan) {
  Session& s = session_;
  const std::int64_t live = s.meter.live();
  if (live + s.predictor->bytes(shape_of(samples), plan) > s.meter.budget()) return 0;
  bool failed = false;
  const auto start = Clock::now();
  try {
    const auto batch = model::pack(samples, rules_, s.device.place);
    forward_backward(*s.model, batch, recompute_of(plan), s.config.batch.effective);
    s.meter.synchronize();
  } catch (const std::exception&) {
    if (!memory::is_out_of_memory()) throw;
    failed = true;
  }
  const auto took = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count();
  const auto discard = [&s] { s.buffers->discard_staging(); };
  failed ? memory::clean_up(s.meter, live, discard) : discard();
  return failed ? 0 : std::max<std::int64_t>(1, took);
}

}  // namespace plimsoll::train
