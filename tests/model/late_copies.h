#pragma once
// A CPU that copies beside its computing as a GPU does, at its latest: values move when somebody waits for them. Who
// reads them, or lets go of their memory, without having waited gets something else.

#include <gtest/gtest.h>

#include <array>
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
    std::memset(to.mutable_data_ptr(), 0x7F, to.nbytes());  // no number that a reader could take for the values
    return std::make_unique<Late>(from, to);
  }

 private:
  // Holds neither tensor: whoever asked for the copy must, until it has waited.
  class Late final : public Transfer {
   public:
    Late(const at::Tensor& from, const at::Tensor& to)
        : from_(from.const_data_ptr()),
          to_(to.mutable_data_ptr()),
          bytes_(from.nbytes()),
          held_{from.storage().getWeakStorageImpl(), to.storage().getWeakStorageImpl()} {}
    ~Late() override { wait(); }
    Late(const Late&) = delete;
    Late& operator=(const Late&) = delete;
    void wait() override {
      if (bytes_ == 0) return;
      if (held_[0].expired() || held_[1].expired()) {
        ADD_FAILURE() << "the memory of a copy was let go of before anybody had waited for it";
      } else {
        std::memcpy(to_, from_, bytes_);
      }
      bytes_ = 0;
    }

   private:
    const void* from_;
    void* to_;
    std::size_t bytes_;
    std::array<c10::weak_intrusive_ptr<c10::StorageImpl>, 2> held_;
  };
};

/// While one lives, the CPU copies so, and dry runs know it.
class CopyLate {
 public:
  CopyLate() : before_(host_copies_for(c10::kCPU)), before_dry_(host_copies_for(c10::kMeta)) {
    register_host_copies(c10::kCPU, &copies_);
    register_host_copies(c10::kMeta, &dry_host_copies());
  }
  ~CopyLate() {
    register_host_copies(c10::kCPU, before_);
    register_host_copies(c10::kMeta, before_dry_);
  }
  CopyLate(const CopyLate&) = delete;
  CopyLate& operator=(const CopyLate&) = delete;

 private:
  LateCopies copies_;
  const HostCopies *before_, *before_dry_;
};

}  // namespace plimsoll::model
