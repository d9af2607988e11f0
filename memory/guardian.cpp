#include "memory/guardian.h"

#include <c10/util/Exception.h>
#include <torch/torch.h>

#include <algorithm>
#include <exception>
#include <initializer_list>
#include <mutex>
#include <new>
#include <string_view>
#include <thread>
#include <unordered_map>

namespace plimsoll::memory {
namespace {

bool says_one_of(const c10::Error& error, std::initializer_list<std::string_view> names) {
  const std::string_view text = error.what_without_backtrace();
  return std::any_of(names.begin(), names.end(), [&](auto name) { return text.find(name) != text.npos; });
}

}  // namespace

bool is_out_of_memory() {
  try {
    throw;
  } catch (const c10::OutOfMemoryError&) {
    return true;
  } catch (const std::bad_alloc&) {
    return true;
  } catch (const c10::Error& error) {
    // Libraries below torch report their own full memory as ordinary errors.
    return says_one_of(
        error, {"CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED", "CUFFT_ALLOC_FAILED", "out of memory"});
  } catch (...) {
    return false;
  }
}

bool is_device_failure() {
  if (is_out_of_memory()) return false;  // CUDA's own "out of memory" is an AcceleratorError too
  try {
    throw;
  } catch (const c10::AcceleratorError&) {
    return true;
  } catch (const c10::Error& error) {
    // Where a library is the first to call a device that is lost, it says so in its own words.
    return says_one_of(error, {"CUBLAS_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_INTERNAL_ERROR",
                               "CUDNN_STATUS_EXECUTION_FAILED", "CUDNN_STATUS_INTERNAL_ERROR"});
  } catch (...) {
    return false;
  }
}

namespace {

/// A graph of one view of one element: the gradient of a view is a view, so running it allocates nothing. Made before
/// the graphs that fail, its node is older than theirs, and of the tasks in a queue the engine takes the oldest last.
struct OneElement {
  explicit OneElement(at::Device device)
      : leaf(torch::zeros({1}, at::TensorOptions(device)).requires_grad_(true)),
        root(leaf.view({1})),
        gradient(torch::zeros({1}, at::TensorOptions(device))) {}
  at::Tensor leaf, root, gradient;
};

const OneElement& one_element_on(at::Device device) {
  static std::mutex mutex;
  static auto& made = *new std::unordered_map<at::Device, OneElement>;  // a GPU's driver may be gone before statics are
  const std::lock_guard lock(mutex);
  const at::AutoGradMode grad(true);
  return made.try_emplace(device, device).first->second;
}

void run_backward_on(at::Device device) {
  const OneElement& one = one_element_on(device);
  torch::autograd::grad({one.root}, {one.leaf}, {one.gradient}, /*retain_graph=*/true);
}

void await_live(const DeviceMemory& memory, std::int64_t bytes, std::chrono::milliseconds longest) {
  constexpr std::chrono::milliseconds kPause{1};
  const auto until = std::chrono::steady_clock::now() + longest;
  while (memory.live() > bytes && std::chrono::steady_clock::now() < until) std::this_thread::sleep_for(kPause);
}

}  // namespace

void drain(at::Device device) {
  run_backward_on(at::kCPU);
  if (!device.is_cpu()) run_backward_on(device);
}

void clean_up(DeviceMemory& memory, std::int64_t live_before, const std::function<void()>& discard,
              std::chrono::milliseconds longest) {
  drain(memory.place());
  discard();
  memory.synchronize();
  await_live(memory, live_before, longest);
  memory.release_cached();
}

Guardian::Guardian(DeviceMemory& meter) : meter_(meter) { drain(meter.place()); }

GuardianReport Guardian::run(std::size_t samples, std::size_t micro_batch, const MicroBatchWork& work) {
  GuardianReport report;
  std::size_t limit = micro_batch;
  for (std::size_t done = 0; done < samples;) {
    const Piece piece = next_piece(done, samples, limit, work, report);
    if (try_piece(piece, work, report)) {
      done += piece.count;
      ++report.micro_batches;
      continue;
    }
    const std::size_t leaner = work.leaner ? work.leaner(piece) : 0;
    if (piece.count == 1 && leaner == 0 && !gives_up(work)) {
      report.failed = true;
      report.failed_sample = piece.begin;
      report.failed_peak = meter_.live() + work.predicted(piece, 0);
      return report;
    }
    // The rest of the share keeps the smaller limit: what did not fit once will hardly fit a moment later.
    limit = (piece.count + 1) / 2;
    if (leaner > 0) limit = std::min(limit, leaner);
    ++report.retries;
  }
  return report;
}

bool Guardian::gives_up(const MicroBatchWork& work) {
  if (!work.give_up || work.give_up() == 0) return false;
  meter_.release_cached();
  return true;
}

Piece Guardian::next_piece(std::size_t begin, std::size_t samples, std::size_t limit, const MicroBatchWork& work,
                           GuardianReport& report) {
  const std::int64_t live = meter_.live();
  const std::int64_t room = meter_.budget() - live;
  Piece piece{begin, std::min(limit, samples - begin)};
  if (work.most) piece.count = std::clamp<std::size_t>(work.most(begin), 1, piece.count);
  std::int64_t needed = work.predicted(piece, room);
  const bool split = piece.count > 1 && needed > room;
  while (piece.count > 1 && needed > room) {
    --piece.count;
    needed = work.predicted(piece, room);
  }
  report.splits += split ? 1 : 0;
  report.predicted_peak = std::max(report.predicted_peak, live + needed);
  return piece;
}

bool Guardian::try_piece(Piece piece, const MicroBatchWork& work, GuardianReport& report) {
  const std::int64_t live = meter_.live();
  try {
    work.attempt(piece);
    return true;
  } catch (const std::exception& error) {
    if (!is_out_of_memory()) throw;
    const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
    report.error = torch_error != nullptr ? torch_error->msg() : error.what();
  }
  // Only here, outside the catch block: the exception itself can hold tensors of the dead graph.
  clean_up(meter_, live, [&work] { work.discard(); });
  report.failed_request = meter_.take_failed_request();
  if (after_drain) after_drain(live, meter_.live());
  return false;
}

}  // namespace plimsoll::memory
