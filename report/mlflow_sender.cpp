#include "report/mlflow_sender.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <csignal>
#include <exception>
#include <utility>

#include "core/error.h"
#include "report/mlflow_delivery.h"
#include "report/mlflow_spool.h"

namespace plimsoll::report {
namespace {

using Outcome = MlflowDelivery::Outcome;

constexpr std::chrono::milliseconds kLastPause{200};  // between tries at the end, where there is little time

MlflowTransport transport_over(HttpClient& client) {
  return [&client](const std::string& url, const std::string& body) {
    return body.empty() ? client.get(url) : client.post(url, body);
  };
}

// Signals are for the thread that computes: this one must not run its handlers, nor end the process where a server
// closes a connection.
void block_all_signals() {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
}

// A disk that refuses the mark must not end the run: what was sent is sent again.
Outcome deliver_or_wait(MlflowDelivery& delivery, bool& said) {
  try {
    return delivery.deliver();
  } catch (const std::exception& error) {
    if (!std::exchange(said, true)) spdlog::warn("MLflow: {}; trying again", error.what());
    return Outcome::kLater;
  }
}

}  // namespace

MlflowSender::MlflowSender(const std::filesystem::path& run_dir, const std::string& server, const MlflowTimes& times)
    : run_dir_(run_dir), server_(server), times_(times), client_(times.request, cancelled_), thread_([this] {
        run();
      }) {}

MlflowSender::~MlflowSender() { finish(std::chrono::milliseconds(0)); }

void MlflowSender::wake() {
  const std::lock_guard lock(mutex_);
  more_ = true;
  changed_.notify_all();
}

bool MlflowSender::finish(std::chrono::milliseconds limit) {
  {
    std::unique_lock lock(mutex_);
    finishing_ = true;
    changed_.notify_all();
    changed_.wait_for(lock, limit, [this] { return ended_; });
    cancelled_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  return all_sent_;
}

void MlflowSender::run() {
  block_all_signals();
  MlflowDelivery delivery(run_dir_, server_, transport_over(client_));
  auto length = times_.first_pause;
  bool said = false;
  for (bool going = true; going;) {
    const Outcome outcome = deliver_or_wait(delivery, said);
    if (outcome == Outcome::kMoved) length = times_.first_pause;
    if (outcome == Outcome::kLater) going = pause(length);
    if (outcome == Outcome::kNothing) going = wait_for_more();
    if (cancelled_) going = false;
  }
  const std::lock_guard lock(mutex_);
  ended_ = true;
  changed_.notify_all();
}

// False where there is no point in another try.
bool MlflowSender::pause(std::chrono::milliseconds& length) {
  std::unique_lock lock(mutex_);
  if (finishing_) {
    changed_.wait_for(lock, kLastPause, [this] { return cancelled_.load(); });
  } else {
    changed_.wait_for(lock, length, [this] { return finishing_ || cancelled_; });
    length = std::min(2 * length, times_.longest_pause);
  }
  return !cancelled_;
}

// False where no more will come.
bool MlflowSender::wait_for_more() {
  std::unique_lock lock(mutex_);
  if (!more_ && finishing_) {
    all_sent_ = true;
    return false;
  }
  changed_.wait(lock, [this] { return more_ || finishing_; });
  if (!finishing_) changed_.wait_for(lock, times_.gather, [this] { return finishing_; });
  more_ = false;
  return true;
}

MlflowSent send_spooled(const std::filesystem::path& run_dir, const std::string& uri, const MlflowTimes& times) {
  const std::string server = checked_server_address(uri, "report.mlflow_uri");
  const auto spool = mlflow_spool_file(run_dir);
  if (!std::filesystem::exists(spool)) {
    fail(ExitCode::kUsage,
         "{}: no such file: the run was not told of an MLflow server; give report.mlflow_uri when it "
         "starts or is resumed",
         spool.string());
  }
  if (MlflowSendRight right(run_dir); !right.take())
    fail(ExitCode::kUsage, "{}: another process is sending it, the run itself for one; wait for its end",
         spool.string());
  const std::atomic<bool> never{false};
  HttpClient client(times.request, never);
  MlflowDelivery delivery(run_dir, server, transport_over(client));
  Outcome outcome = Outcome::kMoved;
  while (outcome == Outcome::kMoved) outcome = delivery.deliver();
  return {outcome == Outcome::kNothing, delivery.refused(), delivery.trouble()};
}

}  // namespace plimsoll::report
