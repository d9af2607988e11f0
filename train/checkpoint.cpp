#include "train/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "core/safetensors.h"

namespace plimsoll::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kWeights = "trainable.safetensors";
constexpr const char* kOptimiser = "optimiser.safetensors";
constexpr const char* kState = "state.json";
constexpr const char* kComplete = "complete.json";
constexpr std::size_t kKept = 2;

TensorSource source(const std::string& name, std::span<const float> values) {
  return {name, "F32", {static_cast<std::int64_t>(values.size())}, std::as_bytes(values)};
}

void read_into(const SafetensorsFile& file, const std::string& name, const FlatKernels& kernels, std::span<float> to) {
  const TensorEntry& entry = file.at(name);
  if (entry.dtype != "F32" || entry.bytes.size() != to.size_bytes()) {
    fail(ExitCode::kCheckpoint,
         "{}: tensor {} has {} bytes of {} where this model has {} of F32; it is a checkpoint of another model",
         file.path().string(), name, entry.bytes.size(), entry.dtype, to.size_bytes());
  }
  std::vector<float> values(to.size());  // the file's bytes may be unaligned
  std::memcpy(values.data(), entry.bytes.data(), entry.bytes.size());
  kernels.from_host(values, to.data());
}

json to_json(const RunState& s) {
  return {{"format", 1},
          {"step", s.step},
          {"updates", s.updates},
          {"skips_in_row", s.skips_in_row},
          {"plan",
           {{"resolution", s.plan.resolution},
            {"micro_batch", s.plan.micro_batch},
            {"recompute_blocks", s.plan.recompute_blocks},
            {"recompute_vision", s.plan.recompute_vision},
            {"recompute_expert", s.plan.recompute_expert},
            {"offload", s.plan.offload}}},
          {"policy", s.policy},
          {"window", s.window},
          {"configuration", s.configuration},
          {"adapter_updates", s.adapter_updates},
          {"run", s.run},
          {"features", cache::to_json(s.features)},
          {"balance", to_json(s.balance)}};
}

RunState state_from(const fs::path& file) {
  try {
    const json j = json::parse(read_file(file, ExitCode::kCheckpoint));
    const json& p = j.at("plan");
    // The last three, the window and what follows the configuration came later: older checkpoints lack them.
    const memory::Plan plan{p.at("resolution"),
                            p.at("micro_batch"),
                            p.at("recompute_blocks"),
                            p.value("recompute_vision", 0),
                            p.value("recompute_expert", 0),
                            p.value("offload", false)};
    const std::int64_t updates = j.at("updates");
    return {j.at("step"),
            updates,
            j.at("skips_in_row"),
            plan,
            j.at("policy"),
            j.value("window", ""),
            j.at("configuration"),
            j.value("adapter_updates", updates),
            j.value("run", ""),
            cache::upkeep_from_json(j.value("features", "")),
            balance_from_json(j.value("balance", ""))};
  } catch (const json::exception& error) {
    fail(ExitCode::kCheckpoint, "{}: {}; delete this checkpoint to resume from the one before", file.string(),
         error.what());
  }
}

// Every file below `folder`, by its path from there.
std::vector<fs::path> files_below(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) files.push_back(fs::relative(entry.path(), folder));
  }
  std::ranges::sort(files);
  return files;
}

void write_complete(const fs::path& folder) {
  json sums = json::object();
  for (const auto& file : files_below(folder)) sums[file.string()] = xxh3_128_of_file((folder / file).string());
  write_file_durably(folder / kComplete, json{{"xxh3_128", sums}}.dump(2) + "\n");
}

void verify(const fs::path& folder) {
  std::map<std::string, std::string> sums;
  try {
    json::parse(read_file(folder / kComplete, ExitCode::kCheckpoint)).at("xxh3_128").get_to(sums);
  } catch (const json::exception& error) {
    fail(ExitCode::kCheckpoint, "{}: {}; delete this checkpoint to resume from the one before",
         (folder / kComplete).string(), error.what());
  }
  for (const auto& [name, sum] : sums) {
    const fs::path file = folder / name;
    if (!fs::exists(file))
      fail(ExitCode::kCheckpoint, "{}: missing; delete the folder to resume from the checkpoint before", file.string());
    if (xxh3_128_of_file(file.string()) == sum) continue;
    fail(ExitCode::kCheckpoint,
         "{}: its content changed since it was written; delete the folder to resume from the checkpoint before",
         file.string());
  }
}

