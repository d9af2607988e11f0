// Configuration, packing, weights, adapters on disk and the whole VLM, without other implementations (tests/oracle
// compares with those).

#include "model/qwen.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/safetensors.h"
#include "model/init_model.h"
#include "model/peft.h"
#include "model/qwen_config.h"
#include "model/vision_layout.h"
#include "model/weights.h"
#include "tests/error_of.h"

namespace plimsoll::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Folder {
  fs::path path = fs::temp_directory_path() / fmt::format("plimsoll-qwen-{}-{}", ::getpid(), count++);
  static inline int count = 0;
  Folder() { fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
  std::string str() const { return path.string(); }
};

QwenConfig small_config() {
  QwenConfig c = init_config("tiny", 2);
  c.vision.hidden = 32;
  c.vision.heads = 2;
  c.vision.intermediate = 48;
  c.vision.out_hidden = 64;
  c.vision.full_attention = {1};
  c.text.hidden = 64;
  c.text.heads = 4;
  c.text.kv_heads = 2;
  c.text.intermediate = 96;
  c.text.vocabulary = 300;
  c.text.mrope_section = {2, 3, 3};
  c.image_token_id = 290;
  return c;
}

// One checkpoint for all tests of this process.
const std::string& checkpoint() {
  static const Folder folder;
  static const std::string dir = [] {
    const std::string path = (folder.path / "model").string();
    write_random_checkpoint(small_config(), {.dir = path, .seed = 3, .bf16 = false});
    return path;
  }();
  return dir;
}

// A prompt with one picture of rows x columns patches; its content depends on `index`.
Sample make_sample(std::int64_t index, std::int64_t rows, std::int64_t columns) {
  Sample sample;
  sample.index = index;
  auto& vlm = sample.vlm;
  const std::int64_t blocks = rows * columns / 4;
  for (int i = 0; i < 3; ++i) vlm.input_ids.push_back((index * 7 + i) % 250);
  vlm.input_ids.insert(vlm.input_ids.end(), blocks, 290);
  for (int i = 0; i < 4; ++i) vlm.input_ids.push_back((index * 11 + i) % 250);
  const auto length = static_cast<std::int64_t>(vlm.input_ids.size());
  for (std::int64_t axis = 0; axis < 3; ++axis) {
    for (std::int64_t t = 0; t < length; ++t) vlm.position_ids.push_back(axis == 2 ? t / 2 : t);
  }
  if (blocks > 0) vlm.image_grid_thw.push_back({1, rows, columns});
  for (std::int64_t i = 0; i < rows * columns * 1176; ++i)
    vlm.pixel_values.push_back(std::sin(static_cast<float>(index + i)));
  sample.state = {1, 2};
  sample.actions = {1, 2, 3, 4, 5, 6};
  sample.action_is_pad = {0, 1};
  return sample;
}

PackingRules full_rules(const Qwen& model) {
  PackingRules rules = model.packing_rules();
  rules.state_dim = 2;
  rules.chunk = 2;
  rules.action_dim = 3;
  rules.draws = 2;
  rules.dropout = true;
  rules.seed = 5;
  return rules;
}

PackedBatch pack_of(const std::vector<const Sample*>& samples, const PackingRules& rules) {
  std::vector<StreamSample> items;
  for (const auto* sample : samples) items.push_back({sample, static_cast<std::uint64_t>(sample->index)});
  return pack(items, rules, at::kCPU);
}

double distance(const Tensor& a, const Tensor& b) { return ((a - b).norm() / b.norm()).item<double>(); }

TEST(QwenConfig, BothLayoutsGiveTheSame) {
  const json nested = qwen_config_json(small_config(), "float32");
  json flat = nested["text_config"];
  flat["model_type"] = "qwen2_5_vl";
  flat["vision_config"] = nested["vision_config"];
  flat["vision_config"]["in_chans"] = 3;
  flat["image_token_id"] = 290;
  flat["rope_scaling"] = {{"type", "mrope"}, {"mrope_section", {2, 3, 3}}};
  flat["rope_theta"] = 1e6;
  flat.erase("rope_parameters");
  flat["sliding_window"] = 32768;
  for (const auto& root : {nested, flat}) {
    const QwenConfig config = parse_qwen_config(root, "here");
    EXPECT_EQ(config.text.hidden, 64);
    EXPECT_EQ(config.text.kv_heads, 2);
    EXPECT_EQ(config.text.mrope_section, (std::array{2, 3, 3}));
    EXPECT_EQ(config.vision.full_attention, std::vector{1});
    EXPECT_EQ(config.image_token_id, 290);
    EXPECT_DOUBLE_EQ(config.text.rope_theta, 1e6);
  }
}

TEST(QwenConfig, RefusesWhatItCannotCompute) {
  const json good = qwen_config_json(small_config(), "float32");
  const auto broken = [&](const char* table, const char* key, const json& value) {
    json root = good;
    (std::string_view(table).empty() ? root : root[table])[key] = value;
    return error_of(ExitCode::kData, [&] { parse_qwen_config(root, "config.json"); });
  };
  EXPECT_THAT(broken("", "model_type", "llama"), HasSubstr("\"llama\" is another architecture"));
  EXPECT_THAT(broken("", "vision_config", nullptr), HasSubstr("vision_config"));
  EXPECT_THAT(broken("text_config", "use_sliding_window", true), HasSubstr("use_sliding_window"));
  EXPECT_THAT(broken("text_config", "num_key_value_heads", 3), HasSubstr("num_key_value_heads = 3"));
  EXPECT_THAT(broken("text_config", "hidden_size", "wide"), HasSubstr("hidden_size = \"wide\""));
  EXPECT_THAT(broken("text_config", "hidden_size", -4), HasSubstr("hidden_size = -4"));
  EXPECT_THAT(broken("text_config", "hidden_act", "gelu"), HasSubstr("hidden_act"));
  EXPECT_THAT(broken("text_config", "rope_parameters", json{{"rope_type", "yarn"}}), HasSubstr("rope_parameters"));
  EXPECT_THAT(broken("vision_config", "patch_size", 16), HasSubstr("patch_size = 16"));
  EXPECT_THAT(broken("vision_config", "out_hidden_size", 65), HasSubstr("out_hidden_size = 65"));
  EXPECT_THAT(error_of(ExitCode::kData, [] { read_qwen_config("/nowhere"); }), HasSubstr("/nowhere/config.json"));
}

TEST(VisionLayout, WindowsAreRaggedAtTheRightAndBottom) {
  VisionLayout layout;
  layout.append({1, 6, 4}, 2, 2);  // 3 x 2 blocks, windows of 2 x 2
  layout.append({1, 4, 4}, 2, 2);  // 2 x 2 blocks: divides, no empty window
  EXPECT_THAT(layout.windows, ElementsAre(16, 8, 16));
  EXPECT_THAT(layout.frames, ElementsAre(24, 16));
  EXPECT_THAT(layout.blocks, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9));
  VisionLayout wide;
  wide.append({1, 4, 6}, 2, 2);  // 2 x 3 blocks
  EXPECT_THAT(wide.blocks, ElementsAre(0, 1, 3, 4, 2, 5));
  EXPECT_THAT(wide.unpermute, ElementsAre(0, 1, 4, 2, 3, 5));
  EXPECT_THAT(wide.windows, ElementsAre(16, 8));
  EXPECT_EQ(wide.positions[5], (std::array<std::int64_t, 2>{0, 3}));
}

