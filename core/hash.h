#pragma once
// xxHash3 over bytes and files: for agreement between ranks and for checksums on disk, not against an adversary.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace plimsoll {

std::uint64_t xxh3_64(std::span<const std::byte> bytes, std::uint64_t seed = 0);

/// 128 bits as 32 lower-case hexadecimal digits, most significant first (what `xxhsum -H2` prints).
std::string xxh3_128(std::span<const std::byte> bytes);

/// The same of a file's content, read in blocks. Throws Error(kData) when it cannot be read.
std::string xxh3_128_of_file(const std::string& path);

/// Hash of bytes that come in pieces: digest_64() is xxh3_64() of all of them with that seed, and with seed 0
/// digest_128() is xxh3_128(). Not thread-safe.
class Hasher {
 public:
  explicit Hasher(std::uint64_t seed = 0);
  ~Hasher();
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;
  void update(std::span<const std::byte> bytes);
  std::uint64_t digest_64() const;
  std::string digest_128() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace plimsoll
