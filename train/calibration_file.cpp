#include "train/calibration_file.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <cstdlib>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "ddp/handshake.h"

namespace plimsoll::train {
namespace {

std::optional<std::filesystem::path> cache_folder() {
  if (const char* given = std::getenv("XDG_CACHE_HOME"); given != nullptr && *given != '\0') return given;
  if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0')
    return std::filesystem::path(home) / ".cache";
  return std::nullopt;
}

std::string text_of_file(const std::filesystem::path& file) {
  std::error_code none;
  if (!std::filesystem::exists(file, none)) return "";
  try {
    std::string text = read_file(file);
    if (text.empty()) spdlog::warn("{}: it is empty, which no calibration is; it is ignored", file.string());
    return text;
  } catch (const Error& error) {
    spdlog::warn("{}; it is ignored", error.what());
    return "";
  }
}

}  // namespace

std::optional<std::filesystem::path> calibration_file(const memory::MemoryConfig& config, const std::string& key) {
  if (config.calibration == "off") return std::nullopt;
  if (config.calibration != "auto") return config.calibration;
  auto folder = cache_folder();
  if (!folder) return std::nullopt;
  return *folder / "plimsoll" / fmt::format("calibration-{:016x}.json", xxh3_64(std::as_bytes(std::span(key))));
}

std::string model_key(const Config& config, std::uint64_t layout_hash) {
  const auto shape = xxh3_128_of_file((std::filesystem::path(config.model.path) / "config.json").string());
  return fmt::format("model {}, {}, trained {:016x}", shape, config.model.dtype, layout_hash);
}

std::string calibration_key(const Session& session) {
  return fmt::format("{}, {}, {}", c10::DeviceTypeName(session.device.place.type(), true), session.device.name,
                     model_key(session.config, session.buffers->layout_hash()));
}

memory::Calibration read_calibration(Session& session) {
  std::string text;
  const std::string key = calibration_key(session);
  const auto file = calibration_file(session.config.memory, key);
  if (session.communicator.rank() == 0 && file) text = text_of_file(*file);
  text = ddp::share_text(session.communicator, text).front();
  if (text.empty()) return {};
  try {
    return memory::calibration_from_json(text, key).for_world(session.communicator.world());
  } catch (const Error& error) {
    if (session.communicator.rank() == 0)
      spdlog::warn("{}: {}; it is ignored, and written anew at the next checkpoint", file->string(), error.what());
    return {};
  }
}

void write_calibration(const Session& session) {
  if (session.communicator.rank() != 0) return;
  const auto& calibration = session.controller->state().calibration;
  const std::string key = calibration_key(session);
  const auto file = calibration_file(session.config.memory, key);
  if (!file || calibration.entries().empty()) return;
  try {
    if (file->has_parent_path()) std::filesystem::create_directories(file->parent_path());
    write_file_durably(*file, memory::to_json(calibration, key));
  } catch (const std::exception& error) {
    spdlog::warn("memory.calibration: {}", error.what());
  }
}

}  // namespace plimsoll::train
