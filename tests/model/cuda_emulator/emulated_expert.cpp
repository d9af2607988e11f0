// The operators of the action expert and the diffusion.

#include "tests/model/cuda_emulator/comparison.h"

namespace plimsoll::model {
namespace {

/// Two samples of five draws, ten rows a draw behind a lead row: more rows, and more groups, than warps share them out.
/// A width that is no multiple of a warp.
constexpr std::int64_t kSamples = 2, kDraws = 5, kGroups = kSamples * kDraws, kRows = 11, kWidth = 141;

class ExpertCases : public CudaKernelTest, public testing::WithParamInterface<ScalarType> {
 protected:
  static ScalarType type() { return GetParam(); }
  /// Fills `outputs` by both kinds of kernels: call(kernels, outputs). Ours twice: a result depends on nothing else.
  void compare(const char* what, const std::vector<Tensor>& outputs, const auto& call, double half = kBf16) {
    std::vector<Tensor> ours, again, theirs;
    for (const Tensor& like : outputs) {
      for (auto* to : {&ours, &again, &theirs}) to->push_back(unwritten(like.sizes(), like.scalar_type()));
    }
    call(gpu_, ours);
    call(gpu_, again);
    call(cpu(), theirs);
    for (std::size_t i = 0; i < ours.size(); ++i) {
      SCOPED_TRACE(i);
      expect_near(what, ours[i], theirs[i], bound(ours[i].scalar_type(), half));
      EXPECT_TRUE(at::equal(ours[i], again[i])) << what << " is not the same when it is computed again";
    }
  }
  void embed_context(bool with_sensors, const Tensor& positions, const std::vector<std::int64_t>& lengths);
};

TEST_P(ExpertCases, ModulatedNorm) {
  const Tensor x = random({kGroups * kRows, kWidth}, kFloat), shift = random({kGroups, kWidth}, type());
  const Tensor scale = random({kGroups, kWidth}, type()), grad = random(x.sizes(), type());
  Tensor inverse = at::empty({x.size(0)}), y = at::empty(x.sizes(), x.options().dtype(type()));
  compare("forward", {y, inverse},
          [&](const Kernels& k, auto& o) { k.modulated_norm_forward(x, shift, scale, o[0], o[1]); });
  cpu().modulated_norm_forward(x, shift, scale, y, inverse);
  compare("backward", {x, shift, scale},
          [&](const Kernels& k, auto& o) { k.modulated_norm_backward(grad, x, scale, inverse, o[0], o[1], o[2]); });
}

TEST_P(ExpertCases, GatedResidual) {
  const Tensor x = random({kGroups * kRows, kWidth}, kFloat), y = random(x.sizes(), type());
  const Tensor gate = random({kGroups, kWidth}, type()), grad = random(x.sizes(), kFloat), none;
  compare("gated", {x}, [&](const Kernels& k, auto& o) { k.gated_residual_forward(x, y, gate, o[0]); });
  compare("plain", {x}, [&](const Kernels& k, auto& o) { k.gated_residual_forward(x, y, none, o[0]); });
  compare("backward", {y, gate},
          [&](const Kernels& k, auto& o) { k.gated_residual_backward(grad, y, gate, o[0], o[1]); });
}

TEST_P(ExpertCases, EmbedRows) {
  const Tensor positions = random({kRows, kWidth}, kFloat), grad = random({kGroups * kRows, kWidth}, kFloat), none;
  for (const bool with_lead : {true, false}) {
    const Tensor source = random({kGroups * (kRows - (with_lead ? 1 : 0)), kWidth}, type());
    const Tensor lead = with_lead ? random({kSamples, kWidth}, type()) : none;
    compare("forward", {grad},
            [&](const Kernels& k, auto& o) { k.embed_rows_forward(source, lead, positions, kDraws, o[0]); });
    std::vector<Tensor> gradients = {source, positions};
    if (with_lead) gradients.push_back(lead);
    compare("backward", gradients, [&](const Kernels& k, auto& o) {
      Tensor dlead = with_lead ? o[2] : none;
      k.embed_rows_backward(grad, kDraws, o[0], dlead, o[1]);
    });
  }
}

constexpr std::int64_t kTokens = 41, kSensors = 4, kTable = 6;

void ExpertCases::embed_context(bool with_sensors, const Tensor& positions, const std::vector<std::int64_t>& lengths) {
  const std::int64_t count = positions.size(0);
  const Tensor tokens = random({kTokens, kWidth}, type()), sensors = random({kSensors, kWidth}, type());
  const Tensor table = random({kTable, kWidth}, kFloat), none;
  const Tensor order = at::randperm(kTokens + kSensors, at::kLong);
  const Tensor token_rows = order.slice(0, 0, kTokens).contiguous(), sensor_rows = order.slice(0, kTokens).contiguous();
  const Tensor& rows_of_tokens = with_sensors ? token_rows : none;  // undefined: each in its own row
  const ContextRows of{positions, rows_of_tokens, sensor_rows, lengths};
  const Tensor& extra = with_sensors ? sensors : none;
  Tensor out = at::empty({count, kWidth}, tokens.options()), inverse = at::empty({count});
  compare("forward", {out, inverse},
          [&](const Kernels& k, auto& o) { k.embed_context_forward(tokens, extra, table, of, o[0], o[1]); });
  cpu().embed_context_forward(tokens, extra, table, of, out, inverse);
  const Tensor grad = random(out.sizes(), type());
  std::vector<Tensor> gradients = {tokens, table};
  if (with_sensors) gradients.push_back(sensors);
  const auto backward = [&](const Kernels& k, auto& o) {
    Tensor dsensors = with_sensors ? o[2] : none;
    k.embed_context_backward(grad, out, inverse, of, o[0], dsensors, o[1]);
  };
  compare("backward", gradients, backward);
  std::vector<Tensor> dry;
  for (const Tensor& gradient : gradients) dry.push_back(meta(gradient));
  std::vector<Tensor> real = {at::empty_like(tokens), at::empty_like(table), at::empty_like(sensors)};
  expect_same_scratch(
      "embed_context_backward", [&] { backward(gpu_, real); },
      [&] {
        const Tensor p = meta(positions);
        cuda_meta_kernels().embed_context_backward(meta(grad), {}, {}, {p, p, p, lengths}, dry[0], dry[1], dry[1]);
      });
}

TEST_P(ExpertCases, EmbedContextInAnyOrder) {
  for (const bool with_sensors : {true, false}) {
    const std::int64_t count = kTokens + (with_sensors ? kSensors : 0);
    embed_context(with_sensors, at::randint(0, kTable, {count}, at::kLong), {});
  }
}

/// In each segment positions rise; of half the rows they are cut off at the table's last.
Tensor rising_positions(const std::vector<std::int64_t>& lengths) {
  std::vector<Tensor> segments;
  for (const std::int64_t n : lengths)
    segments.push_back(std::get<0>(at::sort(at::randint(0, 2 * kTable, {n}, at::kLong))).clamp_max(kTable - 1));
  return at::cat(segments);
}

TEST_P(ExpertCases, EmbedContextBySamples) {
  for (const bool with_sensors : {true, false}) {
    const std::int64_t count = kTokens + (with_sensors ? kSensors : 0);
    std::vector<std::int64_t> many(300, 0);  // more than a block has threads, most of them without a row
    for (std::int64_t i = 0; i < count; ++i) many[static_cast<std::size_t>(6 * i)] = 1;
    for (const auto& lengths : std::vector<std::vector<std::int64_t>>{{count}, {20, 0, count - 20}, many})
      embed_context(with_sensors, rising_positions(lengths), lengths);
  }
}

TEST_P(ExpertCases, APositionBeyondTheTableIsNaN) {
  const Tensor tokens = random({2, kWidth}, type()), table = random({3, kWidth}, kFloat), none;
  const Tensor positions = at::tensor({2, 3}, at::kLong);
  Tensor out = at::empty(tokens.sizes(), tokens.options()), inverse = at::empty({2});
  gpu_.embed_context_forward(tokens, none, table, {positions, none, none, {}}, out, inverse);
  EXPECT_TRUE(out[0].isfinite().all().item<bool>());
  EXPECT_TRUE(out[1].isnan().all().item<bool>());
}

TEST_P(ExpertCases, ChunkLoss) {
  constexpr std::int64_t kChunk = 4, kActions = 7;
  const Tensor predicted = random({kGroups, kRows, kActions}, type()),
               actions = random({kSamples, kChunk, kActions}, kFloat);
  const Tensor noise = random({kGroups, kChunk, kActions}, kFloat), grad = random({kSamples}, kFloat);
  const Tensor weight = at::tensor({1.0F, 0.0F, 1.0F, 1.0F, 0.0F, 0.0F, 0.0F, 0.0F}).view({kSamples, kChunk});
  for (const bool flow : {false, true}) {
    const ChunkLoss of{predicted, actions, noise, weight, flow};
    compare("loss", {grad}, [&](const Kernels& k, auto& o) { k.chunk_loss_forward(of, o[0]); });
    compare("gradient", {predicted}, [&](const Kernels& k, auto& o) { k.chunk_loss_backward(of, grad, o[0]); });
  }
}

INSTANTIATE_TEST_SUITE_P(Cuda, ExpertCases, testing::Values(kFloat, kBFloat16),
                         [](const auto& of) { return name_of(of.param); });

class DiffusionCases : public CudaKernelTest {};

TEST_F(DiffusionCases, NoiseAndTimes) {
  const Tensor actions = random({kSamples, 4, 7}, kFloat), noise = random({kGroups, 4, 7}, kFloat), none;
  const Tensor mixtures = random({10, 2}, kFloat);
  const Tensor steps = at::tensor({0.0F, 9.0F, 3.0F, 4.0F, 4.0F, 1.0F, 8.0F, 2.0F, 0.0F, 7.0F});
  const Tensor times = at::rand({kGroups});
  for (const auto& [table, when] : {std::pair(mixtures, steps), std::pair(none, times)}) {
    Tensor ours = unwritten(noise.sizes(), kFloat), theirs = ours.clone();
    gpu_.add_noise(actions, noise, when, table, ours);
    cpu().add_noise(actions, noise, when, table, theirs);
    expect_near("noise", ours, theirs, kFp32);
    Tensor embedded = unwritten({kGroups, 32}, kFloat), expected = embedded.clone();
    gpu_.embed_times(when, 100.0, embedded);
    cpu().embed_times(when, 100.0, expected);
    expect_near("times", embedded, expected, kFp32);
  }
}

TEST_F(DiffusionCases, AStepBeyondTheScheduleIsNaN) {
  const Tensor actions = random({1, 2, 3}, kFloat), noise = random({1, 2, 3}, kFloat),
               mixtures = random({10, 2}, kFloat);
  Tensor out = at::empty(noise.sizes());
  gpu_.add_noise(actions, noise, at::tensor({10.0F}), mixtures, out);
  EXPECT_TRUE(out.isnan().all().item<bool>());
}

}  // namespace
}  // namespace plimsoll::model
