// The only file that knows MPI.
#include <mpi.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <optional>
#include <thread>

#include "core/error.h"
#include "ddp/communicator.h"
#include "ddp/progress_file.h"

namespace plimsoll::ddp {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

constexpr double kSpin = 50e-6;           // a collective of ranks that are all there is often done by then
constexpr double kYield = 2e-3;           // then let another rank on this core work
constexpr double kLongestSleep = 500e-6;  // then sleep: someone is late
constexpr double kLookAround = 0.1;       // seconds between two looks at the peers' records
constexpr double kGrace = 3.0;            // seconds that abort() gives the peers to leave by themselves

volatile sig_atomic_t abort_code = 0;
extern "C" void leave_now(int) { _exit(static_cast<int>(abort_code)); }

void check(int result, const char* doing) {
  if (result == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(result, text, &length);
  fail(ExitCode::kPeer, "{} failed: {}; look at the other ranks' messages, then restart from the last checkpoint",
       doing, text);
}

std::string host_name() {
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  return name;
}

/// "rank 2 (pid 4711, step 17, phase reduce, silent for 12.0 s)"
std::string describe(int rank, const RankView& view) {
  if (view.state == RankState::kElsewhere) return fmt::format("rank {} (on another host)", rank);
  const std::string step = view.step < 0 ? "before the first step" : fmt::format("step {}, {}", view.step, view.phase);
  return fmt::format("rank {} (pid {}, {}, silent for {:.1f} s)", rank, view.pid, step, view.seconds_ago);
}

class Mpi final : public Communicator {
 public:
  Mpi(const std::string& progress_dir, double timeout_seconds, std::int64_t chunk_bytes);
  ~Mpi() override;
  int rank() const override { return rank_; }
  int world() const override { return world_; }
  int local_rank() const override { return local_rank_; }
  void all_reduce_sum(std::span<float> values) override;
  void broadcast(std::span<std::byte> bytes, int root) override;
  std::vector<std::byte> all_gather(std::span<const std::byte> bytes) override;
  void barrier() override;
  void enter(std::int64_t step, const char* phase) override;
  void watch_peers(const char* doing, double waited) override;
  [[noreturn]] void abort(int exit_code) override;
  std::string name() const override { return "mpi"; }

 private:
  void find_place();
  void open_progress(const std::string& folder);
  void agree_on(const std::optional<Error>& problem);
  /// Gives a collective its number and tells the peers that this rank is there.
  void begin();
  void wait(std::vector<MPI_Request>& requests, const char* doing);
  bool test(std::vector<MPI_Request>& requests, const char* doing);
  void back_off(double waited) const;
  void look_for_lost_peers(const char* doing) const;
  [[noreturn]] void report_late(const char* doing, double waited) const;
  double timeout() const { return std::max(timeout_, 10.0 * longest_step_); }
  bool peers_left() const;
  void close() noexcept;

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, world_ = 1, local_rank_ = 0;
  bool all_on_node_ = true;
  bool broken_ = false;
  double timeout_;
  std::int64_t chunk_bytes_;
  std::int64_t collectives_ = 0;
  std::int64_t step_ = -1;
  Clock::time_point step_began_{};
  double longest_step_ = 0.0;
  int exceptions_ = std::uncaught_exceptions();
  std::string progress_path_;
  std::unique_ptr<ProgressFile> progress_;
};

void start_mpi() {
  int initialised = 0;
  MPI_Initialized(&initialised);
  if (initialised != 0)
    fail(ExitCode::kUsage, "MPI was started before in this process: make one communicator and keep it");
  int provided = 0;
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_FUNNELED)
    fail(ExitCode::kUsage, "this MPI was built without threads (MPI_THREAD_FUNNELED)");
}

Mpi::Mpi(const std::string& progress_dir, double timeout_seconds, std::int64_t chunk_bytes)
    : timeout_(timeout_seconds), chunk_bytes_(std::max<std::int64_t>(chunk_bytes, 4) / 4 * 4) {
  if (!(timeout_seconds > 0.0))
    fail(ExitCode::kUsage, "a timeout of {} s between ranks: give a positive number", timeout_seconds);
  start_mpi();
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  check(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), "MPI_Comm_dup");
  MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
  find_place();
  open_progress(progress_dir);
}

void Mpi::find_place() {
  MPI_Comm_rank(comm_, &rank_);
  MPI_Comm_size(comm_, &world_);
  MPI_Comm node = MPI_COMM_NULL;
  check(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &node), "MPI_Comm_split_type");
  int on_node = 1;
  MPI_Comm_rank(node, &local_rank_);
  MPI_Comm_size(node, &on_node);
  MPI_Comm_free(&node);
  all_on_node_ = on_node == world_;
}

