// What the ranks' reports cost, as a share of a training step on the tiny model, one thread a rank. Run it
//   mpirun -n 2 --oversubscribe build/reduction_bench [steps, 30] [reductions in pairs after each step, 20] [cuda]
// Rank 0 prints lines `FIGURE name = value unit`. The slots' cost is what they add to the all-reduce of that model's
// gradients (median difference of pairs, taken by turns, so that whatever else the machine does hits both alike), and
// packing, copying to the device's buffer and back, unpacking the whole world, and agreeing. Steps, pairs and handling
// alternate in one run. On "cuda" the buffers are the GPU's, and ranks that share one reduce through host memory.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "bench/tiny_session.h"
#include "core/error.h"
#include "train/device.h"
#include "train/flat_kernels.h"

namespace plimsoll::train {
namespace {

constexpr double kBound = 0.005;       // share of a step
constexpr int kHandlingRepeats = 100;  // too short to be timed alone

/// Milliseconds.
struct Times {
  std::vector<double> step, reduction, extra, handling;
};

void time_pair(ddp::Communicator& communicator, std::span<float> all, std::size_t gradients, bool first, Times& times) {
  const auto reduce = [&](bool slots) {
    communicator.barrier();
    return time_ms([&] { communicator.all_reduce_sum(slots ? all : all.first(gradients)); });
  };
  const double before = reduce(first), after = reduce(!first);
  times.reduction.push_back(first ? after : before);
  times.extra.push_back(first ? before - after : after - before);
}

/// Packs this rank's report into `own`, copies it to `place` on the device and back, as FlatBuffers::reduce does, and
/// reads the world's from `summed`: what a step does with its slots.
void time_handling(const ddp::Communicator& communicator, const FlatKernels& kernels, std::span<float> own,
                   std::span<float> place, std::span<const float> summed, Times& times) {
  const ddp::Report report{.budget_bytes = 1 << 30, .measured_peak_bytes = 800 << 20, .plan_hash = 0x123456};
  const double all = time_ms([&] {
    for (int i = 0; i < kHandlingRepeats; ++i) {
      ddp::pack(report, communicator.rank(), own);
      kernels.from_host(own, place.data());
      kernels.to_host(place, own.data());
      ddp::agree(ddp::unpack(summed, communicator.world()), {});
    }
  });
  times.handling.push_back(all / kHandlingRepeats);
}

void print(int world, std::size_t gradients, const Times& times) {
  const double step = median(times.step), extra = median(times.extra), handling = median(times.handling);
  const double share = (std::max(0.0, extra) + handling) / step;
  std::printf("%d ranks, %.1f MB of gradients, %lld slots\n", world,
              static_cast<double>(gradients) * sizeof(float) / 1e6, static_cast<long long>(ddp::slot_count(world)));
  std::printf("FIGURE report slots: a step of the tiny model, 4 samples a rank, one thread = %.4g ms\n", step);
  std::printf("FIGURE report slots: all-reduce of its gradients without them = %.4g ms\n", median(times.reduction));
  std::printf("FIGURE report slots: what they add to the all-reduce = %.3g ms\n", extra);
  std::printf("FIGURE report slots: pack, unpack, agree = %.3g ms\n", handling);
  const double error = error_of_median(times.extra) / step;
  const char* verdict = error > kBound / 2 ? "not resolved" : share < kBound ? "met" : "NOT met";
  std::printf("FIGURE report slots, share of a step = %.3g +- %.2g (bound %g: %s)\n", share, error, kBound, verdict);
}

void run(int steps, int pairs, const std::string& device_name) {
  TinyRanks ranks("reduction-bench");
  Device device = open_device(device_name, ranks.communicator->local_rank());
  const auto on_device = communicator_on(device, *ranks.communicator);
  ddp::Communicator& communicator = on_device ? *on_device : *ranks.communicator;
  ranks.config.batch.effective = 8;
  ranks.config.memory.recompute = "none";
  ranks.config.memory.policy = "reactive";
  Session session(ranks.config, communicator, *ranks.source, device);
  const auto gradients = session.buffers->gradients().size();
  const auto slots = static_cast<std::size_t>(ddp::slot_count(communicator.world()));
  const auto size = static_cast<std::int64_t>(gradients + slots);
  const at::Tensor buffer = at::zeros({size}, at::TensorOptions(device.place));
  const std::span<float> flat(buffer.data_ptr<float>(), gradients + slots);
  std::vector<float> own(slots), summed(slots);
  for (int rank = 0; rank < communicator.world(); ++rank) {
    ddp::pack({.budget_bytes = 1 << 30, .plan_hash = 0x123456}, rank, own);
    for (std::size_t i = 0; i < slots; ++i) summed[i] += own[i];
  }
  Times times;
  std::vector<std::shared_ptr<const Sample>> hold;
  for (int step = 1; step <= steps; ++step) {
    const auto samples = session.load_share(step, hold);
    times.step.push_back(time_step_ms(session, step, samples, session.plan, {}));
    for (int pair = 0; pair < pairs; ++pair) time_pair(communicator, flat, gradients, pair % 2 == 0, times);
    time_handling(communicator, session.buffers->kernels(), own, flat.subspan(gradients), summed, times);
  }
  communicator.barrier();
  if (ranks.first()) print(communicator.world(), gradients, times);
}

}  // namespace
}  // namespace plimsoll::train

int main(int argc, char** argv) {
  return plimsoll::train::tiny_bench_program([&] {
    const int steps = argc > 1 ? std::atoi(argv[1]) : 30;
    const int pairs = argc > 2 ? std::atoi(argv[2]) : 20;
    const std::string device = argc > 3 ? argv[3] : "cpu";
    if (steps < 1 || pairs < 1)
      plimsoll::fail(plimsoll::ExitCode::kUsage, "usage: reduction_bench [steps >= 1] [pairs >= 1] [cpu or cuda]");
    plimsoll::train::run(steps, pairs, device);
  });
}
