#include "report/http.h"

#include <curl/curl.h>
#include <fmt/format.h>

#include <cctype>
#include <charconv>
#include <cstdlib>
#include <string_view>

#include "core/error.h"

namespace plimsoll::report {
namespace {

constexpr std::size_t kLongestAnswer = std::size_t{1} << 20;

// libcurl is set up once a process, before its first handle.
void start_libcurl() {
  static const CURLcode started = curl_global_init(CURL_GLOBAL_DEFAULT);
  if (started != CURLE_OK) fail(ExitCode::kUsage, "libcurl does not start: {}", curl_easy_strerror(started));
}

std::size_t take_answer(char* data, std::size_t size, std::size_t count, void* answer) {
  auto& body = static_cast<HttpAnswer*>(answer)->body;
  if (body.size() + size * count > kLongestAnswer) return 0;
  body.append(data, size * count);
  return size * count;
}

int look_for_cancel(void* cancelled, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  return static_cast<const std::atomic<bool>*>(cancelled)->load() ? 1 : 0;
}

std::string environment(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? "" : text;
}

bool word_of_host(std::string_view text) {
  if (text.empty()) return false;
  for (const char c : text) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '.' && c != '-' && c != '_') return false;
  }
  return true;
}

bool bracketed_address(std::string_view text) {
  return text.size() > 2 && text.front() == '[' && text.back() == ']' &&
         text.substr(1, text.size() - 2).find_first_not_of("0123456789abcdefABCDEF:.") == std::string_view::npos;
}

bool port_number(std::string_view text) {
  unsigned port = 0;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), port);
  return end.ec == std::errc() && end.ptr == text.data() + text.size() && port >= 1 && port <= 65535;
}

// "host", "host:port", "[::1]:port"
bool host_and_port(std::string_view text) {
  const auto bracket = text.rfind(']');
  const auto colon = text.find(':', bracket == std::string_view::npos ? 0 : bracket);
  if (colon != std::string_view::npos && !port_number(text.substr(colon + 1))) return false;
  const auto host = text.substr(0, colon);
  return word_of_host(host) || bracketed_address(host);
}

bool path_of_address(std::string_view text) {
  for (const char c : text) {
    if (static_cast<unsigned char>(c) <= ' ' || static_cast<unsigned char>(c) >= 0x7F) return false;
    if (std::string_view("?#\"<>\\^`{|}").find(c) != std::string_view::npos) return false;
  }
  return true;
}

// Behind "://"; npos where `text` starts with no scheme that we speak.
std::size_t end_of_scheme(std::string_view text) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (text.substr(0, scheme.size()) == scheme) return scheme.size();
  }
  return std::string_view::npos;
}

}  // namespace

std::string checked_server_address(const std::string& text, const std::string& key) {
  const auto begin = end_of_scheme(text);
  const auto authority_end = begin == std::string::npos ? begin : std::min(text.find('/', begin), text.size());
  const auto at = text.find("://") == std::string::npos ? std::string::npos : text.rfind('@');
  if (at != std::string::npos) {
    fail(ExitCode::kUsage,
         "{} = \"{}***{}\" holds a user's name, which would be written into the run's folder; leave it out and set "
         "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment",
         key, text.substr(0, text.find("://") + 3), text.substr(at));
  }
  if (begin == std::string::npos || !host_and_port(std::string_view(text).substr(begin, authority_end - begin)) ||
      !path_of_address(std::string_view(text).substr(authority_end))) {
    fail(ExitCode::kUsage,
         "{} = \"{}\" is no address of a server; write http://host:port or https://host:port/prefix, or \"\" for none",
         key, text);
  }
  return text.substr(0, text.find_last_not_of('/') + 1);
}

struct HttpClient::Handle {
  CURL* curl = nullptr;
  curl_slist* headers = nullptr;
};

HttpClient::HttpClient(const HttpLimits& limits, const std::atomic<bool>& cancelled)
    : handle_(std::make_unique<Handle>()) {
  start_libcurl();
  CURL* curl = handle_->curl = curl_easy_init();
  if (curl == nullptr) fail(ExitCode::kUsage, "libcurl gives no handle");
  // Without "Expect:" a body of more than 1 MB would wait a second for the server's leave.
  handle_->headers = curl_slist_append(nullptr, "Content-Type: application/json");
  handle_->headers = curl_slist_append(handle_->headers, "Expect:");
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, handle_->headers);
  // On a connection that it has kept, libcurl makes a request again by itself where the server closes without an
  // answer, and what must not be done twice would be.
  curl_easy_setopt(curl, CURLOPT_FRESH_CONNECT, 1L);
  curl_easy_setopt(curl, CURLOPT_FORBID_REUSE, 1L);
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(limits.connect.count()));
  curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, static_cast<long>(limits.total.count()));
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &take_answer);
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, &look_for_cancel);
  curl_easy_setopt(curl, CURLOPT_XFERINFODATA, &cancelled);
  const std::string token = environment("MLFLOW_TRACKING_TOKEN"), user = environment("MLFLOW_TRACKING_USERNAME");
  if (!token.empty()) {
    curl_easy_setopt(curl, CURLOPT_HTTPAUTH, static_cast<long>(CURLAUTH_BEARER));
    curl_easy_setopt(curl, CURLOPT_XOAUTH2_BEARER, token.c_str());
  } else if (!user.empty()) {
    curl_easy_setopt(curl, CURLOPT_HTTPAUTH, static_cast<long>(CURLAUTH_BASIC));
    curl_easy_setopt(curl, CURLOPT_USERNAME, user.c_str());
    curl_easy_setopt(curl, CURLOPT_PASSWORD, environment("MLFLOW_TRACKING_PASSWORD").c_str());
  }
}

HttpClient::~HttpClient() {
  curl_easy_cleanup(handle_->curl);
  curl_slist_free_all(handle_->headers);
}

HttpAnswer HttpClient::get(const std::string& url) {
  curl_easy_setopt(handle_->curl, CURLOPT_HTTPGET, 1L);
  return perform(url);
}

HttpAnswer HttpClient::post(const std::string& url, const std::string& json) {
  curl_easy_setopt(handle_->curl, CURLOPT_POST, 1L);
  curl_easy_setopt(handle_->curl, CURLOPT_POSTFIELDS, json.c_str());
  curl_easy_setopt(handle_->curl, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(json.size()));
  return perform(url);
}

HttpAnswer HttpClient::perform(const std::string& url) {
  HttpAnswer answer;
  curl_easy_setopt(handle_->curl, CURLOPT_URL, url.c_str());
  curl_easy_setopt(handle_->curl, CURLOPT_WRITEDATA, &answer);
  const CURLcode code = curl_easy_perform(handle_->curl);
  if (code == CURLE_ABORTED_BY_CALLBACK) return {0, "", "no answer before it was given up"};
  if (code != CURLE_OK) return {0, "", curl_easy_strerror(code)};
  long status = 0;
  curl_easy_getinfo(handle_->curl, CURLINFO_RESPONSE_CODE, &status);
  answer.status = static_cast<int>(status);
  return answer;
}

std::string percent_encoded(const std::string& text) {
  std::string result;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = std::isalnum(byte) != 0 || std::string_view("-._~").find(c) != std::string_view::npos;
    result += plain ? std::string(1, c) : fmt::format("%{:02X}", byte);
  }
  return result;
}

}  // namespace plimsoll::report
