#include "memory/planning/plan.h"

#include <fmt/format.h>

namespace plimsoll::memory {
namespace {

/// The finaliser of MurmurHash3 (Appleby, public domain): every bit of the input moves half of the output's.
constexpr std::uint64_t stir(std::uint64_t value) {
  value = (value ^ (value >> 33)) * 0xFF51AFD7ED558CCDU;
  value = (value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53U;
  return value ^ (value >> 33);
}

/// ", recompute 3 expert blocks"; empty for none. `tower` is "" for the language model, else ends in a blank.
std::string recompute_text(int blocks, const char* tower) {
  if (blocks == 0) return "";
  return fmt::format(", recompute {} {}block{}", blocks, tower, blocks == 1 ? "" : "s");
}

}  // namespace

bool sharper(const Plan& a, const Plan& b) {
  return b.resolution != 0 && (a.resolution == 0 || a.resolution > b.resolution);
}

bool saves_memory(const Plan& plan) { return plan != plain(plan); }

bool recomputes_alike(const Plan& a, const Plan& b) {
  Plan other = a;
  other.micro_batch = b.micro_batch;
  other.resolution = b.resolution;
  return other == b;
}

Plan plain(const Plan& plan) { return {plan.resolution, plan.micro_batch}; }

std::uint32_t plan_hash(const Plan& plan) {
  std::uint64_t hash = 0x506C696D736F6C6CU;
  for (int value : {plan.resolution, plan.micro_batch, plan.recompute_blocks, plan.recompute_vision,
                    plan.recompute_expert, static_cast<int>(plan.offload)}) {
    hash = stir(hash + 0x9E3779B97F4A7C15U + static_cast<std::uint32_t>(value));
  }
  return static_cast<std::uint32_t>(hash & 0xFFFFFFU);
}

std::string to_string(const Plan& plan) {
  std::string redone = recompute_text(plan.recompute_blocks, "") + recompute_text(plan.recompute_vision, "vision ") +
                       recompute_text(plan.recompute_expert, "expert ");
  if (redone.empty()) redone = ", nothing recomputed";
  const std::string rest =
      fmt::format("micro-batch {}{}{}", plan.micro_batch, redone, plan.offload ? ", offloaded" : "");
  return plan.resolution == 0 ? rest : fmt::format("resolution {} px, {}", plan.resolution, rest);
}

}  // namespace plimsoll::memory
