#pragma once
// Who am I, and the few collectives that the ranks use. One implementation each for a single process and for MPI (host
// memory); NCCL joins them later.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace plimsoll::ddp {

/// All calls come from the main thread of a rank, in the same order on every rank. A peer that is lost or late ends in
/// Error(kPeer) that names the ranks behind, after which abort() is the only call allowed.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int world() const = 0;
  /// Position among the ranks of this node: the device to use.
  virtual int local_rank() const = 0;
  /// Sums `values` element by element over the ranks, in place. Host memory. Results are bit-equal on all ranks.
  virtual void all_reduce_sum(std::span<float> values) = 0;
  /// Copies root's bytes to every rank. Sizes are equal on all ranks.
  virtual void broadcast(std::span<std::byte> bytes, int root) = 0;
  /// Every rank's bytes (equal sizes), concatenated in rank order, on every rank. For the start and for checkpoints,
  /// never in a step.
  virtual std::vector<std::byte> all_gather(std::span<const std::byte> bytes) = 0;
  virtual void barrier() = 0;
  /// Tells the peers (through the shared progress file) where this rank is; cheap, called several times a step.
  virtual void enter(std::int64_t step, const char* phase) = 0;
  /// Ends all ranks at once with `exit_code`. Does not return.
  [[noreturn]] virtual void abort(int exit_code) = 0;
  /// "solo", "mpi".
  virtual std::string name() const = 0;
};

/// World 1, no MPI.
std::unique_ptr<Communicator> make_solo();
/// OpenMPI's world. Calls MPI_Init. `progress_dir` is a folder that all ranks of the node see; `timeout_seconds` bounds
/// a collective until the longest step seen times ten is longer.
std::unique_ptr<Communicator> make_mpi(const std::string& progress_dir, double timeout_seconds);
/// MPI when started by mpirun or srun (OMPI_COMM_WORLD_SIZE, SLURM with PMI), else solo.
std::unique_ptr<Communicator> make_communicator(const std::string& progress_dir, double timeout_seconds);

}  // namespace plimsoll::ddp
