#pragma once
// Programs on one machine that work by turns, so that whatever else the machine does hits all of them alike.

#include <fcntl.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <new>
#include <string>

#include "core/error.h"

namespace plimsoll::bench {

/// What all of them see, in a file that each maps.
struct TurnsFile {
  static constexpr std::size_t kPrograms = 8, kRanks = 2, kRaces = 4096;
  std::array<std::array<sem_t, kRanks>, kPrograms> turn;  ///< one for each process
  /// By race and program: the number of the turn in which it was done, counting those of all; 0: it is not.
  std::array<std::array<std::atomic<std::uint32_t>, kPrograms>, kRaces> done;
};

/// One process of one of the programs: a rank of it.
class Turns {
 public:
  /// Makes the file for all; before any of them is started.
  static void create(const std::string& path) {
    auto* file = new (map(path, O_CREAT | O_EXCL | O_RDWR)) TurnsFile{};
    for (auto& program : file->turn)
      for (sem_t& rank : program) sem_init(&rank, 1, &program == &file->turn.front() ? 1 : 0);
    munmap(file, sizeof(TurnsFile));
  }

  Turns(const std::string& path, std::size_t programs, std::size_t program, int rank)
      : file_(*static_cast<TurnsFile*>(map(path, O_RDWR))),
        programs_(programs),
        program_(program),
        rank_(static_cast<std::size_t>(rank)),
        turn_(static_cast<std::uint32_t>(program) + 1) {
    if (programs > TurnsFile::kPrograms || program >= programs || rank_ >= TurnsFile::kRanks)
      fail(ExitCode::kUsage, "{} programs of {} ranks at most take turns", TurnsFile::kPrograms, TurnsFile::kRanks);
  }
  ~Turns() { munmap(&file_, sizeof(TurnsFile)); }
  Turns(const Turns&) = delete;
  Turns& operator=(const Turns&) = delete;

  /// Calls `go` in every turn of this program until it says that nothing is left, then waits for the others. All ranks
  /// of a program call it alike, and `go` ends on all of them together.
  void race(const std::function<bool()>& go) {
    if (race_ == TurnsFile::kRaces) fail(ExitCode::kUsage, "more than {} races: ask for less", TurnsFile::kRaces);
    for (bool more = true, racing = true; racing; turn_ += static_cast<std::uint32_t>(programs_)) {
      while (sem_wait(&file_.turn[program_][rank_]) != 0 && errno == EINTR) continue;
      racing = !all_done();
      if (more && !(more = go()) && rank_ == 0) file_.done[race_][program_] = turn_;
      if (rank_ == 0)
        for (sem_t& next : file_.turn[(program_ + 1) % programs_]) sem_post(&next);
    }
    ++race_;
  }

 private:
  static void* map(const std::string& path, int flags) {
    const int file = ::open(path.c_str(), flags, 0600);
    if (file < 0 || ::ftruncate(file, sizeof(TurnsFile)) != 0)
      fail(ExitCode::kUsage, "{}: cannot be opened to take turns", path);
    void* mapped = ::mmap(nullptr, sizeof(TurnsFile), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    ::close(file);
    if (mapped == MAP_FAILED) fail(ExitCode::kUsage, "{}: cannot be mapped", path);
    return mapped;
  }

  /// Before this turn: a rank that comes late sees what the first one saw.
  bool all_done() const {
    for (std::size_t other = 0; other < programs_; ++other) {
      const std::uint32_t turn = file_.done[race_][other];
      if (turn == 0 || turn >= turn_) return false;
    }
    return true;
  }

  TurnsFile& file_;
  std::size_t programs_, program_, rank_;
  std::uint32_t turn_;
  std::size_t race_ = 0;
};

}  // namespace plimsoll::bench
