// Runs the trainer's own step (train/step.h: flat buffers, guardian, commit, reduction of world 1, AdamW with two
// learning rates) on made-up samples and writes everything that a PyTorch reference needs to run the same ones, and
// what came out here. Driven by test_vla_parity.py and bench/peers/. No dropout; clipping and a schedule where asked
// for.
//
// OUT/options.json, OUT/trainable.safetensors (values before the first step), OUT/batches.safetensors
// ("<step>/<sample>/<field>"), OUT/ours.safetensors ("losses" [steps]: mean over the samples, as the step reports it;
// "norms" [steps]: of the gradient, unclipped; "sample_losses" [steps, samples]: of a forward just before it;
// "hidden" [tokens, width]: of the VLM for the samples of the first step, before it; "gradient/<name>": what the ranks
// would sum in the first step; "trained/<name>": values after the last). With --paced: nothing but options, trainable
// values and batches is written. One JSON line tells, by the GPU's allocator or under bench/peers/malloc_counter.c, the
// bytes that a step takes at its peak above what is live between steps; then every line that is read starts a whole
// step, and is answered with its seconds; a line "batch N recompute K" makes steps of the first N samples from then on
// and is answered with their bytes. With --served no step is made before such a line. There is no workspace arena here:
// library scratch counts as a step's, as it does for PyTorch.
//
// For bench/gpu_suite, whose samples are all of one size: --failures takes memory away in forward and in backward of a
// step, --profile says where its time goes (step_profile.h), and --counts what it calls, without weights or a device.

#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cxxopts.hpp>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <sstream>
#include <thread>

#include "core/error.h"
#include "core/safetensors.h"
#include "ddp/communicator.h"
#include "memory/dry_run.h"
#include "model/init_model.h"
#include "model/qwen_config.h"
#include "model/vla.h"
#include "tests/oracle/counted_kernels.h"
#include "tests/oracle/step_profile.h"
#include "train/device.h"
#include "train/schedule.h"
#include "train/step.h"

