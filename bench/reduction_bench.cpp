// What the report slots cost: the all-reduce of a step's gradients alone against the same with the ranks' reports
// behind them. Run it
//   mpirun -n 2 --oversubscribe build/reduction_bench [gradient megabytes, 30] [repetitions, 100]
// Rank 0 prints one line: medians in milliseconds and the slots' share. Packing, unpacking and agreeing are counted as
// the slots' too.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "core/error.h"
#include "ddp/agreement.h"
#include "ddp/communicator.h"
#include "ddp/report.h"

namespace plimsoll::ddp {
namespace {

double time_ms(Communicator& communicator, const auto& action) {
  communicator.barrier();
  const auto began = std::chrono::steady_clock::now();
  action();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

void print(const Communicator& communicator, std::int64_t megabytes, double base, double extra, double handling) {
  std::printf(
      "ranks %d, gradients %lld MB, slots %lld: reduction %.3f ms, slots add %.4f ms to it, pack + unpack + agree %.4f "
      "ms, ratio %.4f\n",
      communicator.world(), static_cast<long long>(megabytes), static_cast<long long>(slot_count(communicator.world())),
      base, extra, handling, base > 0.0 ? 1.0 + (extra + handling) / base : 1.0);
}

void run(std::int64_t megabytes, int repetitions) {
  const std::string folder = (std::filesystem::temp_directory_path() / "plimsoll-reduction-bench").string();
  const auto communicator = make_communicator(folder, 60.0);
  const auto gradients = static_cast<std::size_t>(megabytes) * 1'000'000 / sizeof(float);
  std::vector<float> flat(gradients + static_cast<std::size_t>(slot_count(communicator->world())));
  std::vector<float> own(kSlots);
  const Report report{.budget_bytes = 1 << 30, .measured_peak_bytes = 800 << 20, .plan_hash = 0x123456};
  std::vector<double> base, extra, handling;
  const auto reduce = [&](std::span<float> values) {
    return time_ms(*communicator, [&] { communicator->all_reduce_sum(values); });
  };
  for (int i = 0; i < repetitions; ++i) {
    // In pairs and by turns, so that whatever else the machine does hits both alike.
    handling.push_back(time_ms(*communicator, [&] {
      pack(report, 0, own);
      agree(unpack(own, 1), {});
    }));
    const double first = reduce(i % 2 == 0 ? std::span(flat).first(gradients) : std::span(flat));
    const double second = reduce(i % 2 == 0 ? std::span(flat) : std::span(flat).first(gradients));
    base.push_back(i % 2 == 0 ? first : second);
    extra.push_back(i % 2 == 0 ? second - first : first - second);
  }
  if (communicator->rank() != 0) return;
  print(*communicator, megabytes, median(base), median(extra), median(handling));
}

}  // namespace
}  // namespace plimsoll::ddp

int main(int argc, char** argv) {
  try {
    const long megabytes = argc > 1 ? std::atol(argv[1]) : 30;
    const int repetitions = argc > 2 ? std::atoi(argv[2]) : 100;
    if (megabytes < 1 || repetitions < 1)
      plimsoll::fail(plimsoll::ExitCode::kUsage, "usage: reduction_bench [megabytes >= 1] [repetitions >= 1]");
    plimsoll::ddp::run(megabytes, repetitions);
    return 0;
  } catch (const plimsoll::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
}
