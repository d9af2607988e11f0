// The flat buffers' kernels (train/cuda/flat_kernels.cu) beside the CPU's: sums and updates to the bit.

#include <array>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <span>

#include "tests/model/cuda_emulator/comparison.h"
#include "train/adamw.h"

namespace plimsoll::train {
namespace {

const FlatKernels& on_host() { return *flat_kernels_for(c10::kCPU); }

/// Floats that begin so many elements behind a cache line.
class Floats {
 public:
  explicit Floats(const at::Tensor& values, std::int64_t behind = 0)
      : memory_(at::empty({values.numel() + behind})), behind_(behind) {
    memory_.slice(0, behind).copy_(values);
  }
  Floats(const Floats& other) : Floats(other.values(), other.behind_) {}
  Floats& operator=(const Floats&) = delete;

  float* data() { return memory_.mutable_data_ptr<float>() + behind_; }
  std::span<float> span() { return {data(), static_cast<std::size_t>(memory_.numel() - behind_)}; }
  at::Tensor values() const { return memory_.slice(0, behind_); }

 private:
  at::Tensor memory_;
  std::int64_t behind_;
};

bool same_bits(Floats& a, Floats& b) { return std::memcmp(a.data(), b.data(), a.span().size_bytes()) == 0; }

/// Normal values, and some that are subnormal or zero.
at::Tensor values_of(std::int64_t n) {
  const at::Tensor values = at::randn({n});
  if (n > 2) values[1] = -0.0F;
  if (n > 3) values[2] = 1e-41F;
  return values;
}

constexpr std::array<std::int64_t, 7> kSizes = {1, 3, 4, 5, 255, 1024, 2051};

class FlatKernelTest : public testing::Test {
 protected:
  void SetUp() override { at::manual_seed(1); }
  const FlatKernels& gpu_ = flat_kernels_under_test();
};

struct WrittenSum {
  Floats to;
  bool bad;
};

/// With a flag that is not set before. `to` begins a cache line, as the CPU's kernel needs it, unless said otherwise.
WrittenSum written(const FlatKernels& kernels, Floats* from, Floats& gradient, std::int64_t to_behind = 0) {
  const auto n = static_cast<std::int64_t>(gradient.span().size());
  Floats to(at::full({n}, std::numeric_limits<float>::quiet_NaN()), to_behind);
  std::uint32_t bad = 7;
  kernels.clear(&bad);
  kernels.write_sum(from == nullptr ? nullptr : from->data(), gradient.data(), to.data(), n, &bad);
  return {to, kernels.is_set(&bad)};
}

TEST_F(FlatKernelTest, SumsHaveTheSameBits) {
  for (const std::int64_t n : kSizes) {
    for (const std::int64_t behind : {0, 1}) {  // the second leaves no sixteen bytes aligned
      SCOPED_TRACE(testing::Message() << n << " elements, " << behind << " behind a line");
      Floats old(values_of(n)), gradient(values_of(n).flip({0}), behind);
      for (Floats* from : {&old, static_cast<Floats*>(nullptr)}) {
        WrittenSum ours = written(gpu_, from, gradient, behind), theirs = written(on_host(), from, gradient);
        EXPECT_TRUE(same_bits(ours.to, theirs.to));
        EXPECT_FALSE(ours.bad);
        EXPECT_FALSE(theirs.bad);
      }
    }
  }
}

TEST_F(FlatKernelTest, ASumMayGoWhereItCameFrom) {
  Floats ours(values_of(37)), gradient(values_of(37));
  WrittenSum theirs = written(on_host(), &ours, gradient);
  std::uint32_t bad = 0;
  gpu_.write_sum(ours.data(), gradient.data(), ours.data(), 37, &bad);
  EXPECT_TRUE(same_bits(ours, theirs.to));
}

/// What is not finite at one place is found, whichever pointers are aligned, and nothing else is changed by it.
void expect_found(const FlatKernels& kernels, const at::Tensor& values, std::int64_t place, float bad_value,
                  std::int64_t behind) {
  SCOPED_TRACE(testing::Message() << bad_value << " at " << place << " of " << values.numel() << ", " << behind
                                  << " behind a line");
  const at::Tensor spoiled = values.clone();
  spoiled[place] = bad_value;
  Floats old(at::zeros_like(values)), gradient(spoiled, behind);
  old.data()[place] = std::isfinite(bad_value) ? bad_value : 0.0F;  // the sum of two such is infinite
  WrittenSum ours = written(kernels, &old, gradient, behind), alone = written(kernels, nullptr, gradient, behind);
  EXPECT_TRUE(ours.bad);
  EXPECT_EQ(alone.bad, !std::isfinite(bad_value));
  EXPECT_FALSE(std::isfinite(ours.to.data()[place]));
  ours.to.data()[place] = values[place].item<float>();
  EXPECT_TRUE(at::equal(ours.to.values(), values));
}

TEST_F(FlatKernelTest, WhatIsNotFiniteIsFoundAnywhere) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::array<float, 4> bad_values = {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN(), 3e38F};
  for (const std::int64_t n : {std::int64_t{1}, std::int64_t{5}, std::int64_t{1027}}) {
    const at::Tensor values = values_of(n);
    for (const float bad_value : bad_values) {
      for (const std::int64_t behind : {0, 1}) {
        for (const std::int64_t place : {std::int64_t{0}, n / 2, n - 1})
          expect_found(gpu_, values, place, bad_value, behind);
      }
    }
  }
}

TEST_F(FlatKernelTest, OnlyClearTakesTheFlagBack) {
  Floats fine(values_of(9)), to(values_of(9));
  std::uint32_t bad = 0;
  gpu_.clear(&bad);
  Floats spoiled(at::full({9}, std::numeric_limits<float>::infinity()));
  gpu_.write_sum(nullptr, spoiled.data(), to.data(), 9, &bad);
  gpu_.write_sum(nullptr, fine.data(), to.data(), 9, &bad);
  EXPECT_TRUE(gpu_.is_set(&bad));
  gpu_.clear(&bad);
  EXPECT_FALSE(gpu_.is_set(&bad));
}

/// What an update reads and writes.
struct Moments {
  Floats parameter, first, second;
  void update(const FlatKernels& kernels, Floats& gradient, std::int64_t step) {
    const AdamWFactors factors = adamw_factors({1e-3, 0.9, 0.999, 1e-8, 0.1}, step, 0.37F);
    kernels.adamw(parameter.span(), gradient.span(), first.span(), second.span(), factors);
  }
};

TEST_F(FlatKernelTest, UpdatesHaveTheSameBits) {
  for (const std::int64_t n : kSizes) {
    for (const std::int64_t behind : {0, 1, 4}) {
      SCOPED_TRACE(testing::Message() << n << " elements, " << behind << " behind a line");
      const Floats zeros(at::zeros({n}), behind);
      Moments ours{Floats(values_of(n), behind), zeros, zeros};
      Moments theirs = ours;
      for (std::int64_t step = 1; step <= 3; ++step) {
        Floats gradient(values_of(n), behind);
        ours.update(gpu_, gradient, step);
        theirs.update(on_host(), gradient, step);
      }
      EXPECT_TRUE(same_bits(ours.parameter, theirs.parameter));
      EXPECT_TRUE(same_bits(ours.first, theirs.first));
      EXPECT_TRUE(same_bits(ours.second, theirs.second));
    }
  }
}

// Of more elements than the blocks have threads each sums a longer part: 262,144 of these, which is long in the
// emulator.
TEST_F(FlatKernelTest, TheNormIsTheCpusAndAlwaysTheSame) {
  const bool large = model::on_a_gpu() || std::getenv("PLIMSOLL_PROOFS") != nullptr;
  for (const std::int64_t n : {std::int64_t{0}, std::int64_t{1}, std::int64_t{1000}, std::int64_t{20'001},
                               std::int64_t{large ? 300'007 : 4'003}}) {
    SCOPED_TRACE(n);
    Floats values(values_of(n), 1);
    const double ours = gpu_.l2_norm(values.span()), theirs = on_host().l2_norm(values.span());
    EXPECT_NEAR(ours, theirs, 1e-12 * theirs);
    EXPECT_EQ(gpu_.l2_norm(values.span()), ours) << "the order of a sum depends on what runs when";
  }
}

TEST_F(FlatKernelTest, MemoryIsFilledAndCopied) {
  Floats from(values_of(33)), to(at::ones({33})), host(at::ones({33}));
  gpu_.copy(from.span(), to.data());
  EXPECT_TRUE(same_bits(from, to));
  gpu_.fill_zeros(to.span());
  EXPECT_TRUE(at::equal(to.values(), at::zeros({33})));
  gpu_.from_host(from.span(), to.data());
  gpu_.to_host(to.span(), host.data());
  EXPECT_TRUE(same_bits(from, host));
}

}  // namespace
}  // namespace plimsoll::train