namespace plimsoll::model {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr double kWeightDecay = 0.01;

struct Setting {
  std::string out, init, device;
  VlaOptions options;
  int batch = 5, micro = 0, steps = 1, recompute = 0;
  bool paced = false, served = false, failures = false, counts = false;
  int profile = 0;     ///< steps to look into
  bool equal = false;  ///< samples are of one size
  int images = 1, side = 112, text = 24;
  double lr = 1e-4, vl_lr = 1e-5, clip = 0.0;
  int warmup = 0;  ///< 0: the learning-rate factor stays 1
};

Setting parse(int argc, char** argv) {
  cxxopts::Options options("reference_dump", "Dumps training steps for the PyTorch reference");
  auto add = options.add_options();
  add("model", "Hugging Face directory", cxxopts::value<std::string>()->default_value(""))(
      "out", "folder", cxxopts::value<std::string>());
  add("stage", "1 or 2", cxxopts::value<int>()->default_value("2"))(
      "kind", "ddpm or flow", cxxopts::value<std::string>()->default_value("ddpm"));
  add("dtype", "fp32 or bf16", cxxopts::value<std::string>()->default_value("fp32"))(
      "batch", "samples", cxxopts::value<int>()->default_value("5"));
  add("micro", "samples at once; 0: all", cxxopts::value<int>()->default_value("0"));
  add("steps", "training steps", cxxopts::value<int>()->default_value("1"))("recompute", "blocks",
                                                                            cxxopts::value<int>()->default_value("0"));
  add("paced", "a timed step for every line of standard input")("side", "image side",
                                                                cxxopts::value<int>()->default_value("112"));
  add("served", "as --paced, and no step before one is asked for")(
      "failures", "let memory run out in forward and in backward of a step");
  add("profile", "steps whose time is looked into", cxxopts::value<int>()->default_value("0"));
  add("counts", "count what a step of a model of the size --init calls on a GPU, by a dry run");
  add("images", "images of a sample", cxxopts::value<int>()->default_value("1"))(
      "text", "text tokens", cxxopts::value<int>()->default_value("24"));
  add("width", "of the expert", cxxopts::value<int>()->default_value("64"))("depth", "of the expert",
                                                                            cxxopts::value<int>()->default_value("2"));
  add("heads", "of the expert", cxxopts::value<int>()->default_value("4"))(
      "lr", "", cxxopts::value<double>()->default_value("1e-4"));
  add("vl-lr", "", cxxopts::value<double>()->default_value("1e-5"));
  add("clip", "largest norm of the gradient; 0: any", cxxopts::value<double>()->default_value("0"));
  add("warmup", "steps, then a cosine; 0: neither", cxxopts::value<int>()->default_value("0"));
  add("init", "make MODEL first, of this size", cxxopts::value<std::string>()->default_value(""));
  add("device", "cpu or cuda", cxxopts::value<std::string>()->default_value("cpu"))(
      "max-context", "rows of a sample that the expert reads at most",
      cxxopts::value<std::int64_t>()->default_value("512"));
  const auto args = options.parse(argc, argv);
  Setting s;
  s.out = args["out"].as<std::string>();
  s.init = args["init"].as<std::string>();
  s.device = args["device"].as<std::string>();
  s.batch = args["batch"].as<int>();
  s.micro = args["micro"].as<int>() > 0 ? args["micro"].as<int>() : s.batch;
  s.steps = args["steps"].as<int>();
  s.recompute = args["recompute"].as<int>();
  s.served = args.count("served") > 0;
  s.paced = args.count("paced") > 0 || s.served;
  s.failures = args.count("failures") > 0;
  s.counts = args.count("counts") > 0;
  s.profile = args["profile"].as<int>();
  s.equal = s.paced || s.failures || s.counts || s.profile > 0;
  s.side = args["side"].as<int>();
  s.images = args["images"].as<int>();
  s.text = args["text"].as<int>();
  s.lr = args["lr"].as<double>();
  s.vl_lr = args["vl-lr"].as<double>();
  if (s.failures) s.lr = s.vl_lr = 0;  // steps over the same samples are to lose the same
  s.clip = args["clip"].as<double>();
  s.warmup = args["warmup"].as<int>();
  VlaOptions& o = s.options;
  o.path = args["model"].as<std::string>();
  o.stage = args["stage"].as<int>();
  o.expert.kind = args["kind"].as<std::string>();
  o.expert.width = args["width"].as<int>();
  o.expert.depth = args["depth"].as<int>();
  o.expert.heads = args["heads"].as<int>();
  o.max_context = args["max-context"].as<std::int64_t>();
  if (args["dtype"].as<std::string>() == "bf16") o.precision = {at::kBFloat16, at::kBFloat16};
  return s;
}

void complete(VlaOptions& o) {
  o.lora.dropout = 0.0;  // PyTorch's dropout draws other numbers
  o.expert.draws = 4;
  o.expert.chunk = 8;
  o.sensor.window = 16;
  o.sensor.channels = 6;
  o.sensor.width = 32;
  o.state_dim = 7;
  o.action_dim = 4;
  o.seed = 3;
}

std::vector<float> values(std::int64_t n, std::uint64_t position) {
  std::vector<float> result(static_cast<std::size_t>(n));
  fill_normal({99, position, 0, 11}, result.data(), n);
  return result;
}

/// Lengths and image sizes differ from sample to sample, unless all are to be equal.
Sample make_sample(const PackingRules& rules, const Setting& s, std::int64_t number) {
  Sample sample;
  sample.index = number;
  const auto seed = static_cast<std::uint64_t>(number) * 16;
  const std::int64_t columns = s.side / 14, rows = s.equal ? columns : columns - 2 * (number % 3);
  const std::int64_t text = s.equal ? s.text : s.text - number % 5;
  auto& ids = sample.vlm.input_ids;
  for (std::int64_t t = 0; t < text; ++t) ids.push_back((number * 31 + t * 17) % 900);
  for (int image = 0; image < s.images; ++image) {
    ids.insert(ids.begin() + 2, static_cast<std::size_t>(rows * columns / 4), rules.image_token_id);
    sample.vlm.image_grid_thw.push_back({1, rows, columns});
  }
  const auto length = static_cast<std::int64_t>(ids.size());
  for (const std::int64_t divisor : {1, 2, 3}) {
    for (std::int64_t t = 0; t < length; ++t) sample.vlm.position_ids.push_back(t / divisor);
  }
  sample.vlm.pixel_values = values(s.images * rows * columns * rules.patch_values, seed);
  sample.state = values(rules.state_dim, seed + 1);
  sample.sensor = values(std::int64_t{rules.sensor_window} * rules.sensor_channels, seed + 2);
  sample.actions = values(std::int64_t{rules.chunk} * rules.action_dim, seed + 3);
  sample.action_is_pad.assign(static_cast<std::size_t>(rules.chunk), 0);
  for (std::int64_t pad = 0; pad < number % 4; ++pad)
    sample.action_is_pad[static_cast<std::size_t>(rules.chunk - 1 - pad)] = 1;
  return sample;
}

/// Tensors to be written, kept alive.
class Archive {
 public:
  void add(const std::string& name, const Tensor& tensor) {
    const Tensor t = tensor.detach().to(at::kCPU).contiguous();
    kept_.push_back(t);
    const auto* bytes = static_cast<const std::byte*>(t.const_data_ptr());
    sources_.push_back({name,
                        t.scalar_type() == at::kLong ? "I64" : "F32",
                        t.sizes().vec(),
                        {bytes, static_cast<std::size_t>(t.nbytes())}});
  }
  template <class T>
  void add(const std::string& name, const std::vector<T>& data, std::vector<std::int64_t> shape) {
    Tensor t = at::empty(shape, std::is_same_v<T, float> ? at::kFloat : at::kLong);
    std::memcpy(t.mutable_data_ptr(), data.data(), data.size() * sizeof(T));
    add(name, t);
  }
  void write(const fs::path& path) const { write_safetensors(path, sources_); }

