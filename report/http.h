#pragma once
// HTTP requests with a time limit. The one place that knows libcurl.

#include <atomic>
#include <chrono>
#include <memory>
#include <string>

namespace plimsoll::report {

/// Limits of one request. libcurl looks at `cancelled` (below) at least once a second.
struct HttpLimits {
  std::chrono::milliseconds connect{2000};
  std::chrono::milliseconds total{10000};  ///< from the first look at the name to the last byte of the answer
};

/// What came back. Nothing here throws for what a network does.
struct HttpAnswer {
  int status = 0;       ///< of the server; 0: no whole answer came within the limits
  std::string body;     ///< at most 1 MiB: a longer one counts as none
  std::string failure;  ///< where status is 0: why, in libcurl's words
};

/// A server's address: http(s)://host[:port][/prefix], without a slash at its end.
///
/// Throws Error(kUsage) that starts with `key`, names the value and says what to write. User and password are refused
/// too (and not shown): the address is written into the run's folder, so that they belong into the environment.
std::string checked_server_address(const std::string& text, const std::string& key);

/// Sends requests one after the other, each on a connection of its own and each at most once. One thread at a time.
/// Redirections are not followed. Credentials are those of the environment that MLflow's own clients read
/// (MLFLOW_TRACKING_TOKEN, else MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD); they are never shown.
class HttpClient {
 public:
  /// `cancelled`, where it becomes true, ends a request within about a second; it outlives the client.
  HttpClient(const HttpLimits& limits, const std::atomic<bool>& cancelled);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  HttpAnswer get(const std::string& url);
  HttpAnswer post(const std::string& url, const std::string& json);

 private:
  struct Handle;
  HttpAnswer perform(const std::string& url);
  std::unique_ptr<Handle> handle_;
};

/// Text as a value of a query: everything but letters, digits and -._~ as %XX.
std::string percent_encoded(const std::string& text);

}  // namespace plimsoll::report
