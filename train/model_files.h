#pragma once
// What a model directory holds, as one number: ranks on different machines must read the same.

#include <cstdint>
#include <string>

namespace plimsoll::train {

/// 64-bit hash of names and contents of the JSON and safetensors files right below `dir`, in the order of their names;
/// the place itself does not count. Reads every byte, which the page cache still holds after loading. Throws
/// Error(kData) naming the file that cannot be read.
std::uint64_t hash_of_model_files(const std::string& dir);

}  // namespace plimsoll::train
