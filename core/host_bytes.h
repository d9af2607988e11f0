#pragma once
// Bytes in host memory that whoever reads them shares: features of a sample, wherever in host memory they lie.

#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace plimsoll {

/// Cheap to copy; the memory lives as long as any copy does. Any thread.
class HostBytes {
 public:
  HostBytes() = default;
  HostBytes(std::vector<std::byte> bytes) : size_(bytes.size()) {  // NOLINT(google-explicit-constructor)
    const auto owner = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
    data_ = std::shared_ptr<const std::byte[]>(owner, owner->data());
  }
  HostBytes(std::shared_ptr<const std::byte[]> data, std::size_t size) : data_(std::move(data)), size_(size) {}

  const std::byte* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  const std::byte* begin() const { return data_.get(); }
  const std::byte* end() const { return data_.get() + size_; }
  const std::byte& operator[](std::size_t at) const { return data_[static_cast<std::ptrdiff_t>(at)]; }

 private:
  std::shared_ptr<const std::byte[]> data_;
  std::size_t size_ = 0;
};

}  // namespace plimsoll
