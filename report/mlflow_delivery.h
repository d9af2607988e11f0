#pragma once
// From a run folder's spool to an MLflow server, a group of lines a call: experiment and run are found or made, then
// params, tags, metrics and statuses follow in the order of the spool. Knows no network: requests go through a
// callable.
//
// What an answer means:
//   2xx            done; the mark moves.
//   none, 408, 429, 5xx, 3xx, 401, 403, 404, 405
//                  the server, or who we are to it, is not ready: the same again later. Nothing is lost. (The last four
//                  say that the address or the credentials are wrong, which somebody may put right while we wait.)
//   404 for a run  the server has lost the run (with the code RESOURCE_DOES_NOT_EXIST): once an attempt, all is sent
//   anew
//                  into a new one.
//   other 4xx      this request is refused for good. A batch is halved until the entries that are at fault stand alone;
//                  those go to mlflow-refused.jsonl and everything else goes on.
// Each kind of trouble is said once, and once more when it is over.
//
// Twice on the server: a run only where it was made but the answer was lost and a search by its tag right after does
// not show it yet; metrics never, but on servers that keep runs in files.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "report/http.h"
#include "report/mlflow_spool.h"

namespace plimsoll::report {

/// GET where `body` is empty, else POST. `url` is whole.
using MlflowTransport = std::function<HttpAnswer(const std::string& url, const std::string& body)>;

/// One thread.
class MlflowDelivery {
 public:
  enum class Outcome {
    kMoved,    ///< something was acknowledged, there may be more
    kNothing,  ///< all that is in the spool is acknowledged (or refused)
    kLater,    ///< not now: see trouble()
  };

  /// `server` is an address as of checked_server_address().
  MlflowDelivery(const std::filesystem::path& run_dir, const std::string& server, MlflowTransport transport);

  /// Sends the next group of lines. Throws Error(kCheckpoint) where the mark cannot be written.
  Outcome deliver();
  const std::string& trouble() const { return trouble_; }  ///< "" while all is well
  std::int64_t refused() const { return mark_ ? mark_->refused : 0; }

 private:
  enum class Sent { kYes, kRefused, kLater };

  bool load_mark();
  MlflowLine next_line();
  bool send(const MlflowLine& line);
  bool begin(const MlflowLine& line);
  bool find_experiment(const std::string& name);
  bool find_run(const MlflowLine& line);
  bool send_entries(std::span<const MlflowEntry> entries);
  bool send_status(const MlflowLine& line);
  Sent request(const std::string& call, const std::string& body);
  void start_anew();
  void refuse(const std::string& what);
  bool not_now(const std::string& reason);

  std::filesystem::path run_dir_;
  std::string server_;
  MlflowTransport transport_;
  MlflowSendRight right_;
  MlflowSpoolReader reader_;
  std::optional<MlflowMark> mark_;
  HttpAnswer answer_;    ///< of the last request
  std::string reason_;   ///< why the last request that failed did
  std::string trouble_;  ///< since something was acknowledged
  bool said_refused_ = false, started_anew_ = false;
};

}  // namespace plimsoll::report