TEST(Weights, NamesOfBothLayouts) {
  EXPECT_EQ(canonical_name("visual.blocks.0.norm1.weight"), "model.visual.blocks.0.norm1.weight");
  EXPECT_EQ(canonical_name("model.layers.3.mlp.up_proj.weight"), "model.language_model.layers.3.mlp.up_proj.weight");
  EXPECT_EQ(canonical_name("model.language_model.norm.weight"), "model.language_model.norm.weight");
  EXPECT_EQ(canonical_name("lm_head.weight"), "");
}

TEST(Pack, ASampleDoesNotDependOnItsNeighbours) {
  const Qwen model(checkpoint(), {}, nullptr, 0, at::kCPU);
  const PackingRules rules = full_rules(model);
  const Sample a = make_sample(1, 4, 6), b = make_sample(2, 10, 4);
  const PackedBatch alone = pack_of({&b}, rules), both = pack_of({&a, &b}, rules);
  const auto tail = [](const Tensor& all, const Tensor& one) {
    return all.narrow(0, all.size(0) - one.size(0), one.size(0));
  };
  for (const auto& [all, one] :
       std::vector<std::pair<Tensor, Tensor>>{{both.pixel_values, alone.pixel_values},
                                              {both.vision_cos, alone.vision_cos},
                                              {both.text_sin, alone.text_sin},
                                              {both.dropout_keys, alone.dropout_keys},
                                              {both.noise, alone.noise},
                                              {both.timesteps, alone.timesteps},
                                              {both.context_positions, alone.context_positions},
                                              {both.action_weight, alone.action_weight}}) {
    EXPECT_TRUE(at::equal(tail(all, one), one));
  }
  EXPECT_FALSE(at::equal(both.noise[0], both.noise[2]));
  EXPECT_FALSE(at::equal(both.noise[0], both.noise[1]));
  const Tensor steps = both.timesteps;
  EXPECT_TRUE(at::equal(steps, steps.floor()));
}