/// If one rank has a problem, all have: nobody is left waiting for it.
void Mpi::agree_on(const std::optional<Error>& problem) {
  int mine = problem ? static_cast<int>(problem->code()) : 0;
  int worst = 0;
  std::vector<MPI_Request> request(1);
  begin();
  check(MPI_Iallreduce(&mine, &worst, 1, MPI_INT, MPI_MAX, comm_, request.data()), "MPI_Iallreduce");
  wait(request, "the start");
  if (problem) throw *problem;
  if (worst != 0) fail(static_cast<ExitCode>(worst), "another rank could not open its progress file; see its message");
}

void Mpi::open_progress(const std::string& folder) {
  progress_path_ = (std::filesystem::path(folder) / fmt::format("progress-{}", host_name())).string();
  const auto attempt = [this](bool mine, const auto& action) {
    std::optional<Error> problem;
    try {
      if (mine) action();
    } catch (const Error& error) {
      problem = error;
    }
    agree_on(problem);
  };
  attempt(local_rank_ == 0, [this] { ProgressFile::create(progress_path_, world_); });
  std::unique_ptr<ProgressFile> opened;
  attempt(true, [&] { opened = std::make_unique<ProgressFile>(progress_path_, rank_, world_); });
  progress_ = std::move(opened);  // only now, when every record is claimed: an empty one means "on another host"
}

void Mpi::begin() {
  if (broken_) fail(ExitCode::kPeer, "a collective was started after a peer was lost; only abort() is allowed then");
  ++collectives_;
  if (progress_) progress_->begin_collective(collectives_);
}

bool Mpi::test(std::vector<MPI_Request>& requests, const char* doing) {
  int done = 0;
  check(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE), doing);
  return done != 0;
}

void Mpi::back_off(double waited) const {
  if (waited < kSpin) return;
  // Once everybody is there, data is moving, and it moves only while somebody polls.
  const bool moving = progress_ && all_on_node_ && progress_->node_arrived(collectives_);
  if (waited < kYield || moving) {
    sched_yield();
  } else {
    std::this_thread::sleep_for(std::chrono::duration<double>(std::min(waited / 16, kLongestSleep)));
  }
}

void Mpi::look_for_lost_peers(const char* doing) const {
  for (int peer = 0; progress_ && peer < world_; ++peer) {
    const RankView view = progress_->look(peer);
    if (peer == rank_ || view.state == RankState::kElsewhere || view.state == RankState::kFinished) continue;
    if (view.state == RankState::kLeaving) {
      throw PeerLeft(static_cast<ExitCode>(view.exit_code),
                     fmt::format("rank {} ended the run with exit code {}; see its message", peer, view.exit_code));
    }
    if (!view.alive) {
      fail(ExitCode::kPeer, "{} is dead, found by rank {} in {}; restart from the last checkpoint",
           describe(peer, view), rank_, doing);
    }
  }
}

void Mpi::report_late(const char* doing, double waited) const {
  std::string behind;
  for (int peer = 0; progress_ && peer < world_; ++peer) {
    const RankView view = progress_->look(peer);
    // One that stopped inside the collective has begun it, but no longer looks around.
    const bool silent = view.collectives == collectives_ && view.seconds_ago > waited / 2;
    const bool late = view.state == RankState::kElsewhere || view.collectives < collectives_ || silent;
    if (peer != rank_ && late) behind += (behind.empty() ? "" : ", ") + describe(peer, view);
  }
  if (behind.empty()) behind = "nobody: every rank of this host is there, but no data arrives";
  fail(ExitCode::kPeer,
       "rank {} waited {:.1f} s in {} of step {}; behind: {}; restart from the last checkpoint, or raise the timeout",
       rank_, waited, doing, step_, behind);
}

void Mpi::watch_peers(const char* doing, double waited) {
  if (progress_) progress_->touch();
  look_for_lost_peers(doing);
  if (waited > timeout()) report_late(doing, waited);
}

void Mpi::wait(std::vector<MPI_Request>& requests, const char* doing) {
  const auto began = Clock::now();
  double next_look = kLookAround;
  try {
    while (!test(requests, doing)) {
      const double waited = seconds_since(began);
      if (waited > next_look) {
        watch_peers(doing, waited);
        next_look = waited + kLookAround;
      }
      back_off(waited);
    }
  } catch (...) {
    broken_ = true;
    throw;
  }
}

