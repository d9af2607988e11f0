#pragma once
// Host memory for features in large pieces that are made once and kept: pinning memory takes long, and the device's own
// allocator of pinned memory rounds every block up to a power of two. Without torch.

#include <cstddef>
#include <functional>
#include <memory>

namespace plimsoll::cache {

/// Any thread.
class HostPool {
 public:
  /// Makes a piece of so many bytes; null, or a std::exception, where there is none to be had: the pool grows no
  /// further then.
  using MakePiece = std::function<std::shared_ptr<std::byte[]>(std::size_t)>;
  /// Pieces of `piece` bytes, or of a larger block's, and no more than `most` bytes together.
  HostPool(MakePiece make, std::size_t piece, std::size_t most);

  /// A block, which goes back when the last copy ends, also after the pool; null where the pool has no room for it.
  std::shared_ptr<std::byte[]> take(std::size_t bytes);
  std::size_t bytes() const;  ///< of all pieces

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace plimsoll::cache