std::optional<std::int64_t> step_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  std::int64_t step = 0;
  if (!name.starts_with("step-")) return std::nullopt;
  const auto [end, error] = std::from_chars(name.data() + 5, name.data() + name.size(), step);
  if (error != std::errc() || end != name.data() + name.size() || !fs::exists(folder / kComplete)) return std::nullopt;
  return step;
}

// Complete checkpoints, oldest first.
std::vector<fs::path> complete(const fs::path& root) {
  std::vector<std::pair<std::int64_t, fs::path>> found;
  if (fs::is_directory(root)) {
    for (const auto& entry : fs::directory_iterator(root)) {
      if (const auto step = step_of(entry.path())) found.emplace_back(*step, entry.path());
    }
  }
  std::ranges::sort(found);
  std::vector<fs::path> folders;
  for (auto& [step, folder] : found) folders.push_back(std::move(folder));
  return folders;
}

}  // namespace

fs::path write_checkpoint(const fs::path& root, const RunState& state, FlatBuffers& buffers,
                          const WriteAdapter& write_adapter) {
  fs::path folder = root / fmt::format("step-{}", state.step);
  const fs::path temporary = root / fmt::format(".step-{}.writing", state.step);
  std::error_code ignored;
  fs::remove_all(temporary, ignored);
  std::error_code error;
  fs::create_directories(temporary, error);
  if (error) fail(ExitCode::kCheckpoint, "{}: {}; make the folder writable", temporary.string(), error.message());
  try {
    if (write_adapter) {
      fs::create_directories(temporary / "adapter");
      write_adapter(temporary / "adapter");
    }
    std::vector<TensorSource> weights, moments;
    const HostValues parameters = buffers.on_host(buffers.parameters());
    const HostValues first = buffers.on_host(buffers.first_moment()), second = buffers.on_host(buffers.second_moment());
    for (const auto& slot : buffers.slots()) {
      weights.push_back(source(slot.name, part(parameters.span(), slot.range)));
      moments.push_back(source("first_moment." + slot.name, part(first.span(), slot.range)));
      moments.push_back(source("second_moment." + slot.name, part(second.span(), slot.range)));
    }
    write_safetensors(temporary / kWeights, std::move(weights));
    write_safetensors(temporary / kOptimiser, std::move(moments));
    write_file_durably(temporary / kState, to_json(state).dump(2) + "\n");
    write_complete(temporary);
    fs::remove_all(folder, ignored);
    rename_durably(temporary, folder);
  } catch (...) {
    fs::remove_all(temporary, ignored);
    throw;
  }
  auto folders = complete(root);
  for (std::size_t i = 0; i + kKept < folders.size(); ++i) fs::remove_all(folders[i], ignored);
  return folder;
}

std::optional<fs::path> newest_checkpoint(const fs::path& root) {
  auto folders = complete(root);
  if (folders.empty()) return std::nullopt;
  return folders.back();
}

RunState read_checkpoint(const fs::path& folder, FlatBuffers& buffers) {
  verify(folder);
  const SafetensorsFile weights(folder / kWeights, ExitCode::kCheckpoint);
  const SafetensorsFile moments(folder / kOptimiser, ExitCode::kCheckpoint);
  for (const auto& slot : buffers.slots()) {
    read_into(weights, slot.name, buffers.kernels(), part(buffers.parameters(), slot.range));
    read_into(moments, "first_moment." + slot.name, buffers.kernels(), part(buffers.first_moment(), slot.range));
    read_into(moments, "second_moment." + slot.name, buffers.kernels(), part(buffers.second_moment(), slot.range));
  }
  return state_from(folder / kState);
}

std::size_t read_weights(const fs::path& folder, FlatBuffers& buffers) {
  verify(folder);
  const SafetensorsFile weights(folder / kWeights, ExitCode::kCheckpoint);
  std::size_t count = 0;
  for (const auto& slot : buffers.slots()) {
    if (weights.find(slot.name) == nullptr) continue;
    read_into(weights, slot.name, buffers.kernels(), part(buffers.parameters(), slot.range));
    ++count;
  }
  return count;
}

}  // namespace plimsoll::train