void Mpi::all_reduce_sum(std::span<float> values) {
  begin();
  const std::size_t piece = static_cast<std::size_t>(chunk_bytes_) / sizeof(float);
  std::vector<MPI_Request> requests;
  for (std::size_t first = 0; first < values.size(); first += piece) {
    const int count = static_cast<int>(std::min(piece, values.size() - first));
    check(
        MPI_Iallreduce(MPI_IN_PLACE, values.data() + first, count, MPI_FLOAT, MPI_SUM, comm_, &requests.emplace_back()),
        "MPI_Iallreduce");
  }
  wait(requests, "the reduction");
}

void Mpi::broadcast(std::span<std::byte> bytes, int root) {
  if (root < 0 || root >= world_) fail(ExitCode::kUsage, "broadcast from rank {} in a world of {}", root, world_);
  begin();
  std::vector<MPI_Request> requests;
  const auto piece = static_cast<std::size_t>(chunk_bytes_);
  for (std::size_t first = 0; first < bytes.size(); first += piece) {
    const int count = static_cast<int>(std::min(piece, bytes.size() - first));
    check(MPI_Ibcast(bytes.data() + first, count, MPI_BYTE, root, comm_, &requests.emplace_back()), "MPI_Ibcast");
  }
  wait(requests, "a broadcast");
}

std::vector<std::byte> Mpi::all_gather(std::span<const std::byte> bytes) {
  begin();
  const auto ranks = static_cast<std::size_t>(world_);
  std::vector<std::byte> all(bytes.size() * ranks);
  const std::size_t piece = std::min(static_cast<std::size_t>(chunk_bytes_), bytes.size());
  std::vector<std::byte> pieces(piece * ranks);
  for (std::size_t first = 0; first < bytes.size(); first += piece) {
    const std::size_t count = std::min(piece, bytes.size() - first);
    std::vector<MPI_Request> request(1);
    check(MPI_Iallgather(bytes.data() + first, static_cast<int>(count), MPI_BYTE, pieces.data(),
                         static_cast<int>(count), MPI_BYTE, comm_, request.data()),
          "MPI_Iallgather");
    wait(request, "a gathering");
    for (std::size_t peer = 0; peer < ranks; ++peer) {
      std::memcpy(all.data() + peer * bytes.size() + first, pieces.data() + peer * count, count);
    }
  }
  return all;
}

void Mpi::barrier() {
  begin();
  std::vector<MPI_Request> request(1);
  check(MPI_Ibarrier(comm_, request.data()), "MPI_Ibarrier");
  wait(request, "a barrier");
}

void Mpi::enter(std::int64_t step, const char* phase) {
  if (step != step_) {
    if (step_ >= 0) longest_step_ = std::max(longest_step_, seconds_since(step_began_));
    step_ = step;
    step_began_ = Clock::now();
  }
  progress_->enter(step, phase);
}

bool Mpi::peers_left() const {
  for (int peer = 0; peer < world_; ++peer) {
    if (peer != rank_ && progress_->look(peer).state == RankState::kRunning && progress_->look(peer).alive)
      return false;
  }
  return true;
}

void Mpi::abort(int exit_code) {
  progress_->leave(exit_code);
  std::fflush(nullptr);
  const auto began = Clock::now();
  while (!peers_left() && seconds_since(began) < kGrace) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  // Should MPI_Abort itself hang, for want of the peers it talks to, the process leaves all the same.
  abort_code = exit_code;
  signal(SIGALRM, leave_now);
  alarm(5);
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  _exit(exit_code);
}

/// The orderly end: nobody leaves before all are done, or mpirun would kill the slower ones.
void Mpi::close() noexcept {
  try {
    barrier();
    progress_->finish();
    MPI_Comm_free(&comm_);
    MPI_Finalize();
    std::error_code ignored;
    if (local_rank_ == 0) std::filesystem::remove(progress_path_, ignored);
  } catch (const Error& error) {
    // A destructor cannot throw, and returning would let this rank claim success: leave as a caller would have.
    std::fprintf(stderr, "rank %d: the last barrier: %s\n", rank_, error.what());
    abort(static_cast<int>(error.code()));
  }
}

Mpi::~Mpi() {
  const bool unwinding = std::uncaught_exceptions() > exceptions_;
  if (unwinding || broken_ || !progress_) return;  // the peers are elsewhere: no barrier would ever complete
  close();
}

}  // namespace

std::unique_ptr<Communicator> make_mpi(const std::string& progress_dir, double timeout_seconds,
                                       std::int64_t chunk_bytes) {
  return std::make_unique<Mpi>(progress_dir, timeout_seconds, chunk_bytes);
}

}  // namespace plimsoll::ddp
