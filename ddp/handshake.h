#pragma once
// Before the first step: do all ranks run the same thing? Collective calls; main thread of every rank, in the same
// order.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "ddp/communicator.h"

namespace plimsoll::ddp {

/// One thing that must be equal everywhere: build, configuration, buffer layout, weights, model files, dataset, types
/// of samples.
struct HandshakeItem {
  std::string name;        ///< as a person calls it: "dataset"
  std::uint64_t hash = 0;  ///< of all that matters about it; this is what is compared
  std::string shown;       ///< what to show beside the hash when ranks differ: a path, a version; may be empty
};

/// Compares `items` (same names, same order, none twice) with those of every rank. The first difference in rank order,
/// then in the order of rank 0's items, throws the same Error(kUsage) on all ranks: it names rank, item and both
/// values.
void compare_items(Communicator& communicator, std::span<const HandshakeItem> items);

/// The same comparison without a communicator: `ranks[r]` are the items of rank r. Pure.
void check_items(std::span<const std::vector<HandshakeItem>> ranks);

/// Every rank's numbers, in rank order: budgets, sizes. The count may differ between ranks.
std::vector<std::vector<std::int64_t>> share_numbers(Communicator& communicator, std::span<const std::int64_t> numbers);

/// Every rank's text, in rank order; lengths may differ (host names, the choice that rank 0 made).
std::vector<std::string> share_text(Communicator& communicator, const std::string& text);

}  // namespace plimsoll::ddp
