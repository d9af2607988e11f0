#include "cache/layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <system_error>

#include "core/error.h"

namespace plimsoll::cache {

std::string folder_name(std::uint64_t fingerprint) { return fmt::format("{:016x}", fingerprint); }

std::optional<std::uint64_t> fingerprint_of_folder(const std::string& name) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), value, 16);
  const bool whole = error == std::errc{} && end == name.data() + name.size();
  return whole && folder_name(value) == name ? std::optional(value) : std::nullopt;
}

bool is_cache_file(const std::filesystem::path& file) {
  const std::string name = file.filename().string();
  // A file that was being written when its process was killed has an ending behind its own.
  const bool index = name.find(std::string(kSegment) + ".") != std::string::npos;
  return index || name.ends_with(kSegment) || name.starts_with(kFingerprintFile);
}

std::vector<std::filesystem::path> files_of(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    files.push_back(it->path());
  if (error)
    fail(ExitCode::kData, "{}: cannot be read: {}; give the run rights to it, or choose another cache.dir",
         folder.string(), error.message());
  std::ranges::sort(files);
  return files;
}

}  // namespace plimsoll::cache
