#include "report/console.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string_view>

#include "core/bytes.h"

namespace plimsoll::report {
namespace {

constexpr auto kRedraw = std::chrono::milliseconds(100);
constexpr std::size_t kColumns = 100;

double percent(std::int64_t part, std::int64_t whole) {
  return whole > 0 ? 100.0 * static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

std::string share(std::int64_t part, std::int64_t whole) {
  return fmt::format("{} ({:.1f} %)", format_bytes(part), percent(part, whole));
}

std::string micro_batch(const MemoryStatus& status) {
  if (status.min_micro == status.max_micro) return std::to_string(status.plan.micro_batch) + " (fixed)";
  return fmt::format("{} ({}..{})", status.plan.micro_batch, status.min_micro, status.max_micro);
}

std::string recompute(const MemoryStatus& status) {
  std::string text = fmt::format("{} of {} blocks", status.plan.recompute_blocks, status.blocks);
  if (status.plan.recompute_vision > 0) text += fmt::format(", {} vision", status.plan.recompute_vision);
  if (status.plan.recompute_expert > 0) text += fmt::format(", {} expert", status.plan.recompute_expert);
  return status.plan.offload ? text + ", offloaded" : text;
}

std::string resolution(const MemoryStatus& status) {
  const std::string value = status.plan.resolution == 0 ? "as it is" : std::to_string(status.plan.resolution);
  if (status.min_resolution == status.max_resolution) return value + " (fixed)";
  return fmt::format("{} ({}..{})", value, status.min_resolution, status.max_resolution);
}

}  // namespace

std::string status_line(const MemoryStatus& status) {
  std::string text = status.window == 0 ? "[memory] baseline" : fmt::format("[memory] window {}", status.window);
  if (status.world > 1) text += fmt::format(" | rank {} of {}", status.rank, status.world);
  const auto target = static_cast<std::int64_t>(std::llround(status.target * static_cast<double>(status.budget)));
  text += fmt::format(" | current {}{} | peak {} | target {} | budget {}", share(status.current, status.current_budget),
                      status.world > 1 ? " on rank 0" : "", share(status.peak, status.budget),
                      share(target, status.budget), format_bytes(status.budget));
  text += fmt::format(" | micro-batch {} x {} | resolution {} | recompute {} | retries {}", micro_batch(status),
                      status.plan.accumulation, resolution(status), recompute(status), status.retries);
  return status.note.empty() ? text : text + " | " + status.note;
}

std::string progress_line(const Progress& progress) {
  return fmt::format("step {}/{} ({:.0f} %) | loss {:.4g} | {:.3g} samples/s | peak {} | {} left", progress.step,
                     progress.total, std::floor(percent(progress.step, progress.total)), progress.loss,
                     progress.samples_per_second, share(progress.peak, progress.budget),
                     format_duration(progress.left));
}

std::string format_duration(std::chrono::duration<double> duration) {
  const double value = std::clamp(std::isfinite(duration.count()) ? duration.count() : 0.0, 0.0, 1e9);
  const auto seconds = static_cast<std::int64_t>(std::llround(value));
  const std::int64_t minutes = seconds / 60 % 60, hours = seconds / 3600 % 24, days = seconds / 86400;
  if (days > 0) return fmt::format("{} d {:02}:{:02}:{:02}", days, hours, minutes, seconds % 60);
  if (hours > 0) return fmt::format("{}:{:02}:{:02}", hours, minutes, seconds % 60);
  return minutes > 0 ? fmt::format("{}:{:02}", minutes, seconds % 60) : fmt::format("{} s", seconds);
}

Console::Console(std::FILE* to, bool terminal, std::int64_t every, std::size_t columns)
    : to_(to), terminal_(terminal), every_(std::max<std::int64_t>(1, every)), columns_(columns) {}

Console::~Console() {
  if (!shown_.empty()) fmt::print(to_, "\n");
  std::fflush(to_);
}

void Console::line(const std::string& text) {
  // Back to the first column and clear to the end: the progress line makes room and is drawn again below.
  fmt::print(to_, "{}{}\n", shown_.empty() ? "" : "\r\x1b[K", text);
  if (!shown_.empty()) draw();
  std::fflush(to_);
}

void Console::progress(const Progress& progress, Clock::time_point now) {
  const bool last = progress.step >= progress.total;
  if (!terminal_) {
    if (last || progress.step % every_ == 0) line(progress_line(progress));
    return;
  }
  if (!last && !shown_.empty() && now - drawn_ < kRedraw) return;
  drawn_ = now;
  shown_ = progress_line(progress).substr(0, columns_ > 1 ? columns_ - 1 : 1);
  draw();
  std::fflush(to_);
}

void Console::draw() { fmt::print(to_, "\r{}\x1b[K", shown_); }

bool watched_by_a_person() {
  const char* told = std::getenv("PLIMSOLL_TERMINAL");
  return told != nullptr ? std::string_view(told) == "1" : ::isatty(STDOUT_FILENO) == 1;
}

std::size_t terminal_columns() {
  winsize size{};
  const bool known = ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : kColumns;
}

}  // namespace plimsoll::report
