#include "train/gradient_sink.h"

#include <ATen/Parallel.h>
#include <ATen/ops/add.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <bit>
#include <limits>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace plimsoll::train {
namespace {

constexpr std::int64_t kLine = 16;    // elements of a cache line
constexpr std::int64_t kGrain = 512;  // lines a thread is worth waking for: most parameters of an adapter are small

// An exponent of all ones is infinite or not a number.
constexpr std::uint32_t kExponent = 0x7f800000U;

#ifdef __SSE2__
// Whole cache lines into memory past the caches: staging is not read again before the next micro-batch, and a line that
// is only written need not be fetched first, which is a third of this pass's traffic. `to` begins a line: slots do, and
// so do the threads' pieces of them.
std::int64_t stream_sums(const float* from, const float* gradient, float* to, std::int64_t n, bool& finite) {
  const __m128i exponent = _mm_set1_epi32(static_cast<int>(kExponent));
  __m128i bad = _mm_setzero_si128();
  const std::int64_t whole = n / kLine * kLine;
  for (std::int64_t line = 0; line < whole; line += kLine) {
    for (std::int64_t i = line; i < line + kLine; i += 4) {
      const __m128 value = _mm_loadu_ps(gradient + i);
      const __m128 sum = from == nullptr ? value : _mm_add_ps(_mm_loadu_ps(from + i), value);
      _mm_stream_ps(to + i, sum);
      bad = _mm_or_si128(bad, _mm_cmpeq_epi32(_mm_and_si128(_mm_castps_si128(sum), exponent), exponent));
    }
  }
  _mm_sfence();  // other threads read staging after the loop
  finite = _mm_movemask_epi8(bad) == 0;
  return whole;
}
#else
std::int64_t stream_sums(const float*, const float*, float*, std::int64_t, bool&) { return 0; }
#endif

// to = from + gradient, or the gradient alone when there is no `from`; true if all of it is finite.
bool write_sum(const float* from, const float* gradient, float* to, std::int64_t n) {
  bool finite = true;
  for (std::int64_t i = stream_sums(from, gradient, to, n, finite); i < n; ++i) {
    to[i] = from == nullptr ? gradient[i] : from[i] + gradient[i];
    finite = finite && (std::bit_cast<std::uint32_t>(to[i]) & kExponent) != kExponent;
  }
  return finite;
}

}  // namespace

// The sequence number is AccumulateGrad's: of the nodes that are ready, the sinks go first and free the gradients.
GradientSink::GradientSink(const at::Tensor& parameter, std::int64_t begin, Accumulation& into)
    : Node(std::numeric_limits<std::uint64_t>::max()), begin_(begin), elements_(parameter.numel()), into_(into) {
  add_input_metadata(parameter);
}

torch::autograd::variable_list GradientSink::apply(torch::autograd::variable_list&& gradients) {
  if (gradients.at(0).defined()) add(gradients[0]);
  return {};
}

void GradientSink::add(const at::Tensor& gradient) {
  if (gradient.is_meta()) return;
  float* to = into_.staging + begin_;
  const float* from = filled_ ? to : into_.empty ? nullptr : into_.sums + begin_;
  filled_ = true;
  at::Tensor strided;  // its sum, for a gradient whose memory is in another order: rare, and a second pass
  if (!gradient.is_contiguous()) {
    strided = at::from_blob(to, gradient.sizes(), gradient.options());
    if (from == nullptr) {
      strided.copy_(gradient);
    } else {
      at::add_out(strided, at::from_blob(const_cast<float*>(from), gradient.sizes(), gradient.options()), gradient);
    }
    from = nullptr;
  }
  const float* values = strided.defined() ? to : gradient.const_data_ptr<float>();
  at::parallel_for(0, (elements_ + kLine - 1) / kLine, kGrain, [&](std::int64_t first_line, std::int64_t last_line) {
    const std::int64_t first = first_line * kLine, last = std::min(elements_, last_line * kLine);
    const float* part = from == nullptr ? nullptr : from + first;
    if (!write_sum(part, values + first, to + first, last - first)) into_.finite = false;
  });
}

void GradientSink::complete() {
  if (filled_) return;
  float* to = into_.staging + begin_;
  if (into_.empty) {
    std::fill_n(to, elements_, 0.0F);
  } else {
    std::copy_n(into_.sums + begin_, elements_, to);
  }
}

}  // namespace plimsoll::train