 private:
  std::vector<Tensor> kept_;
  std::vector<TensorSource> sources_;
};

void add_sample(Archive& archive, const std::string& prefix, const Sample& s, const PackedBatch& alone) {
  const auto length = static_cast<std::int64_t>(s.vlm.input_ids.size());
  std::vector<std::int64_t> grid;
  for (const auto& image : s.vlm.image_grid_thw) grid.insert(grid.end(), image.begin(), image.end());
  const auto patches = alone.pixel_values.size(0);
  archive.add(prefix + "input_ids", s.vlm.input_ids, {length});
  archive.add(prefix + "position_ids", s.vlm.position_ids, {3, length});
  archive.add(prefix + "image_grid_thw", grid, {static_cast<std::int64_t>(grid.size() / 3), 3});
  archive.add(prefix + "pixel_values", s.vlm.pixel_values, {patches, alone.pixel_values.size(1)});
  for (const auto& [name, tensor] :
       std::initializer_list<std::pair<const char*, Tensor>>{{"state", alone.state},
                                                             {"sensor", alone.sensor},
                                                             {"actions", alone.actions},
                                                             {"action_weight", alone.action_weight}}) {
    archive.add(prefix + name, tensor[0]);
  }
  archive.add(prefix + "noise", alone.noise);
  archive.add(prefix + "timesteps", alone.timesteps);
}

void write_options(const Setting& s) {
  const auto& o = s.options;
  const json root = {{"model", fs::absolute(o.path).string()},
                     {"stage", o.stage},
                     {"kind", o.expert.kind},
                     {"batch", s.batch},
                     {"steps", s.steps},
                     {"recompute", s.recompute},
                     {"bf16", o.precision.compute == at::kBFloat16},
                     {"lr", s.lr},
                     {"vl_lr", s.vl_lr},
                     {"clip", s.clip},
                     {"warmup", s.warmup},
                     {"weight_decay", kWeightDecay},
                     {"rank", o.lora.rank},
                     {"alpha", o.lora.alpha},
                     {"targets", o.lora.targets},
                     {"width", o.expert.width},
                     {"depth", o.expert.depth},
                     {"heads", o.expert.heads},
                     {"draws", o.expert.draws},
                     {"chunk", o.expert.chunk},
                     {"diffusion_steps", o.expert.diffusion_steps},
                     {"state_dim", o.state_dim},
                     {"action_dim", o.action_dim},
                     {"max_context", o.max_context},
                     {"sensor_window", o.sensor.window},
                     {"sensor_channels", o.sensor.channels},
                     {"sensor_patch", o.sensor.patch},
                     {"sensor_width", o.sensor.width}};
  std::ofstream(fs::path(s.out) / "options.json") << root.dump(2) << "\n";
}

/// LoRA's B starts at zero, which would leave A without a gradient to compare.
void prepare(const VlaModel& model, const Setting& s) {
  Archive archive;
  for (std::size_t i = 0; i < model.parameters().size(); ++i) {
    const auto& p = model.parameters()[i];
    if (p.name.find("lora_B") != std::string::npos) {
      auto numbers = values(p.tensor.numel(), 1'000'000 + i);
      p.tensor.detach().copy_(torch::from_blob(numbers.data(), p.tensor.sizes(), at::kFloat) * 0.05);
    }
    archive.add(p.name, p.tensor);
  }
  archive.write(fs::path(s.out) / "trainable.safetensors");
}

/// The samples of step k are k * batch and on; their position in the stream is their number.
std::vector<Sample> samples_of(const Setting& s, const PackingRules& rules, int step) {
  std::vector<Sample> samples;
  for (int i = 0; i < s.batch; ++i) samples.push_back(make_sample(rules, s, std::int64_t{step} * s.batch + i));
  return samples;
}

PackedBatch pack_all(const std::vector<Sample>& samples, const PackingRules& rules, at::Device device) {
  std::vector<StreamSample> stream;
  for (const auto& sample : samples) stream.push_back({&sample, static_cast<std::uint64_t>(sample.index)});
  return pack(stream, rules, device);
}

void write_batches(const Setting& s, const PackingRules& rules) {
  Archive archive;
  for (int step = 0; step < s.steps; ++step) {
    const auto samples = samples_of(s, rules, step);
    for (int i = 0; i < s.batch; ++i) {
      const StreamSample one{&samples[static_cast<std::size_t>(i)], static_cast<std::uint64_t>(step * s.batch + i)};
      add_sample(archive, fmt::format("{}/{}/", step, i), *one.sample, pack({&one, 1}, rules, at::kCPU));
    }
  }
  archive.write(fs::path(s.out) / "batches.safetensors");
}

/// One rank's trainer around the model, without a session: the samples are given.
class Trainer {
 public:
  Trainer(const VlaModel& model, const Setting& setting, const PackingRules& rules, const train::Device& device)
      : model_(model),
        setting_(setting),
        device_(device),
        buffers_(model.parameters(), train::kLossSlots + ddp::slot_count(1)),
        step_(model, rules, device.place, buffers_, *communicator_, *device.memory, predictor_, options(setting)) {}

