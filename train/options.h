#pragma once
// From the configuration's words to the options of the parts.

#include <cstdint>
#include <span>

#include "data/sample_source.h"
#include "memory/planning/policy.h"
#include "model/vla.h"
#include "train/config.h"
#include "train/step.h"

namespace plimsoll::train {

/// [model], [lora], [expert], [sensor] and train.stage, and the widths that the data source has. model/vla.h checks
/// them.
model::VlaOptions vla_options(const Config& config, const data::SampleDims& dims);
/// memory.target in 1/10000 of the budget; memory::automatic_target() for "auto", the reactive policy's with the
/// classic profile. Throws Error(kUsage) naming the key.
std::int64_t target_of(const memory::MemoryConfig& config);
/// [memory] and the bounds in [batch] and [data], in the policy's whole numbers. Throws Error(kUsage) as memory::check
/// does.
memory::PolicyConfig policy_config(const Config& config);
/// What the predictive policy may lower data.resolution to, highest first; nothing where resolution is no knob.
std::vector<int> lower_resolutions(const Config& config);
/// The effective batch and the optimiser's settings; learning rates at factor 1.
StepOptions step_options(const Config& config);
/// What such a model's steps sum beside gradients, for samples of so many types ([tasks]; 0: they have none), over so
/// many ranks.
SumSlots sum_slots(const Config& config, const model::VlaOptions& model, std::size_t types, int world);

/// Bytes that rank `rank` may use: its entry of memory.budget, or the only one. `available` is what the node has for
/// one of its ranks ("auto", and what a fraction is a fraction of). Throws Error(kUsage) naming memory.budget when
/// there are neither one nor `world` entries, or the size is above the `machine`'s memory.
std::int64_t rank_budget(const memory::MemoryConfig& config, int rank, int world, std::int64_t available,
                         std::int64_t machine);

/// Whether that entry is a size, which is taken as it is, and not "auto" or a fraction.
bool budget_is_a_size(const memory::MemoryConfig& config, int rank);

/// What a card of memory.card bytes leaves each of the ranks that share it, which hold `overhead` each outside of their
/// allocators; at most `available`, what there is for one of them. `available` itself for "auto". Throws Error(kUsage)
/// naming memory.card when the overhead leaves nothing of it, or the `machine` has no such card.
std::int64_t left_by_card(const memory::MemoryConfig& config, std::int64_t overhead, int sharers,
                          std::int64_t available, std::int64_t machine);

/// The new budget of a change, of `budget` at start.
/// Throws Error(kUsage) for a change of a rank that is not there, or to more than the machine has.
void check_budget_changes(const memory::MemoryConfig& config, int world, std::int64_t machine);
std::int64_t changed_budget(const memory::BudgetChange& change, std::int64_t budget);

/// Blocks to recompute for memory.recompute "none", "all" or a number; nothing for "auto". Throws Error(kUsage) when
/// there are fewer blocks.
std::optional<int> configured_recompute(const memory::MemoryConfig& config, int language_blocks);

/// Bytes of this machine's memory that are free now (train/host_memory.h), divided by the ranks on it.
std::int64_t available_memory(int local_ranks);

/// All memory of this machine, or of the container or job that this is in.
std::int64_t machine_memory();

/// Whether memory.knobs names it.
bool turns(const Config& config, const char* knob);
/// The threads of tensor operations: run.threads, or the cores divided by the ranks.
void set_threads(const RunConfig& config, int world);
/// "Some CPU, 8 cores": what times depend on.
std::string processor_name();

/// Steps of so many draws: those that are whole, at least one.
std::int64_t steps_of(std::int64_t draws, std::int64_t effective_batch);
/// Steps of the run: train.max_steps, or those of its epochs.
std::int64_t total_steps(const Config& config, std::int64_t training_samples);

}  // namespace plimsoll::train
