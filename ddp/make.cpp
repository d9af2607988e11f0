#include <cstdlib>
#include <string_view>

#include "core/error.h"
#include "ddp/communicator.h"

namespace plimsoll::ddp {
namespace {

std::string_view variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string_view() : value;
}

/// mpirun sets the first; srun --mpi=pmix the second, srun --mpi=pmi2 the third.
bool under_mpi() {
  return !variable("OMPI_COMM_WORLD_SIZE").empty() || !variable("PMIX_RANK").empty() || !variable("PMI_RANK").empty();
}

}  // namespace

std::unique_ptr<Communicator> make_communicator(const std::string& progress_dir, double timeout_seconds) {
  if (under_mpi()) return make_mpi(progress_dir, timeout_seconds);
  const std::string_view tasks = variable("SLURM_STEP_NUM_TASKS");
  // Each of these would train alone and write over the others' files.
  if (!tasks.empty() && tasks != "1") {
    fail(ExitCode::kUsage,
         "srun started {} tasks without MPI (SLURM_STEP_NUM_TASKS): start them with `srun --mpi=pmix` or with mpirun",
         tasks);
  }
  return make_solo();
}

}  // namespace plimsoll::ddp