  at::Device place() const { return device_.place; }
  memory::DeviceMemory& meter() const { return *device_.memory; }
  train::Step& transaction() { return step_; }

  /// The mean loss of the samples before the update, and the gradient's norm.
  train::StepResult step(std::span<const Sample> samples) {
    std::vector<StreamSample> stream;
    for (const auto& sample : samples) stream.push_back({&sample, static_cast<std::uint64_t>(sample.index)});
    train::StepInput input;
    input.step = ++done_;
    input.updates = done_ - 1;
    if (setting_.warmup > 0)
      input.learning_rate_factor = train::learning_rate_factor(done_ - 1, setting_.warmup, setting_.steps);
    input.samples = stream;
    input.plan = {0, setting_.micro, setting_.recompute};
    auto result = step_.run(input);
    if (result.fatal) throw *result.fatal;
    if (result.verdict.action != ddp::Action::kApply) fail(ExitCode::kData, "step {} was not applied", done_);
    return result;
  }

  /// The sum of the committed gradients of the last step.
  void add_gradients(Archive& archive) {
    for (std::size_t i = 0; i < buffers_.slots().size(); ++i) {
      const auto& slot = buffers_.slots()[i];
      const train::HostValues part = buffers_.on_host(train::part(buffers_.gradients(), slot.range));
      archive.add("gradient/" + slot.name, std::vector<float>(part.span().begin(), part.span().end()),
                  model_.parameters()[i].tensor.sizes().vec());
    }
  }

