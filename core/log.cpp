#include "core/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <array>

#include "core/error.h"

namespace plimsoll {
namespace {

/// %*: "warning: " or "error: ", nothing for ordinary messages.
class SeverityFlag : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&, spdlog::memory_buf_t& to) override {
    const std::string_view word = message.level >= spdlog::level::err    ? "error: "
                                  : message.level == spdlog::level::warn ? "warning: "
                                                                         : "";
    to.append(word.data(), word.data() + word.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<SeverityFlag>(); }
};

spdlog::level::level_enum level_of(const std::string& name) {
  static constexpr std::array<const char*, 5> kLevels{"debug", "info", "warning", "error", "off"};
  for (const char* known : kLevels) {
    if (name == known) return spdlog::level::from_str(name);
  }
  fail(ExitCode::kUsage, "log level \"{}\" is unknown; use debug, info, warning, error or off", name);
}

}  // namespace

void start_logging(const std::string& level, int rank, int world) {
  const auto threshold = level_of(level);
  auto logger = std::make_shared<spdlog::logger>("plimsoll", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<SeverityFlag>('*').set_pattern(world > 1 ? fmt::format("[rank {}] %*%v", rank) : "%*%v");
  logger->set_formatter(std::move(formatter));
  logger->set_level(threshold);
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace plimsoll
