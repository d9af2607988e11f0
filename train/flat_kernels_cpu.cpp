// Which flat kernels serve which device, and the CPU's.

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>

#include "core/error.h"
#include "train/flat_kernels.h"

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

// True if all of it is finite.
bool write_piece(const float* from, const float* gradient, float* to, std::int64_t n) {
  bool finite = true;
  for (std::int64_t i = stream_sums(from, gradient, to, n, finite); i < n; ++i) {
    to[i] = from == nullptr ? gradient[i] : from[i] + gradient[i];
    finite = finite && (std::bit_cast<std::uint32_t>(to[i]) & kExponent) != kExponent;
  }
  return finite;
}

class CpuFlatKernels final : public FlatKernels {
 public:
  void write_sum(const float* from, const float* gradient, float* to, std::int64_t n,
                 std::uint32_t* bad) const override {
    at::parallel_for(0, (n + kLine - 1) / kLine, kGrain, [&](std::int64_t first_line, std::int64_t last_line) {
      const std::int64_t first = first_line * kLine, last = std::min(n, last_line * kLine);
      const float* part = from == nullptr ? nullptr : from + first;
      if (!write_piece(part, gradient + first, to + first, last - first)) std::atomic_ref<std::uint32_t>(*bad).store(1);
    });
  }
  void fill_zeros(std::span<float> to) const override { std::ranges::fill(to, 0.0F); }
  void copy(std::span<const float> from, float* to) const override { std::ranges::copy(from, to); }
  void clear(std::uint32_t* bad) const override { *bad = 0; }
  bool is_set(const std::uint32_t* bad) const override { return *bad != 0; }
  double l2_norm(std::span<const float> values) const override { return train::l2_norm(values); }
  void adamw(std::span<float> parameter, std::span<const float> gradient, std::span<float> first_moment,
             std::span<float> second_moment, const AdamWFactors& factors) const override {
    adamw_update(parameter, gradient, first_moment, second_moment, factors);
  }
  void to_host(std::span<const float> from, float* host) const override { std::ranges::copy(from, host); }
  void from_host(std::span<const float> host, float* to) const override { std::ranges::copy(host, to); }
};

std::array<const FlatKernels*, c10::COMPILE_TIME_MAX_DEVICE_TYPES>& table() {
  static const CpuFlatKernels cpu;
  static std::array<const FlatKernels*, c10::COMPILE_TIME_MAX_DEVICE_TYPES> kernels = [] {
    std::array<const FlatKernels*, c10::COMPILE_TIME_MAX_DEVICE_TYPES> built_in{};
    built_in[static_cast<std::size_t>(c10::kCPU)] = &cpu;
    return built_in;
  }();
  return kernels;
}

}  // namespace

const FlatKernels* flat_kernels_for(c10::DeviceType device) {
  const FlatKernels* kernels = table()[static_cast<std::size_t>(device)];
  if (kernels == nullptr && device != c10::kMeta)
    fail(ExitCode::kUsage, "no flat kernels for device {}: open its library first", c10::DeviceTypeName(device));
  return kernels;
}

void register_flat_kernels(c10::DeviceType device, const FlatKernels* kernels) {
  table()[static_cast<std::size_t>(device)] = kernels;
}

}  // namespace plimsoll::train