TEST(Pack, ShapesAreThoseOfTheDryRun) {
  const Qwen model(checkpoint(), {}, nullptr, 0, at::kCPU);
  const PackingRules rules = full_rules(model);
  const Sample a = make_sample(1, 4, 6), b = make_sample(2, 0, 0);
  const PackedBatch real = pack_of({&a, &b}, rules);
  const std::vector<SampleShape> shapes{a.shape(), b.shape()};
  const PackedBatch meta = pack_shapes(shapes, rules);
  const auto same = [](const Tensor& x, const Tensor& y) {
    return x.defined() == y.defined() &&
           (!x.defined() || (x.sizes() == y.sizes() && x.scalar_type() == y.scalar_type()));
  };
  EXPECT_TRUE(same(real.pixel_values, meta.pixel_values));
  EXPECT_TRUE(same(real.vision_unpermute, meta.vision_unpermute));
  EXPECT_TRUE(same(real.text_cos, meta.text_cos));
  EXPECT_TRUE(same(real.image_rows, meta.image_rows));
  EXPECT_TRUE(same(real.dropout_keys, meta.dropout_keys));
  EXPECT_TRUE(same(real.noise, meta.noise));
  EXPECT_TRUE(same(real.context_positions, meta.context_positions));
  EXPECT_EQ(real.tokens->queries, meta.tokens->queries);
}

TEST(Pack, RefusesSamplesThatDoNotFit) {
  const Qwen model(checkpoint(), {}, nullptr, 0, at::kCPU);
  const PackingRules rules = full_rules(model);
  const auto broken = [&](const std::function<void(Sample&)>& damage) {
    Sample sample = make_sample(41, 4, 6);
    damage(sample);
    return error_of(ExitCode::kData, [&] { pack_of({&sample}, rules); });
  };
  EXPECT_THAT(broken([](Sample& s) { s.vlm.input_ids[0] = 300; }), HasSubstr("sample 41: largest token id"));
  EXPECT_THAT(broken([](Sample& s) { s.vlm.input_ids[0] = 290; }), HasSubstr("image tokens"));
  EXPECT_THAT(broken([](Sample& s) { s.vlm.pixel_values.pop_back(); }), HasSubstr("values of image patches"));
  EXPECT_THAT(broken([](Sample& s) { s.vlm.image_grid_thw[0] = {1, 3, 8}; }), HasSubstr("rows or columns"));
  EXPECT_THAT(broken([](Sample& s) { s.vlm.position_ids[0] = -1; }), HasSubstr("position ids"));
  EXPECT_THAT(broken([](Sample& s) { s.actions.pop_back(); }), HasSubstr("action values: found 5, expected 6"));
  EXPECT_THAT(broken([](Sample& s) { s.state.clear(); }), HasSubstr("state values"));
}

TEST(Qwen, PackedSamplesEqualSinglePrompts) {
  const Qwen model(checkpoint(), {}, nullptr, 0, at::kCPU);
  const PackingRules rules = full_rules(model);
  const Sample a = make_sample(1, 4, 6), b = make_sample(2, 10, 4), c = make_sample(3, 0, 0);
  std::vector<Tensor> single;
  for (const auto* sample : {&a, &b, &c}) {
    const PackedBatch batch = pack_of({sample}, rules);
    single.push_back(model.hidden_states(batch, model.image_features(batch), {}, false));
  }
  const PackedBatch batch = pack_of({&a, &b, &c}, rules);
  const Tensor all = model.hidden_states(batch, model.image_features(batch), {}, false);
  EXPECT_LT(distance(all, at::cat(single)), 2e-6);
  EXPECT_FALSE(all.requires_grad());
}

