#pragma once
// [cache]: features that are kept across epochs.

#include <string>

#include "core/config.h"

namespace plimsoll::cache {

/// [cache]. "prefix" changes nothing that is learned: what is read equals what was written, bit for bit.
struct CacheConfig {
  std::string mode = "off", dir = "feature-cache";
  Setting disk_bytes = "auto";

  template <class V>
  void visit(V& v) {
    v("mode", mode,
      "What is kept across epochs: \"off\" (nothing) or \"prefix\" (what vision tower and merger make of a sample's "
      "images, which never changes while no adapter is in the vision tower).",
      one_of({"off", "prefix"}));
    v("dir", dir,
      "Folder of the feature cache. Any number of runs may share it: what depends on model, dataset, resolution or "
      "dtype "
      "lies in folders of its own.",
      not_empty());
    v("disk_bytes", disk_bytes,
      "Bytes that the features of these samples may take there: \"auto\" (what there is and nine tenths of what the "
      "disk "
      "has free) or a size. What does not fit is computed in every epoch.",
      either({one_of({"auto"}), byte_size()}));
  }
};

}  // namespace plimsoll::cache
