#pragma once
// [cache]: features that are kept across epochs.

#include <cstdint>
#include <string>

#include "core/config.h"

namespace plimsoll::cache {

/// [cache]. "prefix" changes nothing that is learned: what is read equals what was written, bit for bit.
struct CacheConfig {
  std::string mode = "off", dir = "feature-cache", keep = "exact";
  Setting disk_bytes = "auto", host_bytes = "auto", device_bytes = "auto";
  double live_fraction = 0.25, drift_bound = 0.1;
  bool frozen_adapters = false;
  std::int64_t rebuild_epochs = 5, rebuild_over = 0, drift_every = 25, probe_samples = 16;

  template <class V>
  void visit(V& v) {
    v("mode", mode,
      "What is kept across epochs: \"off\" (nothing), \"prefix\" (what vision tower and merger make of a sample's "
      "images, which never changes while no adapter is in the vision tower) or \"hybrid\" (the language model's last "
      "hidden states: exact in stage 1; in stage 2 they age as the adapters learn, which changes what is learned: a "
      "cached sample trains expert and sensor encoder only, and a part of each step runs the whole model). \"auto\": "
      "\"prefix\" where samples are drawn more than once, their images' features stay exact and the disk has room for "
      "them; else \"off\".",
      one_of({"off", "prefix", "hybrid", "auto"}));
    v("dir", dir,
      "Folder of the feature cache. Any number of runs may share it: what depends on model, dataset, resolution "
      "or dtype lies in folders of its own.",
      not_empty());
    v("disk_bytes", disk_bytes,
      "Bytes that the features of these samples may take there: \"auto\" (what there is and nine tenths of what "
      "the disk has free) or a size. What does not fit is computed in every epoch.",
      either({one_of({"auto"}), byte_size()}));
    v("host_bytes", host_bytes,
      "Bytes of a rank's host memory, outside its budget, in which features are kept in front of the disk, on a GPU "
      "pinned: \"auto\" (on a GPU up to half of what is free for the rank; on the CPU none), \"none\" or a size. What "
      "is needed last makes room for what is needed sooner.",
      either({one_of({"auto", "none"}), byte_size()}));
    v("device_bytes", device_bytes,
      "Bytes of a rank's device memory, part of its budget, in which features are kept so that steps need not upload "
      "them: \"auto\" (on a GPU all features where they fit a twentieth of the budget; else none), \"none\" or a "
      "size.",
      either({one_of({"auto", "none"}), byte_size()}));
    v("keep", keep,
      "\"hybrid\": \"exact\" keeps hidden states to the bit, \"int8\" as bytes with a scale a row: half of the disk, "
      "and an error that the run prints.",
      one_of({"exact", "int8"}));
    v("live_fraction", live_fraction,
      "\"hybrid\" in stage 2: part of each step's samples that runs the whole model, so that the adapters learn. Every "
      "sample has its turn equally often; a sample without features runs the whole model too.",
      between(0.0, 1.0));
    v("frozen_adapters", frozen_adapters,
      "\"hybrid\" in stage 2: allow cache.live_fraction = 0, with which the adapters learn nothing once all features "
      "are known.");
    v("rebuild_epochs", rebuild_epochs,
      "\"hybrid\" in stage 2: all features are made anew after so many epochs; 0: never for their age.", at_least(0));
    v("drift_bound", drift_bound,
      "\"hybrid\" in stage 2: all features are made anew when those of the probe samples have moved so far (mean of "
      "relative L2 distances, each counted as 1 at most); a rebuild for age waits an epoch while they moved less than "
      "a tenth of it. 0: neither.",
      between(0.0, 1.0));
    v("drift_every", drift_every, "Steps between two looks at the probe samples; 0: none.", at_least(0));
    v("probe_samples", probe_samples, "Samples whose features are made anew to see how far they moved.", at_least(1));
    v("rebuild_over", rebuild_over,
      "Steps over which a rebuild is spread, while training goes on from the old features; 0: training waits.",
      at_least(0));
  }
};

}  // namespace plimsoll::cache
