#include "data/loader.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "core/error.h"
#include "data/frame_cache.h"
#include "data/pixel_buffers.h"
#include "data/sample_stream.h"

namespace plimsoll::data {
namespace {

enum class Phase { kQueued, kLoading, kReady, kFailed };

/// A sample of the window. `ticket` tells a slot from an earlier one at the same position.
struct Slot {
  std::int64_t index = 0;
  std::uint64_t ticket = 0;
  Phase phase = Phase::kQueued;
  std::shared_ptr<const Sample> sample;
  std::int64_t bytes = 0;  ///< host memory that it takes
  std::exception_ptr error;
};

/// Host memory that a sample's values take.
std::int64_t host_bytes(const Sample& s) {
  const auto size = [](const auto& values) { return values.size() * sizeof(values[0]); };
  return static_cast<std::int64_t>(size(s.vlm.input_ids) + size(s.vlm.position_ids) + size(s.vlm.image_grid_thw) +
                                   size(s.vlm.pixel_values) + size(s.vlm.image_features) + size(s.vlm.hidden_states) +
                                   size(s.state) + size(s.sensor) + size(s.actions) + size(s.action_is_pad) +
                                   s.instruction.size());
}

/// Of the bytes that may be held, what decoded frames may take. The larger part is the samples': frames save time only
/// where one comes again soon.
std::int64_t most_frame_bytes(std::int64_t most_bytes) {
  return most_bytes == 0 ? kFrameBytes : std::min(kFrameBytes, most_bytes / 8);
}

/// A sample whose pixel values are room for another's when it goes.
std::shared_ptr<const Sample> reusable(Sample sample) {
  return {new Sample(std::move(sample)), [](Sample* gone) {
            spare_pixels().give(std::move(gone->vlm.pixel_values));
            delete gone;
          }};
}

/// What a worker was given to do.
struct Job {
  std::uint64_t position = 0, ticket = 0;
  std::int64_t index = 0, resolution = -1;
};

}  // namespace

struct Loader::Parts {
  Parts(const SampleSource& from, const LoaderOptions& chosen)
      : source(from),
        options(chosen),
        stream(chosen.order ? SampleStream(chosen.order) : SampleStream(from.training(), chosen.seed)) {
    if (options.workers < 1) fail(ExitCode::kUsage, "data.workers is {}, but must be at least 1", options.workers);
    if (options.prefetch < 0) fail(ExitCode::kUsage, "data.prefetch is {}, but must be at least 0", options.prefetch);
    decoded_frames().set_most_bytes(most_frame_bytes(options.most_bytes));
    spare_pixels().set_most_bytes(options.most_bytes == 0 ? kSpareBytes : 0);
    go_to(options.first_step);
    resize(options.workers);
  }

  ~Parts() { resize(0); }

  // Under the lock: the window of steps [step, step + prefetch] of this rank.

  void go_to(std::int64_t first) {
    slots.clear();
    held = 0;
    step = next_step = first;
    extend();
  }

  std::vector<std::uint64_t> share(std::int64_t of_step) const {
    if (options.share) return options.share(of_step);
    const StreamRange range = share_of_step(of_step, options.effective_batch, options.rank, options.world);
    std::vector<std::uint64_t> positions;
    for (std::uint64_t position = range.begin; position < range.end; ++position) positions.push_back(position);
    return positions;
  }

  void extend() {
    for (; next_step <= step + options.prefetch; ++next_step) {
      for (const std::uint64_t position : share(next_step))
        slots[position] = {stream.at(position), ++tickets, Phase::kQueued, nullptr, 0, nullptr};
    }
    work.notify_all();
  }

  void advance_to(std::int64_t wanted) {
    if (wanted == step) return;
    if (wanted < step || wanted >= next_step) return go_to(wanted);
    step = wanted;
    const auto end = slots.lower_bound(begin_of(step));
    for (auto slot = slots.begin(); slot != end; ++slot) held -= slot->second.bytes;
    slots.erase(slots.begin(), end);
    extend();
  }

  std::uint64_t begin_of(std::int64_t of_step) const {
    return static_cast<std::uint64_t>((of_step - 1) * options.effective_batch);
  }

  /// As if what is being loaded, and one more, became as large as the largest so far; before there is one, it is found
  /// out with one sample. Where that left decoded frames, as if they took all that they may.
  bool has_room() const {
    if (options.most_bytes == 0) return true;
    if (largest == 0) return loading == 0;
    const FrameCache& frames = decoded_frames();
    const std::int64_t of_frames = frames.bytes() > 0 ? frames.most_bytes() : 0;
    return held + of_frames + (loading + 1) * largest <= options.most_bytes;
  }

  bool take_job(Job& job) {
    // What was queued under a larger prefetch waits until it lies in the window again.
    const std::uint64_t ahead = begin_of(step + 1), end = begin_of(step + options.prefetch + 1);
    for (auto& [position, slot] : slots) {
      if (position >= end) return false;
      if (slot.phase != Phase::kQueued) continue;
      if (position >= ahead && !has_room()) return false;
      slot.phase = Phase::kLoading;
      ++loading;
      note_peak();
      job = {position, slot.ticket, slot.index, options.resolution};
      return true;
    }
    return false;
  }

