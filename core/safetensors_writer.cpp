#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "core/safetensors.h"

namespace plimsoll {
namespace {

using Json = nlohmann::ordered_json;

std::uint64_t declared_size(const TensorSource& tensor, const std::string& file, ExitCode code) {
  std::uint64_t size = dtype_size(tensor.dtype);
  if (size == 0) fail(code, "{}: tensor \"{}\": unknown dtype \"{}\"", file, tensor.name, tensor.dtype);
  for (const std::int64_t extent : tensor.shape) {
    const bool bad = extent < 0 || __builtin_mul_overflow(size, static_cast<std::uint64_t>(extent), &size);
    if (bad) fail(code, "{}: tensor \"{}\": its shape is negative or overflows", file, tensor.name);
  }
  return size;
}

void check_size(const TensorSource& tensor, std::size_t given, std::uint64_t declared, const std::string& file,
                ExitCode code) {
  if (given == declared) return;
  fail(code, "{}: tensor \"{}\": {} bytes were given, its shape needs {}", file, tensor.name, given, declared);
}

void sort_for_alignment(std::vector<TensorSource>& tensors, const std::string& file, ExitCode code) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorSource& a, const TensorSource& b) {
    const auto size_a = dtype_size(a.dtype), size_b = dtype_size(b.dtype);
    return size_a != size_b ? size_a > size_b : std::tie(a.dtype, a.name) < std::tie(b.dtype, b.name);
  });
  std::vector<std::string> names;
  for (const TensorSource& tensor : tensors) names.push_back(tensor.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) fail(code, "{}: tensor \"{}\" is given twice", file, *twice);
  if (std::binary_search(names.begin(), names.end(), "__metadata__")) {
    fail(code, "{}: a tensor cannot be called __metadata__", file);
  }
}

std::string header_of(const std::vector<TensorSource>& tensors, const std::map<std::string, std::string>& metadata,
                      const std::string& file, ExitCode code) {
  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const TensorSource& tensor : tensors) {
    const std::uint64_t size = declared_size(tensor, file, code);
    if (!tensor.make) check_size(tensor, tensor.bytes.size(), size, file, code);
    header[tensor.name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + size}}};
    offset += size;
  }
  std::string text = header.dump(-1, ' ', false, Json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data begins aligned
  return text;
}

// By value: what the source holds is let go of once it is written.
// NOLINTNEXTLINE(performance-unnecessary-value-param)
void write_tensor(DurableFile& out, TensorSource tensor, const std::string& file, ExitCode code) {
  if (!tensor.make) return out.write(tensor.bytes);
  const std::vector<std::byte> made = tensor.make();
  check_size(tensor, made.size(), declared_size(tensor, file, code), file, code);
  out.write(made);
}

}  // namespace

std::string write_safetensors(const std::filesystem::path& path, std::vector<TensorSource> tensors,
                              const std::map<std::string, std::string>& metadata, ExitCode code) {
  const std::string file = path.string();
  sort_for_alignment(tensors, file, code);
  const std::string header = header_of(tensors, metadata, file, code);
  DurableFile out(path, code);
  std::array<std::byte, 8> length{};
  for (std::size_t i = 0; i < 8; ++i) length[i] = static_cast<std::byte>(header.size() >> (8 * i));
  out.write(length);
  out.write(std::as_bytes(std::span(header)));
  for (TensorSource& tensor : tensors) write_tensor(out, std::move(tensor), file, code);
  out.commit();
  return out.digest();
}

}  // namespace plimsoll