TEST(Qwen, ShardsAndSingleFileGiveTheSame) {
  const Folder folder;
  const std::string dir = (folder.path / "sharded").string();
  write_random_checkpoint(small_config(), {.dir = dir, .seed = 3, .bf16 = false, .shard_bytes = 100000});
  EXPECT_TRUE(fs::exists(fs::path(dir) / "model.safetensors.index.json"));
  const Sample a = make_sample(1, 4, 6);
  const Qwen one(checkpoint(), {}, nullptr, 0, at::kCPU), many(dir, {}, nullptr, 0, at::kCPU);
  const PackedBatch batch = pack_of({&a}, full_rules(one));
  EXPECT_TRUE(at::equal(one.image_features(batch), many.image_features(batch)));
}

TEST(Qwen, RefusesWeightsThatDoNotFit) {
  const Folder folder;
  const SafetensorsFile file(fs::path(checkpoint()) / "model.safetensors");
  const auto with = [&](const std::function<void(std::vector<TensorSource>&)>& damage) {
    std::vector<TensorSource> tensors;
    for (const auto& entry : file.tensors()) tensors.push_back({entry.name, entry.dtype, entry.shape, entry.bytes});
    damage(tensors);
    write_safetensors(folder.path / "model.safetensors", tensors);
    fs::copy_file(fs::path(checkpoint()) / "config.json", folder.path / "config.json",
                  fs::copy_options::overwrite_existing);
    return error_of(ExitCode::kData, [&] { Qwen(folder.str(), {}, nullptr, 0, at::kCPU); });
  };
  const auto named = [](std::vector<TensorSource>& tensors, const std::string& name) -> TensorSource& {
    return *std::find_if(tensors.begin(), tensors.end(), [&](const TensorSource& t) { return t.name == name; });
  };
  EXPECT_THAT(with([&](auto& t) { named(t, "model.norm.weight").name = "model.norm.wait"; }),
              HasSubstr("no tensor model.language_model.norm.weight"));
  EXPECT_THAT(with([&](auto& t) {
                t.push_back({"model.layers.9.mlp.up_proj.weight", "F32", {0}, {}});
              }),
              HasSubstr("model.safetensors: tensor model.layers.9.mlp.up_proj.weight is no part"));
  EXPECT_THAT(with([&](auto& t) {
                named(t, "visual.merger.ln_q.weight").shape = {16, 2};
              }),
              HasSubstr("has shape [16, 2]"));
  EXPECT_THAT(with([&](auto& t) { named(t, "visual.merger.ln_q.weight").dtype = "I32"; }), HasSubstr("dtype I32"));
  EXPECT_THAT(with([&](auto& t) {
                t.push_back({"model.visual.merger.ln_q.weight", "F32", {0}, {}});
              }),
              HasSubstr("is also in"));
  fs::remove(folder.path / "model.safetensors");
  EXPECT_THAT(error_of(ExitCode::kData, [&] { Qwen(folder.str(), {}, nullptr, 0, at::kCPU); }),
              HasSubstr("neither model.safetensors nor"));
  std::ofstream(folder.path / "model.safetensors.index.json") << R"({"weight_map": {"a": "../model.safetensors"}})";
  EXPECT_THAT(error_of(ExitCode::kData, [&] { Qwen(folder.str(), {}, nullptr, 0, at::kCPU); }),
              HasSubstr("no plain file name"));
}

// Hidden states whose gradient reaches every adapter: B is not zero.
struct Trained {
  LoraOptions options;
  Qwen model;
  explicit Trained(const std::string& targets = LoraOptions{}.targets)
      : options{.rank = 4, .alpha = 8, .dropout = 0.25, .targets = targets},
        model(checkpoint(), {}, &options, 7, at::kCPU) {
    const at::NoGradGuard no_grad;
    for (const auto& parameter : model.adapters()) {
      if (parameter.name.find("lora_B") != std::string::npos)
        parameter.tensor.detach().copy_(
            at::linspace(-0.1, 0.1, parameter.tensor.numel()).view(parameter.tensor.sizes()));
    }
  }
  Tensor run(const PackedBatch& batch, int recomputed, bool training) {
    return model.hidden_states(batch, model.image_features(batch, {}, training), {recomputed}, training);
  }
  std::vector<Tensor> gradients(const PackedBatch& batch, int recomputed) {
    for (const auto& parameter : model.adapters()) parameter.tensor.mutable_grad().reset();
    run(batch, recomputed, true).square().mean().backward();
    std::vector<Tensor> out;
    for (const auto& parameter : model.adapters()) out.push_back(parameter.tensor.grad());
    return out;
  }
};

