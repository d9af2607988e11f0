#pragma once
// Loader threads: they keep the samples of the coming steps ready in host memory, in the order of the sample stream.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/sample.h"
#include "data/sample_source.h"
#include "data/sample_stream.h"

namespace plimsoll::data {

struct LoaderOptions {
  int workers = 1;                   ///< threads, at least 1
  std::int64_t prefetch = 2;         ///< steps held ready beyond the one being used; 0: only that one
  std::int64_t effective_batch = 1;  ///< samples of a step over all ranks
  int rank = 0, world = 1;
  std::uint64_t seed = 0;                    ///< of the stream (SampleStream) of the source's training samples
  std::shared_ptr<const StreamOrder> order;  ///< in place of those: what the stream draws; null: just them
  std::int64_t resolution = -1;              ///< of SampleSource::load_at; -1: the source's own
  std::int64_t first_step = 1;               ///< where to begin, from 1
  /// Bytes that are held, of samples and of decoded frames (data/frame_cache.h): beyond the step being used no sample
  /// is begun that might pass them. The frames' part of them is an eighth, and kFrameBytes at most. 0: any of samples,
  /// kFrameBytes of frames, and kSpareBytes of samples that have gone (data/pixel_buffers.h).
  std::int64_t most_bytes = 0;
  /// Positions of the stream that this rank draws in a step, ascending and all within the step; null: share_of_step().
  /// Called by the consumer's thread only.
  std::function<std::vector<std::uint64_t>(std::int64_t step)> share;
};

/// What a loader has held since it was made.
struct LoaderPeak {
  std::int64_t held = 0;    ///< bytes at most at once: as held_bytes(), and each sample being loaded as the largest
  std::int64_t sample = 0;  ///< bytes of the largest sample
};

/// Memory: this rank's samples of `prefetch` + 1 steps, whatever the number of workers, and decoded frames; together no
/// more than `most_bytes` unless one step takes more. What get() returns never depends on workers or prefetch. One
/// consumer thread calls the members; stopping, seeking and destroying are safe at any moment and wait for the samples
/// being loaded right then.
class Loader {
 public:
  /// `source` must outlive it and have training samples.
  Loader(const SampleSource& source, const LoaderOptions& options);
  ~Loader();

  /// The sample at `position` of the stream, waiting for it if need be. It stays at hand until a later step is asked
  /// for, so a step may be replayed. A position elsewhere in the stream is sought. What went wrong while loading it is
  /// thrown here: Error with the sample's number in front; other samples are not affected, and asking again tries
  /// again. Error(kUsage) for a position of another rank.
  std::shared_ptr<const Sample> get(std::uint64_t position);

  /// Forgets everything and goes on from `step` (from 1).
  void seek(std::int64_t step);
  /// Changes the number of threads while running.
  void set_workers(int workers);
  void set_prefetch(std::int64_t steps);
  /// From now on samples have this resolution; those loaded with another are forgotten.
  void set_resolution(std::int64_t resolution);
  /// Bytes of the samples that are held now, those of the step being used among them, and of decoded frames.
  std::int64_t held_bytes() const;
  LoaderPeak peak() const;
  std::int64_t most_bytes() const;
  /// Time that get() has waited in all.
  std::chrono::nanoseconds waited() const;
  /// Time that loading has taken in all, added up over the threads, whether or not anybody waited for it.
  std::chrono::nanoseconds load_time() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace plimsoll::data
