// How many cases RapidCheck takes: 10,000 of each property with PLIMSOLL_PROOFS=1, else a small slice that is the same
// every time. RC_PARAMS, when set, is left alone.
#include <cstdlib>

namespace plimsoll::memory {
namespace {

// RapidCheck reads its parameters at the first property; this runs before main().
const bool kSet = [] {
  const char* proofs = std::getenv("PLIMSOLL_PROOFS");
  const bool full = proofs != nullptr && proofs[0] == '1';
  return setenv("RC_PARAMS", full ? "max_success=10000" : "seed=20 max_success=200", 0) == 0;
}();

}  // namespace
}  // namespace plimsoll::memory
