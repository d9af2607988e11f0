#include "tests/ddp/conformance_program.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "core/error.h"
#include "tests/ddp/conformance.h"

namespace plimsoll::ddp {
namespace {

using namespace std::chrono_literals;

std::unique_ptr<Communicator>& holder() {
  static std::unique_ptr<Communicator> value;
  return value;
}

/// What stands on holder()'s, if anything does.
std::unique_ptr<Communicator>& standing() {
  static std::unique_ptr<Communicator> value;
  return value;
}

std::unique_ptr<Communicator> made_by(const StandOn& stand_on, Communicator& host) {
  return stand_on ? stand_on(host) : nullptr;
}

/// All ranks are children of the same daemon, which gives them one name.
std::filesystem::path scratch_folder() {
  return std::filesystem::temp_directory_path() / ("plimsoll-conformance-" + std::to_string(getppid()));
}

/// Stops the process a second from now, wherever it is then: as a debugger or a frozen container would.
void stop_in_a_second() {
  signal(SIGALRM, [](int) { raise(SIGSTOP); });
  alarm(1);
}

/// Rank 1's part of a fault. Returns when it goes on to the next collective after all.
void misbehave(std::string_view fault, Communicator& communicator) {
  if (fault == "killed") kill(getpid(), SIGKILL);
  if (fault == "late") std::this_thread::sleep_for(120s);
  if (fault == "slow") std::this_thread::sleep_for(3s);
  if (fault == "aborts") communicator.abort(4);
  if (fault == "exits") _exit(7);
  if (fault == "stops") stop_in_a_second();
}

/// A few good steps, then rank 1 misbehaves.
void take_steps(std::string_view fault, Communicator& communicator) {
  const int rank = communicator.rank();
  std::vector<float> values(100000, 1.0F);
  for (int step = 0; step < 5; ++step) {
    communicator.enter(step, "compute");
    if (rank == 1 && step == 3) misbehave(fault, communicator);
    // Rank 1 is to stop inside the collective: somebody must hold that up, and come.
    if (rank == 2 && step == 3 && fault == "stops") std::this_thread::sleep_for(2s);
    communicator.enter(step, "reduce");
    communicator.all_reduce_sum(values);
  }
  if (fault == "throws" && rank == 1) fail(ExitCode::kCheckpoint, "a rank's own trouble");
}

int run_fault(std::string_view fault, const std::string& folder, const StandOn& stand_on, double patience) {
  // Two faults are found by waiting; for the others a busy machine gets all the time it wants.
  auto host = make_mpi(folder, fault == "late" || fault == "stops" ? patience : 100.0);
  auto above = made_by(stand_on, *host);
  Communicator& communicator = above ? *above : *host;
  const int rank = communicator.rank();
  const auto note = [&](const std::string& text) {
    std::ofstream(folder + "/rank-" + std::to_string(rank)) << text << std::flush;
  };
  try {
    take_steps(fault, communicator);
    note("done");
    above.reset();
    host.reset();
    return 0;
  } catch (const Error& error) {
    const bool told = dynamic_cast<const PeerLeft*>(&error) != nullptr;
    note((told ? "told " : "") + std::to_string(static_cast<int>(error.code())) + " " + error.what());
    std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
    communicator.abort(static_cast<int>(error.code()));
    return 1;  // never reached
  }
}

int run_suite(int argc, char** argv, const StandOn& stand_on) {
  testing::InitGoogleTest(&argc, argv);
  holder() = make_mpi(scratch_folder().string(), 100.0, 4096);
  standing() = made_by(stand_on, *holder());
  if (tested().rank() != 0)
    delete testing::UnitTest::GetInstance()->listeners().Release(
        testing::UnitTest::GetInstance()->listeners().default_result_printer());
  // A silent rank's failure must show too: the worst result of all is everybody's.
  float failures = RUN_ALL_TESTS() == 0 ? 0.0F : 1.0F;
  tested().all_reduce_sum(std::span(&failures, 1));
  if (failures > 0.0F && tested().rank() == 0) std::printf("%g ranks failed\n", static_cast<double>(failures));
  const bool cleans_up = tested().rank() == 0;
  standing().reset();
  holder().reset();
  if (cleans_up) std::filesystem::remove_all(scratch_folder());
  return failures > 0.0F ? 1 : 0;
}

}  // namespace

Communicator& tested() { return standing() ? *standing() : *holder(); }

int run_conformance(int argc, char** argv, const StandOn& stand_on, double patience) {
  try {
    if (argc == 4 && std::string_view(argv[1]) == "--fault") return run_fault(argv[2], argv[3], stand_on, patience);
    return run_suite(argc, argv, stand_on);
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
}

}  // namespace plimsoll::ddp
