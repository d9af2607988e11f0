#include "tests/oracle/step_profile.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace plimsoll::model {
namespace {

using nlohmann::json;
using torch::autograd::profiler::KinetoEvent;
namespace profiler = torch::autograd::profiler;

constexpr std::uint8_t kOperatorActivity = 0;  // libkineto::ActivityType::CPU_OP

/// The profiler's range of something that ran; nanoseconds of its own clock.
struct Range {
  std::uint64_t begin = 0, end = 0;
  std::string name;
};

struct Sum {
  std::int64_t calls = 0;
  double us = 0;
};

double microseconds(std::uint64_t nanoseconds) { return static_cast<double>(nanoseconds) / 1e3; }

std::unique_ptr<profiler::ProfilerResult> record(const std::function<void()>& body, c10::Device device) {
  std::set<profiler::ActivityType> activities{profiler::ActivityType::CPU};
  if (!device.is_cpu()) activities.insert(profiler::ActivityType::CUDA);
  const profiler::ProfilerConfig config(profiler::ProfilerState::KINETO);
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities, {at::RecordScope::FUNCTION});
  body();
  return profiler::disableProfiler();
}

double wall_us(const std::function<void()>& step, int steps) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < steps; ++i) step();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() / steps;
}

bool is_operator(const std::string& name) { return name.starts_with(kOperatorPrefix); }

std::string without_prefix(const std::string& name) {
  return is_operator(name) ? name.substr(std::string_view(kOperatorPrefix).size()) : name;
}

/// Which of our operators was running when something was called, on the thread of the call.
class Operators {
 public:
  explicit Operators(const std::vector<KinetoEvent>& events) {
    for (const KinetoEvent& event : events) {
      if (event.deviceType() != c10::DeviceType::CPU) continue;
      if (is_operator(event.name()))
        of_thread_[event.startThreadId()].push_back({event.startNs(), event.endNs(), without_prefix(event.name())});
      // Other events count by numbers of their own.
      if (event.activityType() == kOperatorActivity)
        calls_[event.correlationId()] = {event.startThreadId(), event.startNs()};
    }
    for (auto& [thread, ranges] : of_thread_)
      std::ranges::sort(ranges, [](const Range& a, const Range& b) { return a.begin < b.begin; });
  }

  /// Of the call that launched a kernel; empty where that was no operator's.
  std::string launcher_of(const KinetoEvent& kernel) const {
    const auto call = calls_.find(kernel.linkedCorrelationId());
    if (call == calls_.end()) return "";
    const auto ranges = of_thread_.find(call->second.thread);
    if (ranges == of_thread_.end()) return "";
    // Operators do not nest: only the last that began before can hold it.
    const auto after = std::ranges::upper_bound(ranges->second, call->second.at, {}, &Range::begin);
    if (after == ranges->second.begin()) return "";
    const Range& last = *std::prev(after);
    return call->second.at <= last.end ? last.name : "";
  }

  /// The time of the calls themselves.
  std::map<std::string, Sum> on_the_cpu() const {
    std::map<std::string, Sum> sums;
    for (const auto& [thread, ranges] : of_thread_) {
      for (const Range& range : ranges) {
        Sum& sum = sums[range.name];
        ++sum.calls;
        sum.us += microseconds(range.end - range.begin);
      }
    }
    return sums;
  }

 private:
  struct Place {
    std::uint64_t thread = 0, at = 0;
  };
  std::map<std::uint64_t, std::vector<Range>> of_thread_;
  std::unordered_map<std::uint64_t, Place> calls_;  ///< of libtorch's operators and ours, by correlation
};

/// What the device did: kernels, copies, fills; in the order in which they began.
std::vector<Range> device_ranges(const std::vector<KinetoEvent>& events) {
  std::vector<Range> ranges;
  for (const KinetoEvent& event : events) {
    if (event.deviceType() != c10::DeviceType::CPU) ranges.push_back({event.startNs(), event.endNs(), event.name()});
  }
  std::ranges::sort(ranges, [](const Range& a, const Range& b) { return a.begin < b.begin; });
  return ranges;
}

/// How long the device did something between the first and the last of `ranges`, and what it did not.
json timeline(const std::vector<Range>& ranges, int steps) {
  if (ranges.empty()) return json::object();
  double busy = 0, longest = 0;
  std::int64_t gaps = 0;
  std::uint64_t done = ranges.front().begin;
  for (const Range& range : ranges) {
    if (range.begin > done) {
      ++gaps;
      longest = std::max(longest, microseconds(range.begin - done));
    }
    const std::uint64_t from = std::max(done, range.begin);
    if (range.end > from) busy += microseconds(range.end - from);
    done = std::max(done, range.end);
  }
  return {{"span_us", microseconds(done - ranges.front().begin) / steps},
          {"busy_us", busy / steps},
          {"gaps", static_cast<double>(gaps) / steps},
          {"longest_gap_us", longest}};
}

json kernel_rows(const std::vector<Range>& ranges, int steps) {
  std::map<std::string, Sum> sums;
  for (const Range& range : ranges) {
    Sum& sum = sums[range.name];
    ++sum.calls;
    sum.us += microseconds(range.end - range.begin);
  }
  std::vector<json> rows;
  for (const auto& [name, sum] : sums)
    rows.push_back({{"name", name}, {"calls", static_cast<double>(sum.calls) / steps}, {"us", sum.us / steps}});
  std::sort(rows.begin(), rows.end(), [](const json& a, const json& b) { return a.at("us") > b.at("us"); });
  return rows;
}

json operator_rows(const std::map<std::string, Sum>& times, const CountedKernels& kernels, int steps) {
  std::vector<json> rows;
  for (const auto& [name, count] : kernels.counts()) {
    const auto found = times.find(name);
    rows.push_back({{"name", name},
                    {"calls", static_cast<double>(count.calls) / steps},
                    {"parts", static_cast<double>(count.parts) / steps},
                    {"us", found == times.end() ? 0.0 : found->second.us / steps},
                    {"flops", count.flops / steps},
                    {"bytes", count.bytes / steps}});
  }
  std::sort(rows.begin(), rows.end(), [](const json& a, const json& b) { return a.at("us") > b.at("us"); });
  return rows;
}

}  // namespace

json profile_steps(const std::function<void()>& step, int steps, c10::Device device, CountedKernels& kernels) {
  json found{{"steps", steps}, {"wall_us", wall_us(step, steps)}};
  kernels.clear();
  const auto result = record([&] { found["profiled_us"] = wall_us(step, steps); }, device);
  const std::vector<KinetoEvent>& events = result->events();
  const Operators operators(events);
  if (device.is_cpu()) {
    found["operators"] = operator_rows(operators.on_the_cpu(), kernels, steps);
    return found;
  }
  std::map<std::string, Sum> times;
  for (const KinetoEvent& event : events) {
    if (event.deviceType() == c10::DeviceType::CPU) continue;
    Sum& sum = times[operators.launcher_of(event)];
    ++sum.calls;
    sum.us += microseconds(event.durationNs());
  }
  found["operators"] = operator_rows(times, kernels, steps);
  found["outside_us"] = times[""].us / steps;
  const std::vector<Range> ranges = device_ranges(events);
  found["kernels"] = kernel_rows(ranges, steps);
  found.update(timeline(ranges, steps));
  return found;
}

}  // namespace plimsoll::model
