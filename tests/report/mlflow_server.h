#pragma once
// Servers for the tests of MLflow: a model of one, and a socket on the loopback in front of it.

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "report/http.h"
#include "report/records.h"

namespace plimsoll::report {

inline constexpr const char* kUnknownRecord =
    R"({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such thing"})";

inline StepRecord step_record(std::int64_t step) {
  StepRecord record;
  record.step = step;
  record.loss = 1.0 / static_cast<double>(step);
  record.samples = 8;
  record.step_ms = 16.0;
  record.ranks = {{100, 0, 200, 0}, {120, 0, 300, 1}};
  return record;
}

/// A server as MLflow's documents describe it, without a network. One thread at a time.
struct ModelServer {
  struct Run {
    std::string token, name, status = "RUNNING";
    std::map<std::string, std::string> params, tags;
    std::set<std::string> metrics;  // whole points: what is sent twice is stored once
    int points = 0;                 // sent
  };
  std::map<std::string, std::string> experiments;  // name, id
  std::map<std::string, Run> runs;
  std::vector<std::string> calls;
  std::function<std::optional<HttpAnswer>(const std::string& call, const std::string& body)> before;

  static HttpAnswer bad(const std::string& message) {
    return {400, nlohmann::json{{"error_code", "INVALID_PARAMETER_VALUE"}, {"message", message}}.dump(), ""};
  }

  HttpAnswer answer(const std::string& url, const std::string& body) {
    const std::string api = "/api/2.0/mlflow/";
    const auto place = url.find(api);
    if (place == std::string::npos) return {404, "not found", ""};
    const std::string call = url.substr(place + api.size());
    calls.push_back(call);
    if (before) {
      if (const auto other = before(call, body)) return *other;
    }
    if (call.rfind("experiments/get-by-name?", 0) == 0) return experiment(call.substr(call.find('=') + 1));
    const nlohmann::json json = nlohmann::json::parse(body);
    if (call == "experiments/create") return make_experiment(json.at("name"));
    if (call == "runs/search") return search(json);
    if (call == "runs/create") return make_run(json);
    const auto run = runs.find(json.at("run_id"));
    if (run == runs.end()) return {404, kUnknownRecord, ""};
    if (call == "runs/log-batch") return log(run->second, json);
    run->second.status = json.at("status");
    return {200, "{}", ""};
  }

  HttpAnswer experiment(const std::string& name) {
    const auto found = experiments.find(name);
    if (found == experiments.end()) return {404, kUnknownRecord, ""};
    return {200, nlohmann::json{{"experiment", {{"experiment_id", found->second}}}}.dump(), ""};
  }
  HttpAnswer make_experiment(const std::string& name) {
    if (experiments.count(name) > 0) return {400, R"({"error_code": "RESOURCE_ALREADY_EXISTS"})", ""};
    experiments[name] = std::to_string(experiments.size() + 1);
    return {200, nlohmann::json{{"experiment_id", experiments[name]}}.dump(), ""};
  }
  HttpAnswer search(const nlohmann::json& json) {
    for (const auto& [id, run] : runs) {
      if (json.at("filter") == "tags.`plimsoll.run` = '" + run.token + "'")
        return {200, nlohmann::json{{"runs", {{{"info", {{"run_id", id}}}}}}}.dump(), ""};
    }
    return {200, "{}", ""};
  }
  HttpAnswer make_run(const nlohmann::json& json) {
    const std::string id = "run" + std::to_string(runs.size() + 1);
    runs[id].name = json.at("run_name");
    for (const auto& tag : json.at("tags")) {
      if (tag.at("key") == "plimsoll.run") runs[id].token = tag.at("value");
    }
    return {200, nlohmann::json{{"run", {{"info", {{"run_id", id}}}}}}.dump(), ""};
  }
  static HttpAnswer log(Run& run, const nlohmann::json& json) {
    if (json.at("metrics").size() > 1000) return bad("A batch logging request can contain at most 1000 metrics");
    if (json.at("params").size() > 100) return bad("A batch logging request can contain at most 100 params");
    for (const auto& param : json.at("params")) {
      const auto value = param.at("value").get<std::string>();
      const auto [place, isnew] = run.params.emplace(param.at("key"), value);
      if (!isnew && place->second != value) return bad("Changing param values is not allowed");
    }
    for (const auto& tag : json.at("tags")) run.tags[tag.at("key")] = tag.at("value");
    for (const auto& metric : json.at("metrics")) {
      run.metrics.insert(metric.dump());
      ++run.points;
    }
    return {200, "{}", ""};
  }
  /// Steps for which `key` is stored, one for each point.
  static std::vector<std::int64_t> steps(const Run& run, const std::string& key) {
    std::vector<std::int64_t> found;
    for (const auto& point : run.metrics) {
      const nlohmann::json json = nlohmann::json::parse(point);
      if (json.at("key") == key) found.push_back(json.at("step"));
    }
    std::sort(found.begin(), found.end());
    return found;
  }
};

