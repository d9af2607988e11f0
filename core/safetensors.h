#pragma once
// safetensors files, without torch. Layout: header length (64-bit little endian), header (JSON: name -> dtype, shape,
// data_offsets; `__metadata__`: string -> string), then the tensors' bytes without holes.
// https://github.com/huggingface/safetensors (README, "Format"); the checks are those of its reference implementation.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/error.h"

namespace plimsoll {

/// Bytes of an element of "F32", "BF16", "F16", "F64", "I64", "I32", "I16", "I8", "U8", "U16", "U32", "U64", "BOOL",
/// "F8_E4M3", "F8_E5M2"; 0 for a name that is none of them.
std::size_t dtype_size(const std::string& dtype);

/// A tensor in an open file. `bytes` is row-major and little endian, may be unaligned (copy with memcpy), and is valid
/// as long as the SafetensorsFile it came from.
struct TensorEntry {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;  ///< empty: a scalar
  std::uint64_t offset = 0;         ///< from the end of the header
  std::span<const std::byte> bytes;
};

/// A file mapped read-only. Opening checks everything: a header that is too long, no UTF-8, no JSON or has a key twice;
/// an unknown dtype; a shape that overflows or does not match its range; ranges that overlap, leave holes, or end
/// elsewhere than the file does. Throws Error(code) that names file and tensor. Reading is thread-safe. Do not truncate
/// a file that is open: reading beyond its new end kills the process (SIGBUS), as with every mapping.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path, ExitCode code = ExitCode::kData);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  const std::filesystem::path& path() const { return path_; }
  /// In the order of their bytes.
  const std::vector<TensorEntry>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  /// Null when there is none of that name.
  const TensorEntry* find(const std::string& name) const;
  /// Throws Error(code) when there is none, naming the file.
  const TensorEntry& at(const std::string& name) const;

 private:
  struct Mapping;
  std::filesystem::path path_;
  ExitCode code_;
  std::unique_ptr<Mapping> mapping_;
  std::vector<TensorEntry> tensors_;
  std::map<std::string, std::size_t> by_name_;
  std::map<std::string, std::string> metadata_;
};

/// What a file in memory holds: the checks behind SafetensorsFile. `file` is its name in errors; entries point into
/// `bytes`.
struct SafetensorsContent {
  std::vector<TensorEntry> tensors;  ///< in the order of their bytes
  std::map<std::string, std::string> metadata;
};
SafetensorsContent parse_safetensors(std::span<const std::byte> bytes, const std::string& file,
                                     ExitCode code = ExitCode::kData);

/// A tensor to write: its bytes as they are, or, where `make` is set, a function that is called once, in file order,
/// and whose result is dropped before the next call, so that a model never exists twice in memory.
struct TensorSource {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
  std::function<std::vector<std::byte>()> make = nullptr;
};

/// Writes `tensors` durably (a full disk leaves the old file): equal input gives equal files, ordered by element size
/// (largest first, so that all are aligned) and name. Returns xxh3-128 of the file. Throws Error(code) naming a tensor
/// whose size does not match its shape, a name used twice, or what the disk refused.
std::string write_safetensors(const std::filesystem::path& path, std::vector<TensorSource> tensors,
                              const std::map<std::string, std::string>& metadata = {},
                              ExitCode code = ExitCode::kCheckpoint);

}  // namespace plimsoll
