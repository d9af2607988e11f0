#include "model/weights.h"

#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "core/safetensors.h"
#include "core/scope.h"

namespace plimsoll::model {
namespace {

using nlohmann::json;
using Bytes = std::span<const std::byte>;

// `from` may be unaligned, so values are taken out by memcpy.
template <class From, class To>
void convert(Bytes from, void* to) {
  const std::size_t count = from.size() / sizeof(From);
  auto* out = static_cast<To*>(to);
  for (std::size_t i = 0; i < count; ++i) {
    From value;
    std::memcpy(&value, from.data() + i * sizeof(From), sizeof(From));
    out[i] = static_cast<To>(static_cast<float>(value));
  }
}

template <class From>
void convert_to(Bytes from, void* to, at::ScalarType dtype) {
  if (dtype == c10::CppTypeToScalarType<From>::value) {
    std::memcpy(to, from.data(), from.size());
  } else if (dtype == at::kFloat) {
    convert<From, float>(from, to);
  } else {
    convert<From, c10::BFloat16>(from, to);
  }
}

/// Nothing for a dtype that is no float we read.
std::optional<at::ScalarType> stored_type(const std::string& dtype) {
  if (dtype == "F32") return at::kFloat;
  if (dtype == "BF16") return at::kBFloat16;
  if (dtype == "F16") return at::kHalf;
  return std::nullopt;
}

void convert_stored(at::ScalarType stored, Bytes from, void* to, at::ScalarType dtype) {
  if (stored == at::kFloat) return convert_to<float>(from, to, dtype);
  if (stored == at::kBFloat16) return convert_to<c10::BFloat16>(from, to, dtype);
  convert_to<c10::Half>(from, to, dtype);
}

/// Into memory of a device that is not the host: from the mapping itself where it has the dtype, so that the file's
/// pages are all that the host holds of it.
void copy_to_device(at::ScalarType stored, Bytes from, Tensor& to) {
  const auto host = at::TensorOptions().dtype(to.scalar_type());
  if (stored == to.scalar_type()) {
    // from_blob only reads: the cast drops const for an interface that has no const pointers.
    to.copy_(at::from_blob(const_cast<std::byte*>(from.data()), to.sizes(), host));
    return;
  }
  const auto converted = std::make_unique_for_overwrite<std::byte[]>(to.nbytes());
  convert_stored(stored, from, converted.get(), to.scalar_type());
  to.copy_(at::from_blob(converted.get(), to.sizes(), host));
}

bool is_buffer(std::string_view name) {
  return name.ends_with("rotary_emb.inv_freq") || name.ends_with("rotary_pos_emb.inv_freq");
}

std::vector<std::string> shard_names(const std::filesystem::path& index) {
  const json root = json::parse(read_file(index), nullptr, false);
  if (root.is_discarded() || !root.is_object() || !root.contains("weight_map") || !root["weight_map"].is_object()) {
    fail(ExitCode::kData, "{}: no weight_map: expected {{\"weight_map\": {{tensor: file}}}}", index.string());
  }
  std::set<std::string> names;
  for (const auto& [tensor, file] : root["weight_map"].items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || std::filesystem::path(name).filename() != name) {
      fail(ExitCode::kData, "{}: tensor {}: file {} is no plain file name", index.string(), tensor, file.dump());
    }
    names.insert(name);
  }
  return {names.begin(), names.end()};
}

std::vector<std::filesystem::path> weight_files(const std::filesystem::path& dir) {
  const auto index = dir / "model.safetensors.index.json", single = dir / "model.safetensors";
  std::vector<std::filesystem::path> files;
  if (std::filesystem::exists(index)) {
    for (const auto& name : shard_names(index)) files.push_back(dir / name);
  } else if (std::filesystem::exists(single)) {
    files.push_back(single);
  } else {
    fail(ExitCode::kData, "{}: neither model.safetensors nor model.safetensors.index.json is there", dir.string());
  }
  return files;
}

}  // namespace

struct WeightSource::Files {
  explicit Files(std::string directory) : dir(std::move(directory)) {}

  struct Found {
    const SafetensorsFile* file;
    const TensorEntry* entry;
    bool used = false;
  };
  std::string dir;
  std::vector<SafetensorsFile> open;
  std::map<std::string, Found> by_name;

  void index() {
    for (const auto& file : open) {
      for (const auto& entry : file.tensors()) add(file, entry);
    }
  }
  void add(const SafetensorsFile& file, const TensorEntry& entry) {
    const std::string name = canonical_name(entry.name);
    if (name.empty()) return;
    const auto [place, fresh] = by_name.try_emplace(name, Found{&file, &entry});
    if (!fresh) {
      fail(ExitCode::kData, "{}: tensor {} is also in {} as {}", file.path().string(), entry.name,
           place->second.file->path().string(), place->second.entry->name);
    }
  }
  Found& find(const std::string& name) {
    const auto place = by_name.find(name);
    if (place == by_name.end())
      fail(ExitCode::kData, "{}: the checkpoint has no tensor {}: config.json and weights do not fit", dir, name);
    return place->second;
  }
};

std::string canonical_name(std::string_view name) {
  if (name.starts_with("lm_head.") || is_buffer(name)) return "";
  const auto prefixed = [&](std::string_view prefix, std::string_view with) {
    return std::string(with).append(name.substr(prefix.size()));
  };
  if (name.starts_with("model.visual.") || name.starts_with("model.language_model.")) return std::string(name);
  if (name.starts_with("visual.") || name.starts_with("language_model.")) return prefixed("", "model.");
  if (name.starts_with("model.")) return prefixed("model.", "model.language_model.");
  return std::string(name);
}

WeightSource::WeightSource(const std::string& dir, at::ScalarType dtype, at::Device device)
    : files_(std::make_unique<Files>(dir)), dtype_(dtype), device_(device) {
  if (device.is_meta()) return;
  for (const auto& file : weight_files(dir)) files_->open.emplace_back(file);
  files_->index();
}

WeightSource::~WeightSource() = default;

Tensor WeightSource::get(const std::string& name, at::IntArrayRef shape) {
  const AllocationLabel label("weights");
  const auto options = at::TensorOptions().dtype(dtype_).device(device_);
  if (device_.is_meta()) return at::empty(shape, options);
  Files::Found& found = files_->find(name);
  found.used = true;
  const TensorEntry& entry = *found.entry;
  const auto at = [&] { return fmt::format("{}: tensor {}", found.file->path().string(), entry.name); };
  if (at::IntArrayRef(entry.shape) != shape) {
    fail(ExitCode::kData, "{} has shape [{}], config.json asks for [{}]", at(), fmt::join(entry.shape, ", "),
         fmt::join(shape, ", "));
  }
  const auto stored = stored_type(entry.dtype);
  if (!stored) fail(ExitCode::kData, "{} has dtype {}: only F32, BF16 and F16 weights can be read", at(), entry.dtype);
  Tensor out = at::empty(shape, options);
  if (device_.is_cpu()) {
    convert_stored(*stored, entry.bytes, out.mutable_data_ptr(), dtype_);
  } else {
    copy_to_device(*stored, entry.bytes, out);
  }
  return out;
}

void WeightSource::finish() const {
  for (const auto& [name, found] : files_->by_name) {
    if (!found.used) {
      fail(ExitCode::kData, "{}: tensor {} is no part of the Qwen2.5-VL that config.json describes",
           found.file->path().string(), found.entry->name);
    }
  }
}

}  // namespace plimsoll::model