  void store(const Job& job, std::shared_ptr<const Sample> sample, std::exception_ptr error) {
    --loading;
    const auto found = slots.find(job.position);
    if (found == slots.end() || found->second.ticket != job.ticket) return;  // nobody wants it any more
    Slot& slot = found->second;
    slot.phase = error ? Phase::kFailed : Phase::kReady;
    slot.bytes = sample ? host_bytes(*sample) : 0;
    slot.sample = std::move(sample);
    slot.error = std::move(error);
    held += slot.bytes;
    largest = std::max(largest, slot.bytes);
    note_peak();
    ready.notify_all();
  }

  void note_peak() { most_held = std::max(most_held, held + loading * largest + decoded_frames().bytes()); }

  // Without the lock.

  std::shared_ptr<const Sample> load(const Job& job) const {
    try {
      const std::int64_t resolution = job.resolution < 0 ? source.own_resolution() : job.resolution;
      return reusable(source.load_drawn(job.position, job.index, resolution));
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("sample {}: {}", job.index, error.what()));
    }
  }

  void run(std::size_t number) {
    std::unique_lock lock(mutex);
    for (;;) {
      Job job;
      work.wait(lock, [&] { return number >= wanted_workers || take_job(job); });
      if (number >= wanted_workers && job.ticket == 0) return;
      lock.unlock();
      std::shared_ptr<const Sample> sample;
      std::exception_ptr error;
      const auto start = std::chrono::steady_clock::now();
      try {
        sample = load(job);
      } catch (...) {
        error = std::current_exception();
      }
      const auto took = std::chrono::steady_clock::now() - start;
      lock.lock();
      load_time += took;
      store(job, std::move(sample), std::move(error));
    }
  }

  void resize(int workers) {
    {
      const std::lock_guard lock(mutex);
      wanted_workers = static_cast<std::size_t>(workers);
    }
    work.notify_all();
    for (std::size_t i = wanted_workers; i < threads.size(); ++i) threads[i].join();
    threads.resize(std::min(threads.size(), wanted_workers));
    while (threads.size() < wanted_workers) threads.emplace_back([this, number = threads.size()] { run(number); });
  }

  std::shared_ptr<const Sample> get(std::uint64_t position) {
    std::unique_lock lock(mutex);
    advance_to(static_cast<std::int64_t>(position / static_cast<std::uint64_t>(options.effective_batch)) + 1);
    const auto found = slots.find(position);
    if (found == slots.end())
      fail(ExitCode::kUsage, "position {} of the sample stream belongs to another rank than {} of {}", position,
           options.rank, options.world);
    Slot& slot = found->second;  // stays where it is: only this thread removes slots
    if (slot.phase == Phase::kQueued || slot.phase == Phase::kLoading) {
      const auto start = std::chrono::steady_clock::now();
      ready.wait(lock, [&] { return slot.phase == Phase::kReady || slot.phase == Phase::kFailed; });
      waited += std::chrono::steady_clock::now() - start;
    }
    if (slot.phase == Phase::kReady) return slot.sample;
    slot.phase = Phase::kQueued;
    const auto error = std::exchange(slot.error, nullptr);
    work.notify_one();
    std::rethrow_exception(error);
  }

  const SampleSource& source;
  LoaderOptions options;
  SampleStream stream;
  std::mutex mutex;
  std::condition_variable work, ready;
  std::map<std::uint64_t, Slot> slots;  // by position
  std::int64_t step = 1, next_step = 1;
  std::uint64_t tickets = 0;
  std::int64_t held = 0, largest = 0, loading = 0;  // bytes, bytes of a sample, samples
  std::int64_t most_held = 0;                       // bytes, with those of samples being loaded
  std::size_t wanted_workers = 0;
  std::vector<std::thread> threads;
  std::chrono::nanoseconds waited{0}, load_time{0};
};

Loader::Loader(const SampleSource& source, const LoaderOptions& options)
    : parts_(std::make_unique<Parts>(source, options)) {}
Loader::~Loader() = default;

std::shared_ptr<const Sample> Loader::get(std::uint64_t position) { return parts_->get(position); }

void Loader::seek(std::int64_t step) {
  const std::lock_guard lock(parts_->mutex);
  parts_->go_to(step);
}

void Loader::set_workers(int workers) {
  if (workers < 1) fail(ExitCode::kUsage, "data.workers is {}, but must be at least 1", workers);
  parts_->resize(workers);
}

void Loader::set_prefetch(std::int64_t steps) {
  const std::lock_guard lock(parts_->mutex);
  parts_->options.prefetch = std::max<std::int64_t>(0, steps);
  // What is loaded beyond a smaller window stays: dropping it would load it twice.
  parts_->extend();
}

void Loader::set_resolution(std::int64_t resolution) {
  const std::lock_guard lock(parts_->mutex);
  if (parts_->options.resolution == resolution) return;
  parts_->options.resolution = resolution;
  parts_->go_to(parts_->step);
}

std::int64_t Loader::most_bytes() const { return parts_->options.most_bytes; }

std::int64_t Loader::held_bytes() const {
  const std::lock_guard lock(parts_->mutex);
  return parts_->held + decoded_frames().bytes();
}

LoaderPeak Loader::peak() const {
  const std::lock_guard lock(parts_->mutex);
  return {parts_->most_held, parts_->largest};
}

std::chrono::nanoseconds Loader::waited() const { return parts_->waited; }

std::chrono::nanoseconds Loader::load_time() const {
  const std::lock_guard lock(parts_->mutex);
  return parts_->load_time;
}

}  // namespace plimsoll::data
