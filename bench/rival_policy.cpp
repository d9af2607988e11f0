#include "bench/rival_policy.h"

#include <algorithm>

namespace plimsoll::bench {

const char* name_of(Rival rival) {
  switch (rival) {
    case Rival::kHalving:
      return "halving";
    case Rival::kNineTenths:
      return "nine-tenths";
    case Rival::kFixedTable:
      return "fixed-table";
    case Rival::kBinarySearch:
      return "binary-search";
  }
  return "";
}

RivalPolicy::RivalPolicy(Rival rival, std::int64_t effective, int ranks, int language_blocks)
    : rival_(rival),
      effective_(effective),
      wanted_(effective),
      ranks_(ranks),
      language_blocks_(language_blocks),
      share_(static_cast<int>((effective + ranks - 1) / ranks)),
      largest_(share_) {
  plan_.micro_batch = share_;
}

void RivalPolicy::start_with(int micro_batch) {
  plan_.micro_batch = std::min(share_, micro_batch);
  recompute_all();
}

void RivalPolicy::recover() {
  switch (rival_) {
    case Rival::kHalving:
      if (plan_.micro_batch == 1) return recompute();
      plan_.micro_batch = (plan_.micro_batch + 1) / 2;
      return;
    case Rival::kNineTenths:
      if (plan_.micro_batch == 1) return recompute();
      plan_.micro_batch = plan_.micro_batch * 9 / 10;
      effective_ = static_cast<std::int64_t>(plan_.micro_batch) * ranks_;
      return restart(Restart::kLoop);
    case Rival::kFixedTable:
      if (plan_.micro_batch == 1) return recompute();
      plan_.micro_batch /= 2;
      return restart(Restart::kProcess);
    case Rival::kBinarySearch:
      // What has failed is not tried again, or the same samples would end the job for ever.
      largest_ = plan_.micro_batch - 1;
      restart(Restart::kProcess);
      return search();
  }
}

// The user's last resort. What starts large starts large again then.
void RivalPolicy::recompute() {
  if (plan_.recompute_blocks == language_blocks_) {
    finished_ = false;
    return;
  }
  recompute_all();
  if (rival_ == Rival::kHalving || rival_ == Rival::kNineTenths) {
    plan_.micro_batch = share_;
    effective_ = wanted_;
  }
  restart(Restart::kProcess);
}

void RivalPolicy::search() {
  int known = 0, unknown = largest_ + 1;
  while (unknown - known > 1) {
    plan_.micro_batch = known + (unknown - known) / 2;
    (trial() ? known : unknown) = plan_.micro_batch;
  }
  if (known > 0) {
    plan_.micro_batch = known;
    return;
  }
  recompute();
  largest_ = share_;
  if (finished_) search();
}

}  // namespace plimsoll::bench
