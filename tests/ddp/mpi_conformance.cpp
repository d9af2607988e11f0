// The conformance suite under mpirun, and the ways in which a run can break (tests/ddp/conformance_program.h); with
// PLIMSOLL_STAGED=1 in the environment through a buffer as for a device, whose memory is the host's here.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "ddp/device_communicator.h"
#include "tests/ddp/conformance.h"
#include "tests/ddp/conformance_program.h"

namespace plimsoll::ddp {
namespace {

bool is_staged() { return std::getenv("PLIMSOLL_STAGED") != nullptr; }

DeviceCopies host_copies() {
  return {[](std::span<const float> device, float* host) { std::ranges::copy(device, host); },
          [](std::span<const float> host, float* device) { std::ranges::copy(host, device); },
          [](std::size_t floats) { return std::make_shared<float[]>(floats); }};
}

std::unique_ptr<Communicator> staged_if_wanted(Communicator& host) {
  return is_staged() ? make_staged(host, host_copies()) : nullptr;
}

TEST(MpiConformance, ItsNameSaysHowItReduces) { EXPECT_EQ(tested().name(), is_staged() ? "mpi, staged" : "mpi"); }

}  // namespace
}  // namespace plimsoll::ddp

int main(int argc, char** argv) { return plimsoll::ddp::run_conformance(argc, argv, &plimsoll::ddp::staged_if_wanted); }
