#pragma once
// A small file, mapped by all ranks of a node, in which each says where it is. MPI cannot tell who is late, and a
// process that was killed says nothing at all: this file can tell both, without any message.

#include <cstdint>
#include <string>

namespace plimsoll::ddp {

enum class RankState : std::int32_t {
  kElsewhere = 0,  ///< no rank of this node
  kRunning = 1,
  kFinished = 2,  ///< passed the last barrier: may be gone without harm
  kLeaving = 3,   ///< ends the run with exit_code: the others should leave too
};

/// What a rank's record says at one moment.
struct RankView {
  RankState state = RankState::kElsewhere;
  bool alive = true;             ///< false: the process is gone, or a zombie
  std::int64_t step = -1;        ///< last entered; -1: none yet
  std::string phase;             ///< last entered, cut to 23 characters
  std::int64_t collectives = 0;  ///< collectives begun since the start
  double seconds_ago = 0.0;      ///< since the last change of this record
  std::int64_t pid = 0;
  int exit_code = 0;  ///< of a leaving rank
};

/// One record per rank of the world; only ranks of this node fill theirs. Each rank writes its own record only; reads
/// see every field whole, but not all fields of one moment. Main thread of each rank.
class ProgressFile {
 public:
  /// Makes a fresh file at `path` (an old one of an earlier run is replaced, not reused), folders included.
  /// Error(kUsage) names the path and what the system said. Call it on one rank of the node; the others open it
  /// afterwards.
  static void create(const std::string& path, int world);
  /// Maps the file and claims the record of `rank`. Error(kUsage) as above, also when the file is too small for
  /// `world`.
  ProgressFile(const std::string& path, int rank, int world);
  ~ProgressFile();
  ProgressFile(const ProgressFile&) = delete;
  ProgressFile& operator=(const ProgressFile&) = delete;

  void enter(std::int64_t step, const char* phase);
  void begin_collective(std::int64_t number);
  void finish();
  void leave(int exit_code);
  /// A sign of life, for a rank that waits in a collective.
  void touch() const;

  int world() const { return world_; }
  RankView look(int rank) const;
  /// True when every other rank of this node has begun collective `number`, or is finished.
  bool node_arrived(std::int64_t number) const;

 private:
  struct Record;
  Record& own() const;

  std::string path_;
  int rank_;
  int world_;
  Record* records_ = nullptr;
};

}  // namespace plimsoll::ddp
