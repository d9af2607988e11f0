#include "core/hash.h"

#include <fmt/format.h>
#include <xxhash.h>
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>  // the widest vectors that this machine has, in place of those that all have
#endif

#include <cstdio>
#include <cstring>
#include <new>
#include <vector>

#include "core/error.h"

namespace plimsoll {

struct Hasher::State {
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> xxh{XXH3_createState()};
};

Hasher::Hasher(std::uint64_t seed) : state_(std::make_unique<State>()) {
  if (!state_->xxh) throw std::bad_alloc();
  // With the default secret, or the one that follows from a seed, one state serves both widths.
  XXH3_128bits_reset_withSeed(state_->xxh.get(), seed);
}
Hasher::~Hasher() = default;
void Hasher::update(std::span<const std::byte> bytes) {
  XXH3_128bits_update(state_->xxh.get(), bytes.data(), bytes.size());
}
std::uint64_t Hasher::digest_64() const { return XXH3_64bits_digest(state_->xxh.get()); }

namespace {
std::string hex(XXH128_hash_t hash) { return fmt::format("{:016x}{:016x}", hash.high64, hash.low64); }
}  // namespace

std::string Hasher::digest_128() const { return hex(XXH3_128bits_digest(state_->xxh.get())); }

std::uint64_t xxh3_64(std::span<const std::byte> bytes, std::uint64_t seed) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}
std::string xxh3_128(std::span<const std::byte> bytes) { return hex(XXH3_128bits(bytes.data(), bytes.size())); }

std::string xxh3_128_of_file(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (!file) fail(ExitCode::kData, "cannot open {}: {}", path, std::strerror(errno));
  Hasher hasher;
  std::vector<std::byte> block(std::size_t{1} << 20);
  while (const std::size_t n = std::fread(block.data(), 1, block.size(), file.get())) hasher.update({block.data(), n});
  if (std::ferror(file.get()) != 0) fail(ExitCode::kData, "cannot read {}: {}", path, std::strerror(errno));
  return hasher.digest_128();
}

}  // namespace plimsoll
