#pragma once
// What every Communicator must do, written once: tests/ddp/solo_test.cpp runs it alone, tests/ddp/mpi_conformance.cpp
// under mpirun.

#include "ddp/communicator.h"

namespace plimsoll::ddp {

/// The communicator under test; the program that includes the suite defines it. Lives until the program ends.
Communicator& tested();

}  // namespace plimsoll::ddp
