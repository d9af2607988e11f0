// The expert's own operators against the same formulas in ATen, and their allocations on meta against those on the CPU.

#include "model/expert.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "model/expert_ops.h"
#include "model/sensor.h"
#include "tests/model/event_recorder.h"

namespace plimsoll::model {
namespace {

using testing::events_of;
using testing::install_recorder;

Tensor leaf(at::IntArrayRef shape, at::ScalarType type = at::kFloat) {
  return at::randn(shape, at::kFloat).to(type).requires_grad_();
}

/// Rows [G * n, W] as [G, n, W], and one row per group as [G, 1, W].
Tensor grouped(const Tensor& rows, const Tensor& groups) { return rows.view({groups.size(0), -1, rows.size(1)}); }
Tensor per_group(const Tensor& groups) { return groups.unsqueeze(1); }

Tensor norm_reference(const Tensor& x, const Tensor& shift, const Tensor& scale) {
  const Tensor hat = x * (x.square().mean(-1, true) + 1e-6).rsqrt();
  return (grouped(hat, shift) * (1 + per_group(scale)) + per_group(shift)).view_as(x);
}

/// Gradients of sum(f(inputs) * weights) by all inputs.
std::vector<Tensor> gradients(const std::function<Tensor()>& f, const std::vector<Tensor>& inputs) {
  const Tensor y = f();
  const Tensor weights = at::cos(at::arange(y.numel(), at::kFloat)).view(y.sizes()).to(y.scalar_type());
  return torch::autograd::grad({y}, inputs, {weights});
}

void expect_same(const std::function<Tensor()>& ours, const std::function<Tensor()>& reference,
                 const std::vector<Tensor>& inputs) {
  EXPECT_TRUE(at::allclose(ours(), reference(), 1e-5, 1e-5));
  const auto a = gradients(ours, inputs), b = gradients(reference, inputs);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_TRUE(at::allclose(a[i], b[i], 1e-4, 1e-5)) << "input " << i << " differs by " << (a[i] - b[i]).abs().max();
  }
}

class ExpertOps : public ::testing::Test {
 protected:
  void SetUp() override {
    install_recorder();
    at::manual_seed(7);
  }
};

TEST_F(ExpertOps, ModulatedNormEqualsItsFormula) {
  for (const std::int64_t width : {5, 8, 27}) {
    const Tensor x = leaf({12, width}), shift = leaf({3, width}), scale = leaf({3, width});
    expect_same([&] { return modulated_norm(x, shift, scale); }, [&] { return norm_reference(x, shift, scale); },
                {x, shift, scale});
  }
}

TEST_F(ExpertOps, GatedResidualEqualsItsFormula) {
  const Tensor x = leaf({12, 9}), y = leaf({12, 9}), gate = leaf({4, 9});
  expect_same([&] { return gated_residual(x, y, gate); },
              [&] { return x + (per_group(gate) * grouped(y, gate)).view_as(x); }, {x, y, gate});
  expect_same([&] { return gated_residual(x, y, {}); }, [&] { return x + y; }, {x, y});
}

TEST_F(ExpertOps, EmbedRowsPutsTheStateBeforeEveryDraw) {
  const std::int64_t samples = 2, draws = 3, chunk = 4, width = 6;
  const Tensor rows = leaf({samples * draws * chunk, width}), lead = leaf({samples, width}),
               places = leaf({chunk + 1, width});
  const auto reference = [&] {
    const Tensor first = lead.unsqueeze(1).expand({samples, draws, width}).reshape({samples * draws, 1, width});
    return (at::cat({first, rows.view({samples * draws, chunk, width})}, 1) + places).view({-1, width});
  };
  expect_same([&] { return embed_rows(rows, lead, places, draws); }, reference, {rows, lead, places});
}

TEST_F(ExpertOps, EmbedRowsWithoutAState) {
  const Tensor rows = leaf({12, 6}), places = leaf({4, 6});
  expect_same([&] { return embed_rows(rows, {}, places, 1); },
              [&] {
                return (rows.view({3, 4, 6}) + places).view({12, 6});
              },
              {rows, places});
}

TEST_F(ExpertOps, EmbedContextPlacesTokensAndSensorTokens) {
  const Tensor tokens = leaf({5, 8}), sensors = leaf({4, 8}), table = leaf({6, 8});
  // Two samples: three tokens and two sensor tokens, then two and two; the last position is shared.
  const ContextLayout layout{torch::tensor({0, 1, 2, 3, 4, 0, 1, 2, 5}, at::kLong),
                             torch::tensor({0, 1, 2, 5, 6}, at::kLong), torch::tensor({3, 4, 7, 8}, at::kLong)};
  const auto reference = [&] {
    const Tensor all =
        at::zeros({9, 8}).index_copy(0, layout.token_rows, tokens).index_copy(0, layout.sensor_rows, sensors);
    const Tensor sum = all + table.index_select(0, layout.positions);
    return sum * (sum.square().mean(-1, true) + 1e-6).rsqrt();
  };
  expect_same([&] { return embed_context(tokens, sensors, table, layout); }, reference, {tokens, sensors, table});
}

TEST_F(ExpertOps, EmbedContextRefusesAPositionOutsideTheTable) {
  const Tensor tokens = leaf({2, 4}), table = leaf({2, 4});
  EXPECT_THROW(embed_context(tokens, {}, table, {torch::tensor({0, 2}, at::kLong), {}, {}}), Error);
}

TEST_F(ExpertOps, SplitColumnsGivesContiguousPartsAndOneGradient) {
  const Tensor x = leaf({3, 12});
  const auto ours = [&] {
    const auto parts = split_columns(x, 3);
    EXPECT_TRUE(parts[1].is_contiguous());
    return parts[0] * 2 + parts[2];  // the middle part has no use and gets gradient 0
  };
  expect_same(ours, [&] { return x.narrow(1, 0, 4) * 2 + x.narrow(1, 8, 4); }, {x});
}

TEST_F(ExpertOps, Bf16StaysWithinItsRounding) {
  const Tensor x = leaf({12, 16}), shift = leaf({3, 16}, at::kBFloat16), scale = leaf({3, 16}, at::kBFloat16);
  const Tensor y = leaf({12, 16}, at::kBFloat16);
  const Tensor normed = modulated_norm(x, shift, scale);
  EXPECT_EQ(normed.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(
      at::allclose(normed.to(at::kFloat), norm_reference(x, shift.to(at::kFloat), scale.to(at::kFloat)), 1e-2, 1e-2));
  const Tensor sum = gated_residual(x, y, shift);
  EXPECT_EQ(sum.scalar_type(), at::kFloat);
  const Tensor expected = x + (per_group(shift.to(at::kFloat)) * grouped(y.to(at::kFloat), shift)).view_as(x);
  EXPECT_TRUE(at::allclose(sum, expected, 1e-5, 1e-5));
}

// --- the expert as a whole
// --------------------------------------------------------------------------------------------

struct ExpertSizes {
  std::int64_t samples, draws, chunk, tokens;  // tokens of the first sample; each further one has one more
  int state, sensor_tokens;
};

ExpertOptions small_expert(const ExpertSizes& s) {
  ExpertOptions o;
  o.width = 32;
  o.depth = 2;
  o.heads = 4;
  o.draws = static_cast<int>(s.draws);
  o.chunk = static_cast<int>(s.chunk);
  return o;
}

PackedBatch batch_of(const ExpertSizes& s, at::Device device) {
  PackedBatch batch;
  batch.samples = s.samples;
  std::vector<std::int64_t> positions, token_rows, sensor_rows;
  for (std::int64_t i = 0; i < s.samples; ++i) {
    const auto length = s.tokens + i + s.sensor_tokens;
    for (std::int64_t p = 0; p < length; ++p) {
      (p < s.tokens + i ? token_rows : sensor_rows).push_back(static_cast<std::int64_t>(positions.size()));
      positions.push_back(p);
    }
    batch.context_lengths.push_back(length);
  }
  batch.context_positions = torch::tensor(positions, at::kLong).to(device);
  batch.token_rows = torch::tensor(token_rows, at::kLong).to(device);
  if (s.sensor_tokens > 0) batch.sensor_rows = torch::tensor(sensor_rows, at::kLong).to(device);
  return batch;
}

struct Model {
  ExpertSizes sizes;
  at::Device device;
  ParameterList parameters;
  ActionExpert expert;
  PackedBatch batch;
  Tensor hidden, sensors, noisy, times, state;

  Model(const ExpertSizes& s, at::ScalarType compute, at::Device where)
      : sizes(s),
        device(where),
        parameters(11, ParameterGroup::kExpert, where),
        expert(small_expert(s), {24, s.state, 3, 64, compute}, parameters),
        batch(batch_of(s, where)),
        hidden(random({batch.token_rows.size(0), 24}, compute).requires_grad_()),
        sensors(s.sensor_tokens > 0 ? random({batch.sensor_rows.size(0), 32}, compute).requires_grad_() : Tensor()),
        noisy(random({s.samples * s.draws, s.chunk, 3}, at::kFloat)),
        times(random({s.samples * s.draws, ActionExpert::kTimeWidth}, at::kFloat)),
        state(random({s.samples, s.state}, at::kFloat)) {}

  Tensor random(at::IntArrayRef shape, at::ScalarType type) const {
    return at::randn(shape, at::kFloat).to(type).to(device);
  }

  Tensor predict() const {
    return expert.predict(noisy, times, state, expert.context(hidden, sensors, batch, sizes.draws, false));
  }
  void step() const {
    predict().backward(
        at::empty({sizes.samples * sizes.draws, sizes.chunk + (sizes.state > 0), 3}, hidden.options()).zero_());
  }
};

TEST_F(ExpertOps, EveryParameterHasAGradientAtTheStart) {
  const Model model({2, 3, 4, 5, 2, 1}, at::kFloat, at::kCPU);
  model.predict().square().sum().backward();
  for (const auto& p : model.parameters.all()) {
    ASSERT_TRUE(p.tensor.grad().defined()) << p.name;
    EXPECT_GT(p.tensor.grad().abs().max().item<float>(), 0.0F) << p.name;
  }
  EXPECT_GT(model.hidden.grad().abs().max().item<float>(), 0.0F);
}

TEST_F(ExpertOps, DrawsOfASampleDoNotSeeEachOther) {
  const Model model({2, 2, 4, 5, 2, 0}, at::kFloat, at::kCPU);
  const Tensor before = model.predict().detach().clone();
  model.noisy.select(0, 1).add_(1.0);
  const Tensor change = (model.predict() - before).abs().amax({1, 2});
  EXPECT_EQ(change[0].item<float>(), 0.0F);
  EXPECT_GT(change[1].item<float>(), 0.0F);
  EXPECT_EQ(change[2].item<float>(), 0.0F);
}

TEST_F(ExpertOps, KeysMadeInAdvanceChangeNothing) {
  const Model model({2, 2, 4, 5, 2, 1}, at::kFloat, at::kCPU);
  const at::NoGradGuard no_grad;
  const auto context = model.expert.context(model.hidden, model.sensors, model.batch, 2, true);
  EXPECT_TRUE(at::equal(model.expert.predict(model.noisy, model.times, model.state, context), model.predict()));
}

TEST_F(ExpertOps, MetaAllocatesWhatTheCpuAllocates) {
  const std::vector<ExpertSizes> shapes = {
      {1, 1, 4, 5, 2, 0}, {2, 3, 4, 7, 2, 2}, {3, 2, 8, 20, 0, 1}, {5, 4, 16, 33, 7, 4}};
  for (const auto& s : shapes) {
    for (const auto compute : {at::kFloat, at::kBFloat16}) {
      const Model cpu(s, compute, at::kCPU), meta(s, compute, at::kMeta);
      EXPECT_EQ(testing::difference(events_of([&] { cpu.step(); }), events_of([&] { meta.step(); })), "")
          << s.samples << " " << c10::toString(compute);
    }
  }
}

TEST_F(ExpertOps, TheSensorEncoderLikewise) {
  for (const auto compute : {at::kFloat, at::kBFloat16}) {
    const auto run = [&](at::Device device) {
      ParameterList parameters(3, ParameterGroup::kExpert, device);
      const SensorEncoder encoder({8, 3, 4, 16}, 32, parameters);
      const Tensor window = at::zeros({3, 8, 3}, at::kFloat).to(device);
      return events_of([&] {
        const Tensor tokens = encoder.encode(window, compute);
        EXPECT_EQ(tokens.sizes(), at::IntArrayRef({6, 32}));
        tokens.backward(at::empty_like(tokens));
      });
    };
    EXPECT_EQ(testing::difference(run(at::kCPU), run(at::kMeta)), "");
  }
}

TEST_F(ExpertOps, TheDefaultsMakeAboutThirtyMillionParameters) {
  ParameterList parameters(0, ParameterGroup::kExpert, at::kMeta);
  const ActionExpert expert({}, {2048, 14, 14, 2048, at::kFloat}, parameters);
  std::int64_t count = 0;
  for (const auto& p : parameters.all()) count += p.tensor.numel();
  EXPECT_GT(count, 27'000'000);
  EXPECT_LT(count, 33'000'000);
}

TEST_F(ExpertOps, InitialValuesDependOnSeedAndNameOnly) {
  ParameterList first(5, ParameterGroup::kExpert, at::kCPU), second(5, ParameterGroup::kExpert, at::kCPU);
  const Tensor a = first.weight("a", 3, 4);
  second.weight("b", 7, 2);
  EXPECT_TRUE(at::equal(a, second.weight("a", 3, 4)));
  EXPECT_FALSE(at::equal(a, second.weight("c", 3, 4)));
  ParameterList other(6, ParameterGroup::kExpert, at::kCPU);
  EXPECT_FALSE(at::equal(a, other.weight("a", 3, 4)));
}

TEST_F(ExpertOps, OptionsThatDoNotFitAreNamed) {
  ParameterList parameters(0, ParameterGroup::kExpert, at::kMeta);
  const auto refused = [&](const ExpertOptions& o, const char* key) {
    try {
      const ActionExpert expert(o, {8, 2, 2, 16, at::kFloat}, parameters);
      ADD_FAILURE() << key << " was accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::kUsage);
      EXPECT_NE(std::string(e.what()).find(key), std::string::npos) << e.what();
    }
  };
  ExpertOptions o;
  o.heads = 5;
  refused(o, "expert.heads");
  o = {};
  o.depth = 0;
  refused(o, "expert.depth");
  o = {};
  o.draws = -1;
  refused(o, "expert.draws");
  EXPECT_THROW(SensorEncoder({10, 2, 4, 16}, 8, parameters), Error);
  EXPECT_THROW(SensorEncoder({8, 0, 4, 16}, 8, parameters), Error);
}

}  // namespace
}  // namespace plimsoll::model
