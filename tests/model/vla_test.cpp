// The whole model: a sample's loss and gradient depend on nothing but the sample, and meta tells what the CPU
// allocates.

#include "model/vla.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <numeric>
#include <set>

#include "core/error.h"
#include "model/init_model.h"
#include "tests/model/event_recorder.h"

namespace plimsoll::model {
namespace {

using testing::events_of;
using Gradients = std::map<std::string, Tensor>;

/// A checkpoint that all tests read: the tiny size, cut to three blocks per tower.
class Checkpoint {
 public:
  Checkpoint()
      : path_((std::filesystem::temp_directory_path() / fmt::format("plimsoll_vla_test_{}", getpid())).string()) {
    testing::install_recorder();
    std::filesystem::remove_all(path_);
    write_random_checkpoint(init_config("tiny", 3), {.dir = path_, .seed = 1, .bf16 = false});
  }
  ~Checkpoint() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

const std::string& tiny_checkpoint() {
  static const Checkpoint made;
  return made.path();
}

VlaOptions small_options() {
  VlaOptions o;
  o.path = tiny_checkpoint();
  o.lora.dropout = 0.2;
  o.expert.width = 32;
  o.expert.depth = 2;
  o.expert.heads = 2;
  o.expert.draws = 2;
  o.expert.chunk = 4;
  o.expert.sampling_steps = 4;
  o.sensor = {8, 3, 4, 16};
  o.state_dim = 5;
  o.action_dim = 3;
  o.max_context = 64;
  o.seed = 42;
  return o;
}

std::vector<float> values(std::int64_t n, std::uint64_t position) {
  std::vector<float> result(static_cast<std::size_t>(n));
  fill_normal({123, position, 0, 7}, result.data(), n);
  return result;
}

/// `text` tokens around one image of `rows` x `columns` patches (none when 0).
Sample make_sample(const PackingRules& rules, std::int64_t number, std::int64_t text, std::int64_t rows,
                   std::int64_t columns) {
  Sample s;
  s.index = number;
  const std::int64_t image = rows * columns / 4;
  for (std::int64_t t = 0; t < text; ++t) s.vlm.input_ids.push_back((number * 31 + t * 17) % 900);
  s.vlm.input_ids.insert(s.vlm.input_ids.begin() + 1, static_cast<std::size_t>(image), rules.image_token_id);
  const auto length = static_cast<std::int64_t>(s.vlm.input_ids.size());
  for (int axis = 0; axis < 3; ++axis) {
    for (std::int64_t t = 0; t < length; ++t) s.vlm.position_ids.push_back(t);
  }
  if (image > 0) s.vlm.image_grid_thw.push_back({1, rows, columns});
  s.vlm.pixel_values = values(rows * columns * rules.patch_values, 100 + static_cast<std::uint64_t>(number));
  s.state = values(rules.state_dim, 200 + static_cast<std::uint64_t>(number));
  s.sensor =
      values(std::int64_t{rules.sensor_window} * rules.sensor_channels, 300 + static_cast<std::uint64_t>(number));
  s.actions = values(std::int64_t{rules.chunk} * rules.action_dim, 400 + static_cast<std::uint64_t>(number));
  s.action_is_pad.assign(static_cast<std::size_t>(rules.chunk), 0);
  if (number % 2 == 1) s.action_is_pad.back() = 1;
  return s;
}

std::vector<Sample> make_samples(const PackingRules& rules, std::int64_t count) {
  std::vector<Sample> result;
  for (std::int64_t i = 0; i < count; ++i) {
    result.push_back(make_sample(rules, i, 4 + 3 * i, i == 3 ? 0 : 4 + 2 * (i % 3), i == 3 ? 0 : 8));
  }
  return result;
}

PackedBatch pack_some(const std::vector<Sample>& samples, const std::vector<std::size_t>& which,
                      const PackingRules& rules) {
  std::vector<StreamSample> stream;
  for (const auto i : which) stream.push_back({&samples[i], 1000 + i});
  return pack(stream, rules, at::kCPU);
}

/// LoRA's B starts at zero, which hides every gradient of A.
void fill_adapters(const VlaModel& model) {
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < model.parameters().size(); ++i) {
    const auto& p = model.parameters()[i];
    if (p.name.find("lora_B") == std::string::npos) continue;
    auto numbers = values(p.tensor.numel(), 500 + i);
    Tensor target = p.tensor;
    target.copy_(torch::from_blob(numbers.data(), p.tensor.sizes(), at::kFloat) * 0.1);
  }
}

struct Outcome {
  Tensor losses;  ///< per sample, in the order of samples
  Gradients gradients;
};

/// Runs the parts one after another and sums their gradients.
Outcome run(const VlaModel& model, const std::vector<Sample>& samples,
            const std::vector<std::vector<std::size_t>>& parts, int recompute) {
  const auto rules = model.packing_rules(9, false);
  std::vector<Tensor> losses;
  for (const auto& p : model.parameters()) {
    Tensor tensor = p.tensor;
    tensor.mutable_grad() = Tensor();
  }
  for (const auto& part : parts) {
    const Tensor loss = model.sample_losses(pack_some(samples, part, rules), {recompute});
    loss.sum().backward();
    losses.push_back(loss.detach());
  }
  Outcome outcome{at::cat(losses), {}};
  for (const auto& p : model.parameters()) {
    outcome.gradients[p.name] = p.tensor.grad().defined() ? p.tensor.grad().clone() : Tensor();
  }
  return outcome;
}

double relative_distance(const Tensor& a, const Tensor& b) {
  return ((a - b).norm() / b.norm().clamp_min(1e-12)).item<double>();
}

void expect_equal(const Outcome& a, const Outcome& b, double tolerance) {
  EXPECT_LT(relative_distance(a.losses, b.losses), tolerance);
  for (const auto& [name, gradient] : b.gradients) {
    ASSERT_TRUE(gradient.defined() && a.gradients.at(name).defined()) << name;
    EXPECT_GT(gradient.abs().max().item<float>(), 0.0F) << name << " gets no gradient";
    EXPECT_LT(relative_distance(a.gradients.at(name), gradient), tolerance) << name;
  }
}

TEST(Vla, SplittingABatchChangesNothing) {
  for (const std::string kind : {"ddpm", "flow"}) {
    auto options = small_options();
    options.expert.kind = kind;
    const VlaModel model(options, at::kCPU);
    fill_adapters(model);
    const auto samples = make_samples(model.packing_rules(9, false), 5);
    const auto whole = run(model, samples, {{0, 1, 2, 3, 4}}, 0);
    expect_equal(run(model, samples, {{0, 1}, {2, 3, 4}}, 0), whole, 3e-6);
    expect_equal(run(model, samples, {{0}, {1}, {2}, {3}, {4}}, 0), whole, 3e-6);
  }
}

TEST(Vla, RecomputeChangesNothing) {
  const VlaModel model(small_options(), at::kCPU);
  fill_adapters(model);
  const auto samples = make_samples(model.packing_rules(9, false), 3);
  const auto none = run(model, samples, {{0, 1, 2}}, 0);
  for (const int blocks : {1, 2, 3}) expect_equal(run(model, samples, {{0, 1, 2}}, blocks), none, 1e-6);
  EXPECT_THROW(run(model, samples, {{0}}, 4), Error);
}

TEST(Vla, StageOneTrainsOnlySensorAndExpert) {
  auto options = small_options();
  options.stage = 1;
  const VlaModel model(options, at::kCPU);
  for (const auto& p : model.parameters()) {
    EXPECT_EQ(p.group, ParameterGroup::kExpert);
    EXPECT_TRUE(p.name.starts_with("expert.") || p.name.starts_with("sensor.")) << p.name;
  }
  const auto samples = make_samples(model.packing_rules(9, false), 3);
  const auto whole = run(model, samples, {{0, 1, 2}}, 0);
  expect_equal(run(model, samples, {{0}, {1, 2}}, 3), whole, 3e-6);
}

TEST(Vla, ParametersComeInAFixedOrderUnderUniqueNames) {
  const VlaModel model(small_options(), at::kCPU), again(small_options(), at::kCPU);
  std::set<std::string> names;
  int last = 0;
  for (std::size_t i = 0; i < model.parameters().size(); ++i) {
    const auto& p = model.parameters()[i];
    EXPECT_TRUE(names.insert(p.name).second) << p.name;
    EXPECT_EQ(p.name, again.parameters()[i].name);
    EXPECT_TRUE(at::equal(p.tensor, again.parameters()[i].tensor)) << p.name;
    EXPECT_TRUE(p.tensor.is_leaf() && p.tensor.requires_grad() && p.tensor.is_contiguous()) << p.name;
    const int part = p.group == ParameterGroup::kVlm ? 0 : p.name.starts_with("sensor.") ? 1 : 2;
    EXPECT_GE(part, last) << p.name << ": adapters, then sensor, then expert";
    last = part;
  }
  EXPECT_EQ(last, 2);
}

TEST(Vla, ParametersMayMoveIntoAFlatBuffer) {
  const VlaModel model(small_options(), at::kCPU);
  const auto samples = make_samples(model.packing_rules(9, false), 2);
  const auto before = run(model, samples, {{0, 1}}, 0);
  std::int64_t total = 0;
  for (const auto& p : model.parameters()) total += p.tensor.numel();
  const Tensor flat = at::empty({total});
  std::int64_t start = 0;
  for (const auto& p : model.parameters()) {
    const Tensor view = flat.narrow(0, start, p.tensor.numel()).view(p.tensor.sizes());
    view.copy_(p.tensor.detach());
    Tensor tensor = p.tensor;
    tensor.set_data(view);
    start += p.tensor.numel();
  }
  EXPECT_TRUE(at::equal(run(model, samples, {{0, 1}}, 0).losses, before.losses));
  flat.mul_(1.5);
  EXPECT_FALSE(at::equal(run(model, samples, {{0, 1}}, 0).losses, before.losses));
}

/// Events of one forward and backward, gradients accumulating into tensors that are there already.
testing::EventList step_events(const VlaOptions& options, at::Device device, const std::vector<SampleShape>& shapes,
                               int recompute, bool sample) {
  const VlaModel model(options, device);
  const auto rules = model.packing_rules(9, sample);
  std::vector<Sample> samples;
  std::vector<StreamSample> stream;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    const auto columns = shapes[i].patches / 4;
    samples.push_back(
        make_sample(rules, static_cast<std::int64_t>(i), shapes[i].tokens - columns, columns == 0 ? 0 : 4, columns));
  }
  for (std::size_t i = 0; i < samples.size(); ++i) stream.push_back({&samples[i], i});
  for (const auto& p : model.parameters()) {
    Tensor tensor = p.tensor;
    tensor.mutable_grad() = at::empty_like(tensor);
  }
  return events_of([&] {
    const auto batch = device.is_meta() ? pack_shapes(shapes, rules) : pack(stream, rules, device);
    if (sample) {
      model.sample_actions(batch);
    } else {
      model.sample_losses(batch, {recompute}).backward(at::empty({batch.samples}, at::TensorOptions().device(device)));
    }
  });
}

TEST(Vla, MetaAllocatesWhatTheCpuAllocates) {
  tiny_checkpoint();
  const std::vector<std::vector<SampleShape>> batches = {
      {{7, 16}}, {{30, 64}, {9, 0}}, {{20, 32}, {11, 24}, {40, 64}, {5, 0}}};
  for (const auto compute : {at::kFloat, at::kBFloat16}) {
    auto options = small_options();
    options.precision = {compute, compute};
    for (const auto& shapes : batches) {
      for (const int recompute : {0, 1, 3}) {
        const auto cpu = step_events(options, at::kCPU, shapes, recompute, false);
        EXPECT_EQ(testing::difference(cpu, step_events(options, at::kMeta, shapes, recompute, false)), "")
            << c10::toString(compute) << " " << shapes.size() << " samples, recompute " << recompute;
        EXPECT_GT(cpu.size(), 100U);
      }
      const auto sampled = step_events(options, at::kCPU, shapes, 0, true);
      EXPECT_EQ(testing::difference(sampled, step_events(options, at::kMeta, shapes, 0, true)), "");
    }
    options.stage = 1;
    options.sensor = {};
    options.state_dim = 0;
    options.expert.kind = "flow";
    const auto flow = step_events(options, at::kCPU, batches[1], 0, false);
    EXPECT_EQ(testing::difference(flow, step_events(options, at::kMeta, batches[1], 0, false)), "");
  }
}

TEST(Vla, SampledActionsDoNotDependOnTheBatch) {
  for (const std::string kind : {"ddpm", "flow"}) {
    auto options = small_options();
    options.expert.kind = kind;
    const VlaModel model(options, at::kCPU);
    const auto rules = model.packing_rules(9, true);
    const auto samples = make_samples(rules, 3);
    const Tensor together = model.sample_actions(pack_some(samples, {0, 1, 2}, rules));
    EXPECT_EQ(together.sizes(), at::IntArrayRef({3, 4, 3}));
    EXPECT_FALSE(together.requires_grad());
    EXPECT_TRUE(
        at::allclose(model.sample_actions(pack_some(samples, {1}, rules)), together.narrow(0, 1, 1), 1e-4, 1e-5));
  }
}

TEST(Vla, AFewStepsOfDescentLowerTheLoss) {
  const VlaModel model(small_options(), at::kCPU);
  const auto samples = make_samples(model.packing_rules(9, false), 4);
  const auto first = run(model, samples, {{0, 1, 2, 3}}, 0).losses.mean().item<float>();
  for (int step = 0; step < 20; ++step) {
    const at::NoGradGuard no_grad;
    for (const auto& p : model.parameters()) {
      Tensor tensor = p.tensor;
      tensor.sub_(p.tensor.grad(), 0.01);
    }
    const at::AutoGradMode grad(true);
    run(model, samples, {{0, 1, 2, 3}}, 0);
  }
  EXPECT_LT(run(model, samples, {{0, 1, 2, 3}}, 0).losses.mean().item<float>(), 0.9F * first);
}

TEST(Vla, Bf16IsNearFp32) {
  auto options = small_options();
  const VlaModel full(options, at::kCPU);
  options.precision = {at::kBFloat16, at::kBFloat16};
  const VlaModel half(options, at::kCPU);
  const auto samples = make_samples(full.packing_rules(9, false), 3);
  const auto a = run(half, samples, {{0, 1, 2}}, 0), b = run(full, samples, {{0, 1, 2}}, 0);
  EXPECT_EQ(a.losses.scalar_type(), at::kFloat);
  EXPECT_LT(relative_distance(a.losses, b.losses), 2e-2);
}

TEST(Vla, OptionsThatDoNotFitAreNamed) {
  const auto refused = [](const VlaOptions& o, const char* key) {
    try {
      const VlaModel model(o, at::kMeta);
      ADD_FAILURE() << key << " was accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::kUsage);
      EXPECT_NE(std::string(e.what()).find(key), std::string::npos) << e.what();
    }
  };
  auto o = small_options();
  o.stage = 3;
  refused(o, "train.stage");
  o = small_options();
  o.expert.kind = "gan";
  refused(o, "expert.kind");
  o = small_options();
  o.expert.sampling_steps = 101;
  refused(o, "expert.sampling_steps");
  o = small_options();
  o.stage = 1;
  o.adapter = "somewhere";
  refused(o, "model.adapter");
  o = small_options();
  o.sensor.patch = 3;
  refused(o, "sensor.patch");
}

}  // namespace
}  // namespace plimsoll::model
