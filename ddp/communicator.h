#pragma once
// Who am I, and the few collectives that the ranks use. One implementation each for a single process and for MPI (host
// memory); those for a device's memory stand on one of them (ddp/device_communicator.h).

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/error.h"

namespace plimsoll::ddp {

/// Another rank ended the run by abort(): its exit code, but its own message and exit record say why.
class PeerLeft : public Error {
 public:
  using Error::Error;
};

/// All calls come from the main thread of a rank, in the same order on every rank. A peer that is lost or late ends in
/// Error(kPeer) that names the ranks behind; a peer of this node that called abort(code) ends in PeerLeft(code) naming
/// it, so that all ranks leave with the culprit's exit code. After either, abort() is the only call allowed: buffers
/// given to the broken collective may still be written to until the process ends.
///
/// The end: destroying the communicator passes a last barrier, so finish durable work before. Destroyed by an exception
/// that unwinds the stack, it does not wait for the peers. A rank that fails alone catches its Error while the
/// communicator lives and calls abort(error.code()); merely exiting would leave the others waiting until their timeout.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int world() const = 0;
  /// Position among the ranks of this node: the device to use.
  virtual int local_rank() const = 0;
  /// Sums `values` element by element over the ranks, in place. Host memory, or that of the device which the
  /// communicator is for. Results are bit-equal on all ranks.
  virtual void all_reduce_sum(std::span<float> values) = 0;
  /// Copies root's bytes to every rank. Sizes are equal on all ranks.
  virtual void broadcast(std::span<std::byte> bytes, int root) = 0;
  /// Every rank's bytes (equal sizes), concatenated in rank order, on every rank. For the start and for checkpoints,
  /// never in a step.
  virtual std::vector<std::byte> all_gather(std::span<const std::byte> bytes) = 0;
  virtual void barrier() = 0;
  /// Tells the peers (through the shared progress file) where this rank is; cheap, called several times a step.
  virtual void enter(std::int64_t step, const char* phase) = 0;
  /// For waits outside of this class (a device's collective), every now and then: throws what a collective of this
  /// class would when a peer is lost or has left, or when `waited` seconds are longer than the timeout.
  virtual void watch_peers(const char* doing, double waited) {
    static_cast<void>(doing);
    static_cast<void>(waited);
  }
  /// Ends all ranks with `exit_code`, which this process leaves with. Peers of this node that wait in a collective are
  /// given two seconds to notice and to leave by themselves; then all are killed. Does not return, runs no destructors.
  [[noreturn]] virtual void abort(int exit_code) = 0;
  /// "solo", "mpi", "nccl", ...
  virtual std::string name() const = 0;
};

/// World 1, no MPI.
std::unique_ptr<Communicator> make_solo();
/// OpenMPI's world. Calls MPI_Init, so one may live at a time and none can be made after it is gone (Error(kUsage)).
/// Collectives are non-blocking and polled with back-off, since ranks may share a core. `progress_dir` is a folder that
/// all ranks of the node see, made if absent; `timeout_seconds` bounds the wait in a collective until the longest step
/// seen (by enter()) times ten is longer. Larger messages than `chunk_bytes` travel in pieces: MPI counts with int. As
/// root, OpenMPI wants the environment variables OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; with
/// more ranks than cores, mpirun wants --oversubscribe.
std::unique_ptr<Communicator> make_mpi(const std::string& progress_dir, double timeout_seconds,
                                       std::int64_t chunk_bytes = std::int64_t{64} << 20);
/// MPI when started by mpirun or srun (OMPI_COMM_WORLD_SIZE, SLURM with PMI), else solo.
std::unique_ptr<Communicator> make_communicator(const std::string& progress_dir, double timeout_seconds);

}  // namespace plimsoll::ddp