TEST(Lora, NamesAndOrderAreThoseOfPeft) {
  Trained trained;
  const auto& adapters = trained.model.adapters();
  ASSERT_EQ(adapters.size(), 2U * 2 * 7);
  EXPECT_EQ(adapters[0].name, "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight");
  EXPECT_EQ(adapters[1].name, "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.weight");
  EXPECT_EQ(adapters[0].tensor.sizes(), (at::IntArrayRef{4, 64}));
  const double bound = 1.0 / 8;
  EXPECT_LE(adapters[0].tensor.abs().max().item<double>(), bound);
  EXPECT_GT(adapters[0].tensor.abs().max().item<double>(), 0.9 * bound);
}

TEST(Lora, RecomputeGivesTheSameGradientsInBlockZeroToo) {
  Trained trained;
  PackingRules rules = full_rules(trained.model);
  const Sample a = make_sample(1, 4, 6), b = make_sample(2, 10, 4);
  const PackedBatch batch = pack_of({&a, &b}, rules);
  const auto plain = trained.gradients(batch, 0);
  for (const int k : {1, 2}) {
    const auto again = trained.gradients(batch, k);
    for (std::size_t i = 0; i < plain.size(); ++i) {
      EXPECT_GT(plain[i].norm().item<double>(), 0) << trained.model.adapters()[i].name;
      EXPECT_LT(distance(again[i], plain[i]), 1e-6) << trained.model.adapters()[i].name;
    }
  }
}

TEST(Lora, DropoutActsInTrainingOnlyAndIsRepeatable) {
  Trained trained;
  const Sample a = make_sample(1, 4, 6);
  const PackedBatch batch = pack_of({&a}, full_rules(trained.model));
  const Tensor evaluated = trained.run(batch, 0, false), first = trained.run(batch, 0, true),
               second = trained.run(batch, 0, true);
  EXPECT_TRUE(at::equal(first, second));
  EXPECT_GT(distance(first, evaluated), 1e-5);
}

TEST(Lora, VisionAdaptersAreTrainedWhenThePatternSaysSo) {
  Trained trained(R"(.*visual.*(qkv|attn\.proj|down_proj)|.*merger\.mlp\.2)");
  const Sample a = make_sample(1, 4, 6);
  const PackedBatch batch = pack_of({&a}, full_rules(trained.model));
  EXPECT_EQ(trained.model.adapters().size(), 2U * (2 * 3 + 1));
  for (const auto& gradient : trained.gradients(batch, 1)) EXPECT_GT(gradient.norm().item<double>(), 0);
}

TEST(Lora, RefusesPatternsThatTrainNothing) {
  const auto with = [](const LoraOptions& options) {
    return error_of(ExitCode::kUsage, [&] { Qwen(checkpoint(), {}, &options, 0, at::kCPU); });
  };
  EXPECT_THAT(with({.targets = "q_proj"}), HasSubstr("matches no linear layer"));
  EXPECT_THAT(with({.targets = "(q_proj"}), HasSubstr("no regular expression"));
  EXPECT_THAT(with({.targets = ".*embed_tokens"}), HasSubstr("embeddings have no adapter"));
  EXPECT_THAT(with({.rank = 0}), HasSubstr("lora.rank = 0"));
  EXPECT_THAT(with({.dropout = 1.0}), HasSubstr("lora.dropout = 1"));
}

TEST(Peft, RoundTripAndOldNames) {
  Trained trained;
  const Folder folder;
  save_adapter(folder.str(), trained.options, trained.model.adapters(), "base");
  const LoraOptions read = read_adapter_options(folder.str());
  EXPECT_EQ(read.rank, 4);
  EXPECT_EQ(read.targets, trained.options.targets);
  const auto expect_loaded = [&] {
    const Qwen fresh(checkpoint(), {}, &read, 1, at::kCPU);
    load_adapter(folder.str(), read, fresh.adapters());
    for (std::size_t i = 0; i < fresh.adapters().size(); ++i) {
      EXPECT_TRUE(at::equal(fresh.adapters()[i].tensor, trained.model.adapters()[i].tensor));
    }
  };
  expect_loaded();
  std::vector<TensorSource> old;
  std::vector<Tensor> kept;
  for (const auto& parameter : trained.model.adapters()) {
    std::string name = parameter.name;
    name.replace(name.find(".language_model"), 15, "");
    const Tensor value = parameter.tensor.detach();
    old.push_back(
        {name, "F32", value.sizes().vec(), {static_cast<const std::byte*>(value.const_data_ptr()), value.nbytes()}});
  }
  write_safetensors(folder.path / "adapter_model.safetensors", old);
  expect_loaded();
}

