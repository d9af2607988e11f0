#include "memory/guardian.h"

#include <c10/util/Exception.h>
#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <exception>
#include <new>
#include <string_view>

namespace plimsoll::memory {

bool is_out_of_memory() {
  try {
    throw;
  } catch (const c10::OutOfMemoryError&) {
    return true;
  } catch (const std::bad_alloc&) {
    return true;
  } catch (const c10::Error& error) {
    // Libraries below torch report their own full memory as ordinary errors.
    constexpr std::array<std::string_view, 4> kNames = {"CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED",
                                                        "CUFFT_ALLOC_FAILED", "out of memory"};
    const std::string_view text = error.what_without_backtrace();
    return std::any_of(kNames.begin(), kNames.end(), [&](auto name) { return text.find(name) != text.npos; });
  } catch (...) {
    return false;
  }
}

void drain(at::Device device) {
  const at::AutoGradMode grad(true);
  const auto run_one_on = [](at::Device where) {
    const at::Tensor one = torch::zeros({1}, at::TensorOptions(where)).requires_grad_(true);
    (one * 2).backward();
  };
  run_one_on(at::kCPU);
  if (!device.is_cpu()) run_one_on(device);
}

void clean_up(DeviceMemory& memory, const std::function<void()>& discard) {
  memory.release_cached();  // or a device that is full to the last byte has none for the drain's own
  drain(memory.place());
  discard();
  memory.synchronize();
  memory.release_cached();
}

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
  clean_up(meter_, [&work] { work.discard(); });
  report.failed_request = meter_.take_failed_request();
  if (after_drain) after_drain(live, meter_.live());
  return false;
}

}  // namespace plimsoll::memory
