#include "train/model_files.h"

#include <filesystem>
#include <set>
#include <span>

#include "core/error.h"
#include "core/hash.h"

namespace plimsoll::train {

std::uint64_t hash_of_model_files(const std::string& dir) {
  namespace fs = std::filesystem;
  std::error_code error;
  std::set<fs::path> files;
  for (fs::directory_iterator entry(dir, error), end; !error && entry != end; entry.increment(error)) {
    const auto kind = entry->path().extension();
    if (kind == ".json" || kind == ".safetensors") files.insert(entry->path());
  }
  if (error) fail(ExitCode::kData, "{}: {}; give the directory of a model", dir, error.message());
  std::string sums;
  for (const auto& file : files) sums += file.filename().string() + " " + xxh3_128_of_file(file.string()) + "\n";
  return xxh3_64(std::as_bytes(std::span(sums)));
}

}  // namespace plimsoll::train