inline std::vector<std::int64_t> up_to(std::int64_t last) {
  std::vector<std::int64_t> steps;
  for (std::int64_t step = 1; step <= last; ++step) steps.push_back(step);
  return steps;
}

/// Answers on 127.0.0.1 with what `answer` gives for a request's path and body; nothing: closes the connection. Every
/// connection has a thread of its own, so that `answer` may wait, and must let go before the server is destroyed.
class LoopbackServer {
 public:
  using Answer = std::function<std::optional<HttpAnswer>(const std::string& path, const std::string& body)>;

  explicit LoopbackServer(Answer answer, std::uint16_t port = 0)
      : answer_(std::move(answer)), socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const int yes = 1;
    ::setsockopt(socket_, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    sockaddr_in address = loopback(port);
    socklen_t size = sizeof address;
    auto* any = reinterpret_cast<sockaddr*>(&address);
    if (::bind(socket_, any, size) != 0 || ::listen(socket_, 16) != 0 || ::getsockname(socket_, any, &size) != 0)
      throw std::runtime_error("no socket on the loopback");
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { accept_all(); });
  }
  ~LoopbackServer() {
    stopping_ = true;
    thread_.join();
    for (auto& connection : connections_) connection.join();
    ::close(socket_);
  }
  LoopbackServer(const LoopbackServer&) = delete;
  LoopbackServer& operator=(const LoopbackServer&) = delete;

  std::uint16_t port() const { return port_; }
  std::string address() const { return "http://127.0.0.1:" + std::to_string(port_); }

 private:
  static sockaddr_in loopback(std::uint16_t port) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    return address;
  }
  /// False when the server stops before anything comes.
  bool something_at(int descriptor) const {
    while (!stopping_) {
      pollfd wanted{descriptor, POLLIN, 0};
      if (::poll(&wanted, 1, 20) > 0) return true;
    }
    return false;
  }
  void accept_all() {
    while (something_at(socket_)) {
      const int descriptor = ::accept4(socket_, nullptr, nullptr, SOCK_CLOEXEC);
      if (descriptor >= 0) connections_.emplace_back([this, descriptor] { serve(descriptor); });
    }
  }
  void serve(int descriptor) {
    std::string data;
    while (const auto request = read_request(descriptor, data)) {
      const auto answer = answer_(request->first, request->second);
      if (!answer) break;
      const std::string text = "HTTP/1.1 " + std::to_string(answer->status) +
                               " X\r\nContent-Length: " + std::to_string(answer->body.size()) + "\r\n\r\n" +
                               answer->body;
      ::send(descriptor, text.data(), text.size(), MSG_NOSIGNAL);
    }
    ::close(descriptor);
  }
  /// Path and body of the next request; what follows it stays in `data`.
  std::optional<std::pair<std::string, std::string>> read_request(int descriptor, std::string& data) const {
    std::size_t head = 0;
    while ((head = data.find("\r\n\r\n")) == std::string::npos) {
      if (!read_more(descriptor, data)) return std::nullopt;
    }
    const std::size_t length_at = data.find("Content-Length: ");
    const std::size_t length = length_at < head ? std::stoul(data.substr(length_at + 16)) : 0;
    while (data.size() < head + 4 + length) {
      if (!read_more(descriptor, data)) return std::nullopt;
    }
    const std::size_t path = data.find(' ') + 1;
    std::pair<std::string, std::string> request{data.substr(path, data.find(' ', path) - path),
                                                data.substr(head + 4, length)};
    data.erase(0, head + 4 + length);
    return request;
  }
  bool read_more(int descriptor, std::string& data) const {
    char buffer[65536];
    if (!something_at(descriptor)) return false;
    const ssize_t n = ::recv(descriptor, buffer, sizeof buffer, 0);
    if (n > 0) data.append(buffer, static_cast<std::size_t>(n));
    return n > 0;
  }

  Answer answer_;
  int socket_;
  std::uint16_t port_ = 0;
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> connections_;  ///< of the thread below, until it has ended
  std::thread thread_;
};

}  // namespace plimsoll::report
