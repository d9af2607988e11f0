#pragma once
// What the measured peaks say about the predicted ones: per rank and class of plans, an offset and a scale that err on
// the safe side. Whole numbers; equal on every rank that saw the same reports. Pure; any thread.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "memory/planning/plan.h"

namespace plimsoll::memory {

/// Plans whose prediction errs alike: the powers of two of the micro-batch and of each tower's recomputed blocks (a
/// plan does not know how many blocks there are), offload, resolution. Fits 32 bits.
std::uint32_t shape_class(const Plan& plan);

class Calibration {
 public:
  /// One rank's largest shortfall in a class so far.
  struct Entry {
    int rank = 0;
    std::uint32_t shape_class = 0;
    std::int64_t offset_bytes = 0;  ///< largest (measured - predicted) seen, never below 0
    std::int64_t scale = 10000;     ///< largest measured / predicted in 1/10000, rounded up, never below 10000
    std::int64_t observations = 0;
    std::int64_t shortfalls = 0;  ///< observations in which more was measured than the correction before it allowed
    friend bool operator==(const Entry&, const Entry&) = default;
  };

  /// Takes in one comparison of the same step. Ignored when either is not positive.
  void observe(int rank, const Plan& plan, std::int64_t predicted, std::int64_t measured);
  /// The peak to reckon with: in a class that this rank has seen, predicted + its offset; in another, predicted times
  /// the largest scale of any class of this rank, rounded up. Never below `predicted`; a rank never heard of is taken
  /// at its word.
  std::int64_t corrected(int rank, const Plan& plan, std::int64_t predicted) const;

  /// corrected() of one plan for many ranks, in one walk over the entries.
  class Walk {
   public:
    /// `calibration` must outlive the walk and stay as it is.
    Walk(const Calibration& calibration, const Plan& plan);
    /// As corrected(). Each rank must be above that of the call before.
    std::int64_t corrected(int rank, std::int64_t predicted);

   private:
    const std::vector<Entry>& entries_;
    std::vector<Entry>::const_iterator at_;
    std::uint32_t shape_;
  };

  /// Sorted by rank, then class.
  const std::vector<Entry>& entries() const { return entries_; }
  /// Replaces all entries (from a checkpoint or a file). Throws Error(kCheckpoint) when a rank and class come twice, or
  /// a number is out of its range.
  void restore(std::vector<Entry> entries);
  /// All one-sided violations so far, over ranks and classes: a first observation counts against the bare prediction.
  std::int64_t shortfalls() const;
  /// Whether there are entries of each of the ranks 0..world-1 and of no other; or none at all.
  bool is_of_world(int world) const;
  /// The largest offset and scale of each class over all ranks, as rank 0..world-1: for a run with other ranks on the
  /// same machine. Its counts start at nothing.
  Calibration for_world(int world) const;
  friend bool operator==(const Calibration&, const Calibration&) = default;

 private:
  std::vector<Entry> entries_;
};

/// A file's text and back: `key` says for which model and machine it holds. Text that is damaged or of another key is
/// Error(kCheckpoint) saying which field; the caller warns and starts anew. `key` is plain text.
std::string to_json(const Calibration& calibration, std::string_view key);
Calibration calibration_from_json(std::string_view text, std::string_view key);

}  // namespace plimsoll::memory
