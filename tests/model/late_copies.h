#pragma once
// A CPU that copies beside its computing as a GPU does, at its latest: values move when somebody waits for them. Who
// reads them, or lets go of their memory, without having waited gets something else.

#include <cstdlib>
#include <cstring>
#include <memory>

#include "model/host_copy.h"

namespace plimsoll::model {

class LateCopies final : public HostCopies {
 public:
  at::Tensor host_like(const at::Tensor& values) const override {
    void* block = std::malloc(values.nbytes());
    std::memset(block, 0x7F, values.nbytes());
    return at::from_blob(
        block, values.sizes(), [](void* made) { std::free(made); }, values.options());
  }
  std::unique_ptr<Transfer> copy(const at::Tensor& from, const at::Tensor& to) const override {
    return std::make_unique<Late>(from.const_data_ptr(), to.mutable_data_ptr(), from.nbytes());
  }

 private:
  // Holds no tensor: whoever asked for the copy must.
  class Late final : public Transfer {
   public:
    Late(const void* from, void* to, std::size_t bytes) : from_(from), to_(to), bytes_(bytes) {}
    ~Late() override { wait(); }
    Late(const Late&) = delete;
    Late& operator=(const Late&) = delete;
    void wait() override {
      if (bytes_ > 0) std::memcpy(to_, from_, bytes_);
      bytes_ = 0;
    }

   private:
    const void* from_;
    void* to_;
    std::size_t bytes_;
  };
};

/// While one lives, the CPU copies so, and dry runs know it.
class CopyLate {
 public:
  CopyLate() {
    register_host_copies(c10::kCPU, &copies_);
    register_host_copies(c10::kMeta, &dry_host_copies());
  }
  ~CopyLate() {
    register_host_copies(c10::kCPU, nullptr);
    register_host_copies(c10::kMeta, nullptr);
  }
  CopyLate(const CopyLate&) = delete;
  CopyLate& operator=(const CopyLate&) = delete;

 private:
  LateCopies copies_;
};

}  // namespace plimsoll::model
