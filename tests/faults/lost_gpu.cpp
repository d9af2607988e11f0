// `plimsoll launch` and `plimsoll train` on a device that is lost in the middle of a step, as CUDA says it of a GPU:
// the CPU, whose flat kernels fail from then on. PLIMSOLL_LOSE_GPU="RANK STEP" says which rank's and when: in the
// backward of that step of the first attempt. For tests/faults/test_lost_gpu.py.

#include <c10/util/Exception.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/log.h"
#include "launcher/commands.h"
#include "train/flat_kernels.h"

namespace plimsoll {
namespace {

constexpr std::int32_t kLaunchFailure = 719;  // cudaErrorLaunchFailure

/// The CPU's, until so many steps are done. Then the first gradient that is written finds the device lost, and every
/// call after it too.
class LosableKernels final : public train::FlatKernels {
 public:
  LosableKernels(const train::FlatKernels& sound, int steps) : sound_(sound), steps_left_(steps) {}

  void write_sum(const float* from, const float* gradient, float* to, std::int64_t n,
                 std::uint32_t* bad) const override {
    if (steps_left_ <= 0) lost_ = true;
    check();
    sound_.write_sum(from, gradient, to, n, bad);
  }
  void fill_zeros(std::span<float> to) const override {
    check();
    sound_.fill_zeros(to);
  }
  void copy(std::span<const float> from, float* to) const override {
    check();
    sound_.copy(from, to);
  }
  void clear(std::uint32_t* bad) const override {
    check();
    sound_.clear(bad);
  }
  bool is_set(const std::uint32_t* bad) const override {
    check();
    return sound_.is_set(bad);
  }
  double l2_norm(std::span<const float> values) const override {
    check();
    --steps_left_;  // once a step, before its update
    return sound_.l2_norm(values);
  }
  void adamw(std::span<float> parameter, std::span<const float> gradient, std::span<float> first_moment,
             std::span<float> second_moment, const train::AdamWFactors& factors) const override {
    check();
    sound_.adamw(parameter, gradient, first_moment, second_moment, factors);
  }
  void to_host(std::span<const float> from, float* host) const override {
    check();
    sound_.to_host(from, host);
  }
  void from_host(std::span<const float> host, float* to) const override {
    check();
    sound_.from_host(host, to);
  }

 private:
  void check() const {
    if (!lost_) return;
    throw c10::AcceleratorError({__func__, __FILE__, static_cast<std::uint32_t>(__LINE__)}, kLaunchFailure,
                                "CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later");
  }

  const train::FlatKernels& sound_;
  mutable std::atomic<int> steps_left_;
  mutable std::atomic<bool> lost_{false};
};

int number_in(const char* variable, int otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::atoi(text);
}

void lose_the_gpu_where_asked() {
  const char* wanted = std::getenv("PLIMSOLL_LOSE_GPU");
  if (wanted == nullptr || number_in("PLIMSOLL_ATTEMPT", 1) > 1) return;
  int rank = -1, step = 0;
  std::istringstream(wanted) >> rank >> step;
  if (number_in("OMPI_COMM_WORLD_RANK", 0) != rank) return;
  const train::FlatKernels& cpu = *train::flat_kernels_for(c10::kCPU);
  train::register_flat_kernels(c10::kCPU, new LosableKernels(cpu, step - 1));  // lives as long as the program
}

int run(std::vector<std::string> args) {
  const std::string command = args.empty() ? "" : args[0];
  if (command != "launch" && command != "train") fail(ExitCode::kUsage, "usage: lost_gpu launch|train ...");
  start_logging("info");
  args.erase(args.begin());
  if (command == "launch") return run_launch(args);
  lose_the_gpu_where_asked();
  return run_train(args);
}

}  // namespace
}  // namespace plimsoll

int main(int argc, char** argv) {
  try {
    return plimsoll::run(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const plimsoll::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
}