TEST(Peft, RefusesAdaptersThatDoNotFit) {
  Trained trained;
  const Folder folder;
  const auto load = [&](LoraOptions options) {
    return error_of(ExitCode::kData, [&] { load_adapter(folder.str(), options, trained.model.adapters()); });
  };
  const auto edit = [&](const char* key, const json& value) {
    json root = json::parse(std::ifstream(folder.path / "adapter_config.json"));
    root[key] = value;
    std::ofstream(folder.path / "adapter_config.json") << root;
  };
  EXPECT_THAT(load(trained.options), HasSubstr("adapter_config.json"));
  save_adapter(folder.str(), trained.options, trained.model.adapters(), "base");
  EXPECT_THAT(load({.rank = 8, .alpha = 8}), HasSubstr("r = 4, the configuration asks for 8"));
  EXPECT_THAT(load({.rank = 4, .alpha = 16}), HasSubstr("lora_alpha = 8"));
  edit("use_dora", true);
  EXPECT_THAT(load(trained.options), HasSubstr("use_dora = true"));
  edit("use_dora", false);
  edit("peft_type", "IA3");
  EXPECT_THAT(load(trained.options), HasSubstr("\"IA3\""));
  edit("peft_type", "LORA");
  auto fewer = trained.model.adapters();
  fewer.pop_back();
  save_adapter(folder.str(), trained.options, fewer, "base");
  EXPECT_THAT(load(trained.options),
              HasSubstr("no tensor base_model.model.model.language_model.layers.1.mlp.down_proj.lora_B.weight"));
  auto more = trained.model.adapters();
  more.push_back({"base_model.model.model.language_model.layers.7.mlp.down_proj.lora_B.weight", at::zeros({2}),
                  ParameterGroup::kVlm});
  save_adapter(folder.str(), trained.options, more, "base");
  EXPECT_THAT(load(trained.options), HasSubstr("has no place in this model"));
  auto nan = trained.model.adapters();
  nan[3].tensor = at::full_like(nan[3].tensor.detach(), std::nan(""));
  save_adapter(folder.str(), trained.options, nan, "base");
  EXPECT_THAT(load(trained.options), HasSubstr("holds nan"));
  auto wide = trained.model.adapters();
  wide[0].tensor = at::zeros({4, 65});
  save_adapter(folder.str(), trained.options, wide, "base");
  EXPECT_THAT(load(trained.options), HasSubstr("has shape [4, 65], this model and rank need [4, 64]"));
}

TEST(InitModel, RefusesAFullFolderAndAnUnknownSize) {
  EXPECT_THAT(error_of(ExitCode::kUsage, [] { write_random_checkpoint(small_config(), {.dir = checkpoint()}); }),
              HasSubstr("not an empty folder"));
  EXPECT_THAT(error_of(ExitCode::kUsage, [] { init_config("huge"); }), HasSubstr("tiny, wide or 3b"));
}

TEST(Qwen, ShapesAloneOnMeta) {
  const LoraOptions lora;
  const Qwen model(checkpoint(), {at::kBFloat16, at::kBFloat16}, &lora, 0, at::kMeta);
  const std::vector<SampleShape> shapes{{20, 24}, {9, 0}};
  const PackedBatch batch = pack_shapes(shapes, full_rules(model));
  const Tensor hidden = model.hidden_states(batch, model.image_features(batch), {1}, true);
  EXPECT_EQ(hidden.sizes(), (at::IntArrayRef{29, 64}));
  EXPECT_EQ(hidden.scalar_type(), at::kBFloat16);
  hidden.sum().backward();
  EXPECT_TRUE(model.adapters()[0].tensor.grad().defined());
}

}  // namespace
}  // namespace plimsoll::model
