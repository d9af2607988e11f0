#pragma once
// Names in a cache folder.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace plimsoll::cache {

inline constexpr const char* kSegment = ".segment";
inline constexpr const char* kFingerprintFile = "fingerprint.json";

/// 16 hexadecimal digits.
std::string folder_name(std::uint64_t fingerprint);
/// The way back; nothing for another name.
std::optional<std::uint64_t> fingerprint_of_folder(const std::string& name);
/// Whether a file in such a folder is the cache's.
bool is_cache_file(const std::filesystem::path& file);
/// What is in a folder, by name, so that all ranks see one order. Throws Error(kData).
std::vector<std::filesystem::path> files_of(const std::filesystem::path& folder);

}  // namespace plimsoll::cache