 private:
  static train::StepOptions options(const Setting& s) {
    train::StepOptions options;
    options.effective_batch = s.batch;
    options.clip_norm = s.clip;
    options.adapters.learning_rate = s.vl_lr;
    options.expert.learning_rate = s.lr;
    options.adapters.weight_decay = options.expert.weight_decay = kWeightDecay;
    return options;
  }

  const VlaModel& model_;
  const Setting& setting_;
  const train::Device& device_;
  std::unique_ptr<ddp::Communicator> communicator_ = ddp::make_solo();
  memory::Predictor predictor_{
      [](const memory::MicroBatchShape&, const memory::Plan&) { return 0; }};  // no budget to heed
  train::FlatBuffers buffers_;
  train::Step step_;
  std::int64_t done_ = 0;
};

void train_and_write(const VlaModel& model, const Setting& s, const PackingRules& rules, Trainer& trainer) {
  Archive archive;
  std::vector<float> losses, norms, sample_losses;
  for (int step = 0; step < s.steps; ++step) {
    const auto samples = samples_of(s, rules, step);
    {
      const at::NoGradGuard no_grad;
      const PackedBatch batch = pack_all(samples, rules, trainer.place());
      if (step == 0) archive.add("hidden", model.encode(batch, Features::kStates).to(at::kFloat));
      const Tensor each = model.sample_losses(batch, {0}).to(at::kCPU);
      sample_losses.insert(sample_losses.end(), each.const_data_ptr<float>(),
                           each.const_data_ptr<float>() + each.numel());
    }
    const auto result = trainer.step(samples);
    losses.push_back(static_cast<float>(result.loss));
    norms.push_back(static_cast<float>(result.gradient_norm));
    if (step == 0) trainer.add_gradients(archive);
  }
  archive.add("losses", losses, {s.steps});
  archive.add("norms", norms, {s.steps});
  archive.add("sample_losses", sample_losses, {s.steps, s.batch});
  for (const auto& p : model.parameters()) archive.add("trained/" + p.name, p.tensor);
  archive.write(fs::path(s.out) / "ours.safetensors");
}

/// Functions of bench/peers/malloc_counter.c, or null when it is not loaded.
std::int64_t counter(const char* name) {
  auto* function = reinterpret_cast<std::int64_t (*)()>(dlsym(RTLD_DEFAULT, name));
  return function == nullptr ? 0 : function();
}

/// What a step takes at its peak above what is live between steps, after three to warm up.
json bytes_of_a_step(const std::function<void()>& run, const Trainer& trainer) {
  memory::DeviceMemory& meter = trainer.meter();
  for (int i = 0; i < 3; ++i) run();
  const bool counted_here = !trainer.place().is_cpu();
  meter.reset_peak();
  const auto live = counted_here ? meter.live() : counter("malloc_counter_reset_peak");
  run();
  const auto peak = counted_here ? meter.peak_live() : counter("malloc_counter_peak");
  return {{"step_bytes", peak - live}, {"live_bytes", live}, {"threads", at::get_num_threads()}};
}

/// "batch 4 recompute 36": steps of so many samples at once from now on.
void set_up(const std::string& line, Setting& s) {
  std::istringstream words(line);
  std::string batch, recompute;
  int samples = 0, blocks = -1;
  words >> batch >> samples >> recompute >> blocks;
  if (batch != "batch" || recompute != "recompute" || samples < 1 || samples > s.batch || blocks < 0)
    fail(ExitCode::kUsage, "\"{}\": ask for \"batch N recompute K\", N at most {} (--batch)", line, s.batch);
  s.micro = samples;
  s.recompute = blocks;
}

/// Whole steps, packing to update. Gradients and moments are there before the clock starts. The clock is the asker's:
/// two processes that take turns step by step meet the same machine.
void time_steps(Setting& s, const PackingRules& rules, Trainer& trainer) {
  const auto samples = samples_of(s, rules, 0);
  std::size_t count = samples.size();
  const auto run = [&] {
    trainer.step(std::span(samples).first(count));
    trainer.meter().synchronize();
  };
  const json ready = s.served ? json::object({{"served", true}}) : bytes_of_a_step(run, trainer);
  std::cout << ready.dump() << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    if (!line.empty()) {
      set_up(line, s);
      count = static_cast<std::size_t>(s.micro);
      std::cout << bytes_of_a_step(run, trainer).dump() << std::endl;
      continue;
    }
    const auto start = std::chrono::steady_clock::now();
    run();
    std::cout << std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() << std::endl;
  }
}

