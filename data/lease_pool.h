#pragma once
// Open decoders and files that threads borrow: opening is slow, and none of them may be used by two threads at once.

#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

namespace plimsoll::data {

/// Keeps up to `most_idle` objects of type T, each made from a path by T(path), ready for the next borrower of that
/// path; the longest unused one is closed first. Any thread; opening and closing happen outside the lock. Each of n
/// threads that borrow one object at a time finds its own, so at most n + most_idle exist.
template <class T>
class LeasePool {
 public:
  explicit LeasePool(std::size_t most_idle) : most_idle_(most_idle) {}

  /// Calls `use(T&)` with an object for `path` that nobody else holds. If `use` throws, the object is closed: its state
  /// is not to be trusted any more.
  template <class Use>
  auto with(const std::string& path, Use&& use) {
    std::unique_ptr<T> object = take(path);
    if (!object) object = std::make_unique<T>(path);
    auto result = use(*object);
    give_back(path, std::move(object));
    return result;
  }

 private:
  /// Null when none for that path is idle.
  std::unique_ptr<T> take(const std::string& path) {
    const std::lock_guard lock(mutex_);
    for (auto item = idle_.begin(); item != idle_.end(); ++item) {
      if (item->first != path) continue;
      auto object = std::move(item->second);
      idle_.erase(item);
      return object;
    }
    return nullptr;
  }

  void give_back(const std::string& path, std::unique_ptr<T> object) {
    std::unique_ptr<T> surplus;  // destroyed after the lock is released
    const std::lock_guard lock(mutex_);
    idle_.emplace_front(path, std::move(object));
    if (idle_.size() <= most_idle_) return;
    surplus = std::move(idle_.back().second);
    idle_.pop_back();
  }

  std::size_t most_idle_;
  std::mutex mutex_;
  std::list<std::pair<std::string, std::unique_ptr<T>>> idle_;  // most recently used first
};

}  // namespace plimsoll::data
