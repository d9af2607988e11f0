#pragma once
// A thread that sends a run folder's spool to an MLflow server while the run goes on, and the same without a thread for
// a run that is over.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <string>
#include <thread>

#include "report/http.h"

namespace plimsoll::report {

struct MlflowTimes {
  HttpLimits request;
  std::chrono::milliseconds gather{1000};       ///< a first record waits so long for others to go with it
  std::chrono::milliseconds first_pause{1000};  ///< after a request that failed; doubled with each one
  std::chrono::milliseconds longest_pause{60000};
};

/// Nobody who calls here ever waits for the network, but in finish() as long as he says. Any thread may call. What the
/// thread holds of the run is one group of lines (mlflow_delivery.h): the spool is the queue.
class MlflowSender {
 public:
  /// `server` is an address as of checked_server_address(). The thread starts at once, with what an earlier attempt
  /// left.
  MlflowSender(const std::filesystem::path& run_dir, const std::string& server, const MlflowTimes& times = {});
  ~MlflowSender();  ///< finish() with no time at all
  MlflowSender(const MlflowSender&) = delete;
  MlflowSender& operator=(const MlflowSender&) = delete;

  /// There is more in the spool.
  void wake();
  /// Sends what is left without pauses, for so long; a request that is still under way is then given up, which may take
  /// libcurl a second more. True when all was sent. After it nothing is sent any more.
  bool finish(std::chrono::milliseconds limit);

 private:
  void run();
  bool pause(std::chrono::milliseconds& length);
  bool wait_for_more();

  const std::filesystem::path run_dir_;
  const std::string server_;
  const MlflowTimes times_;
  std::atomic<bool> cancelled_{false};
  HttpClient client_;  ///< the thread's
  std::mutex mutex_;   ///< of what follows
  std::condition_variable changed_;
  bool more_ = false, finishing_ = false, ended_ = false, all_sent_ = false;
  std::thread thread_;
};

/// What send_spooled() did.
struct MlflowSent {
  bool complete = false;     ///< nothing waits any more
  std::int64_t refused = 0;  ///< entries the server would not take, ever; they are in mlflow-refused.jsonl
  std::string trouble;       ///< where not complete: why
};
/// Sends what waits in `run_dir`'s spool, up to the first request that fails for now. For `plimsoll report`, after a
/// run. Throws Error(kUsage) for a `uri` that is none, where there is no spool, and while another process is sending
/// it.
MlflowSent send_spooled(const std::filesystem::path& run_dir, const std::string& uri, const MlflowTimes& times = {});

}  // namespace plimsoll::report