/// Where in a step memory is taken away, as the step itself shows that it has come there.
enum class Place { kNowhere, kTower, kLanguageModel, kBackward };

struct NamedPlace {
  Place place;
  const char* name;
  const char* phase;
};
constexpr std::array<NamedPlace, 3> kPlaces = {{{Place::kTower, "after the vision tower", "forward"},
                                                {Place::kLanguageModel, "after the language model", "forward"},
                                                {Place::kBackward, "after the loss", "backward"}}};

/// Who takes the memory: all that is not in use then.
class Neighbour final : public train::FeatureKeeper {
 public:
  explicit Neighbour(memory::DeviceMemory& meter) : meter_(meter) {}
  void strike_at(Place place) { place_ = place; }

  void start_step(std::int64_t) override {}
  bool can_keep(const Sample&) const override { return false; }
  Shown shown(std::span<const StreamSample>) override {
    Shown watch;
    watch.image_features = [this](const Tensor&) { come_to(Place::kTower); };
    watch.hidden_states = [this](const Tensor&) { come_to(Place::kLanguageModel); };
    watch.last_layer = [this](const Tensor&, const Tensor&) { come_to(Place::kBackward); };
    return watch;
  }
  void commit() override {}
  void discard() override {}
  std::int64_t give_up_device() override { return 0; }

 private:
  void come_to(Place place) {
    if (place != place_) return;
    place_ = Place::kNowhere;
    meter_.release_cached();  // what is cached would serve requests whatever the budget
    meter_.set_budget(meter_.reserved());
  }

  memory::DeviceMemory& meter_;
  Place place_ = Place::kNowhere;
};

/// Bytes that a failed attempt still held after its drain: at once, and when a second had passed or nothing was left.
struct Held {
  std::int64_t at_once = 0, at_last = 0;
  double waited_ms = 0;
};

Held wait_for_release(const memory::DeviceMemory& meter, std::int64_t before, std::int64_t now) {
  const auto start = std::chrono::steady_clock::now();
  Held held{now - before, now - before, 0};
  while (held.at_last > 0 && held.waited_ms < 1000) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    held.at_last = meter.live() - before;
    held.waited_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }
  return held;
}

/// One step whose memory is taken away at `place`. `needed`: bytes that it takes undisturbed. What is replayed has
/// nine tenths of it.
json fail_at(const NamedPlace& place, std::span<const Sample> samples, std::int64_t needed, Neighbour& neighbour,
             Trainer& trainer) {
  memory::DeviceMemory& meter = trainer.meter();
  const std::int64_t budget = meter.budget();
  Held worst;
  trainer.transaction().guardian().after_drain = [&](std::int64_t before, std::int64_t now) {
    const Held held = wait_for_release(meter, before, now);
    worst = {std::max(worst.at_once, held.at_once), std::max(worst.at_last, held.at_last),
             std::max(worst.waited_ms, held.waited_ms)};
    meter.release_cached();
    meter.set_budget(meter.reserved() + needed / 10 * 9);
  };
  neighbour.strike_at(place.place);
  const train::StepResult result = trainer.step(samples);
  trainer.transaction().guardian().after_drain = nullptr;
  meter.set_budget(budget);
  return {{"place", place.name},
          {"phase", place.phase},
          {"retries", result.guardian.retries},
          {"forward", result.failed.forward},
          {"backward", result.failed.backward},
          {"held_at_once", worst.at_once},
          {"held", worst.at_last},
          {"waited_ms", worst.waited_ms},
          {"loss", result.loss},
          {"norm", result.gradient_norm}};
}

