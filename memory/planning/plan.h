#pragma once
// A plan: all that the memory of a step depends on and that may change between steps. Equal on every rank.

#include <cstdint>
#include <string>

namespace plimsoll::memory {

struct Plan {
  int resolution = 0;        ///< pixels of an image's longer side; 0: images as they are
  int micro_batch = 1;       ///< most samples in one forward and backward
  int recompute_blocks = 0;  ///< first k blocks of the language model keep only their input
  int recompute_vision = 0;  ///< likewise of the vision tower; without adapters there it keeps nothing anyhow
  int recompute_expert = 0;  ///< likewise of the action expert
  bool offload = false;      ///< what recomputed language blocks keep lies in host memory outside the budget
  friend bool operator==(const Plan&, const Plan&) = default;
};

/// Whether anything is recomputed or offloaded.
bool saves_memory(const Plan& plan);
/// Whether both recompute and offload the same.
bool recomputes_alike(const Plan& a, const Plan& b);
/// The same with nothing recomputed and nothing offloaded: the fastest way to run a micro-batch, and the largest.
Plan plain(const Plan& plan);
/// Whether the model sees larger pictures under `a` than under `b`.
bool sharper(const Plan& a, const Plan& b);
/// 24-bit hash that fits a report slot.
std::uint32_t plan_hash(const Plan& plan);
/// "micro-batch 4, recompute 18 blocks, recompute 3 expert blocks, offloaded": what is not set is left out.
std::string to_string(const Plan& plan);

}  // namespace plimsoll::memory
