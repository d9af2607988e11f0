#pragma once
// The main part of the programs that mpirun starts: tests/ddp/mpi_conformance.cpp, and
// tests/train/device_conformance.cpp for the memory of GPUs. Without --fault they run the conformance suite, with
// messages cut into small pieces so that cutting is tried too. With --fault NAME FOLDER rank 1 misbehaves, and the
// others write to FOLDER/rank-<n> how they noticed (tests/ddp/faults_test.cpp).

#include <functional>
#include <memory>

#include "ddp/communicator.h"

namespace plimsoll::ddp {

/// What is tested stands on MPI's communicator, which outlives it. Null, or one that gives null: MPI's own is tested.
using StandOn = std::function<std::unique_ptr<Communicator>(Communicator& host)>;

/// The whole program; returns its exit code, the same on every rank of a suite. `patience`: the timeout in seconds of
/// those faults that are found by waiting.
int run_conformance(int argc, char** argv, const StandOn& stand_on, double patience = 5.0);

}  // namespace plimsoll::ddp