/// A line of JSON for each place, with what the same step loses undisturbed.
void fail_steps(const Setting& s, const PackingRules& rules, Trainer& trainer) {
  const auto samples = samples_of(s, rules, 0);
  memory::DeviceMemory& meter = trainer.meter();
  trainer.step(samples);  // what is made once is made
  meter.synchronize();
  const std::int64_t live = meter.live();
  const train::StepResult calm = trainer.step(samples);
  meter.synchronize();
  const std::int64_t needed = meter.peak() - live;  // a step begins with a new peak
  Neighbour neighbour(meter);
  trainer.transaction().keep_features(&neighbour);
  for (const NamedPlace& place : kPlaces) {
    json line = fail_at(place, samples, needed, neighbour, trainer);
    line.update({{"calm_loss", calm.loss}, {"calm_norm", calm.gradient_norm}, {"needed", needed}});
    std::cout << line.dump() << std::endl;
  }
  trainer.transaction().keep_features(nullptr);
}

void profile(const Setting& s, const PackingRules& rules, Trainer& trainer, const std::string& name,
             CountedKernels& kernels) {
  const auto samples = samples_of(s, rules, 0);
  const auto step = [&] {
    trainer.step(samples);
    trainer.meter().synchronize();
  };
  for (int i = 0; i < 3; ++i) step();
  json found = profile_steps(step, s.profile, trainer.place(), kernels);
  found.update({{"device", name}, {"samples", s.batch}, {"recompute", s.recompute}});
  std::cout << found.dump() << std::endl;
}

/// What forward and backward of a micro-batch call on a GPU, by a dry run: one JSON object.
void count_operators(Setting& s) {
  train::let_dry_runs_stand_for_a_gpu();
  std::ofstream(fs::path(s.out) / "config.json") << qwen_config_json(init_config(s.init), "bfloat16").dump(2) << "\n";
  s.options.path = s.out;
  const at::Device meta(at::kMeta);
  static CountedKernels kernels(kernels_for(at::empty({0}, at::TensorOptions(meta))));
  register_kernels(at::kMeta, &kernels);
  json operators = json::array();
  memory::dry_run([&] {
    const VlaModel model(s.options, meta);
    const auto rules = model.packing_rules(17, false);
    const auto samples = samples_of(s, rules, 0);
    const PackedBatch batch = pack_all(samples, rules, meta);
    kernels.clear();
    train::forward_backward(model, batch, train::recompute_of({0, s.micro, s.recompute}), s.batch);
  });
  for (const auto& [name, sum] : kernels.counts())
    operators.push_back(
        {{"name", name}, {"calls", sum.calls}, {"parts", sum.parts}, {"flops", sum.flops}, {"bytes", sum.bytes}});
  const json found{{"samples", s.batch}, {"recompute", s.recompute}, {"operators", operators}};
  std::cout << found.dump() << std::endl;
}

int run(int argc, char** argv) {
  Setting s = parse(argc, argv);
  complete(s.options);
  fs::create_directories(s.out);
  if (s.counts) {
    count_operators(s);
    return 0;
  }
  const train::Device device = train::open_device(s.device, 0);
  std::optional<CountedKernels> counted;  // outlives the model that calls it
  if (s.profile > 0) {
    counted.emplace(kernels_for(at::empty({0}, at::TensorOptions(device.place))));
    register_kernels(device.place.type(), &*counted);
  }
  if (!s.init.empty())
    write_random_checkpoint(init_config(s.init), {.dir = s.options.path, .seed = 1, .bf16 = s.init == "3b"});
  const VlaModel model(s.options, device.place);
  const auto rules = model.packing_rules(17, false);
  write_options(s);
  prepare(model, s);
  if (!s.failures && s.profile == 0) write_batches(s, rules);
  Trainer trainer(model, s, rules, device);
  if (s.failures) {
    fail_steps(s, rules, trainer);
  } else if (s.profile > 0) {
    profile(s, rules, trainer, device.name, *counted);
  } else if (s.paced) {
    time_steps(s, rules, trainer);
  } else {
    train_and_write(model, s, rules, trainer);
  }
  return 0;
}

}  // namespace
}  // namespace plimsoll::model

int main(int argc, char** argv) {
  try {
    return plimsoll::model::run(argc, argv);
  } catch (const plimsoll::Error& e) {
    std::cerr << "reference_dump: " << e.what() << "\n";
    return static_cast<int>(e.code());
  } catch (const std::exception& e) {
    std::cerr << "reference_dump: " << e.what() << "\n";
    return 2;
  }
}
