#pragma once
// What every Communicator must do, written once: tests/ddp/solo_test.cpp runs it alone, tests/ddp/mpi_conformance.cpp
// under mpirun, tests/train/device_conformance.cpp there in the memory of GPUs. Each holds that the name is the right
// one.

#include "ddp/communicator.h"

namespace plimsoll::ddp {

/// The communicator under test; the program that includes the suite defines it. Lives until the program ends.
Communicator& tested();

}  // namespace plimsoll::ddp
