#include "ddp/handshake.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace plimsoll::ddp {
namespace {

using Bytes = std::vector<std::byte>;

void append(Bytes& out, const void* data, std::size_t size) {
  const auto* first = static_cast<const std::byte*>(data);
  out.insert(out.end(), first, first + size);
}

void append_text(Bytes& out, const std::string& text) {
  const std::uint64_t size = text.size();
  append(out, &size, sizeof size);
  append(out, text.data(), text.size());
}

/// Reads what append wrote. The bytes come from a peer that may run another build, so every read is checked.
class Cursor {
 public:
  Cursor(const Bytes& bytes, std::size_t rank) : bytes_(bytes), rank_(rank) {}
  bool at_end() const { return place_ == bytes_.size(); }
  std::uint64_t number() {
    std::uint64_t value = 0;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }
  std::string text() {
    const std::size_t size = number();
    const auto* first = reinterpret_cast<const char*>(take(size));
    return {first, size};
  }

 private:
  const std::byte* take(std::size_t size) {
    if (size > bytes_.size() - place_) {
      fail(ExitCode::kUsage, "the start message of rank {} is cut short: start all ranks from the same program", rank_);
    }
    place_ += size;
    return bytes_.data() + (place_ - size);
  }
  const Bytes& bytes_;
  std::size_t rank_;
  std::size_t place_ = 0;
};

/// all_gather wants equal sizes: first the sizes travel, then everybody's bytes, padded to the largest.
std::vector<Bytes> gather_ragged(Communicator& communicator, Bytes own) {
  const auto world = static_cast<std::size_t>(communicator.world());
  const std::uint64_t size = own.size();
  const Bytes raw = communicator.all_gather(std::as_bytes(std::span(&size, 1)));
  std::vector<std::uint64_t> sizes(world);
  std::memcpy(sizes.data(), raw.data(), world * sizeof(std::uint64_t));
  const std::size_t largest = *std::max_element(sizes.begin(), sizes.end());
  std::vector<Bytes> all(world);
  if (largest == 0) return all;
  own.resize(largest);
  const Bytes padded = communicator.all_gather(own);
  for (std::size_t rank = 0; rank < world; ++rank) {
    const auto first = padded.begin() + static_cast<std::ptrdiff_t>(rank * largest);
    all[rank].assign(first, first + static_cast<std::ptrdiff_t>(sizes[rank]));
  }
  return all;
}

std::string show(const HandshakeItem& item) {
  return item.shown.empty() ? fmt::format("{:016x}", item.hash) : fmt::format("{:016x} ({})", item.hash, item.shown);
}

void check_rank(const std::vector<HandshakeItem>& expected, const std::vector<HandshakeItem>& found, std::size_t rank) {
  for (std::size_t i = 0; i < std::max(expected.size(), found.size()); ++i) {
    if (i >= found.size() || i >= expected.size() || found[i].name != expected[i].name) {
      const std::string name = i < expected.size() ? expected[i].name : found[i].name;
      fail(ExitCode::kUsage,
           "rank {} and rank 0 do not compare the same things, first at \"{}\": start all ranks from the same program",
           rank, name);
    }
    if (found[i].hash != expected[i].hash) {
      fail(ExitCode::kUsage,
           "rank {} differs from rank 0 in its {}: {} against {}; give all ranks the same files and settings", rank,
           expected[i].name, show(found[i]), show(expected[i]));
    }
  }
}

Bytes encode(std::span<const HandshakeItem> items) {
  Bytes out;
  for (const HandshakeItem& item : items) {
    append_text(out, item.name);
    append(out, &item.hash, sizeof item.hash);
    append_text(out, item.shown);
  }
  return out;
}

std::vector<HandshakeItem> decode(const Bytes& bytes, std::size_t rank) {
  std::vector<HandshakeItem> items;
  for (Cursor in(bytes, rank); !in.at_end();) {
    HandshakeItem& item = items.emplace_back();
    item.name = in.text();
    item.hash = in.number();
    item.shown = in.text();
  }
  return items;
}

}  // namespace

void check_items(std::span<const std::vector<HandshakeItem>> ranks) {
  for (std::size_t rank = 1; rank < ranks.size(); ++rank) check_rank(ranks[0], ranks[rank], rank);
}

void compare_items(Communicator& communicator, std::span<const HandshakeItem> items) {
  const std::vector<Bytes> gathered = gather_ragged(communicator, encode(items));
  std::vector<std::vector<HandshakeItem>> ranks;
  for (const Bytes& bytes : gathered) ranks.push_back(decode(bytes, ranks.size()));
  check_items(ranks);
}

std::vector<std::vector<std::int64_t>> share_numbers(Communicator& communicator,
                                                     std::span<const std::int64_t> numbers) {
  Bytes own;
  append(own, numbers.data(), numbers.size_bytes());
  std::vector<std::vector<std::int64_t>> all;
  for (const Bytes& bytes : gather_ragged(communicator, std::move(own))) {
    auto& values = all.emplace_back(bytes.size() / sizeof(std::int64_t));
    if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  }
  return all;
}

std::vector<std::string> share_text(Communicator& communicator, const std::string& text) {
  Bytes own;
  append(own, text.data(), text.size());
  std::vector<std::string> all;
  for (const Bytes& bytes : gather_ragged(communicator, std::move(own))) {
    all.emplace_back(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return all;
}

}  // namespace plimsoll::ddp
