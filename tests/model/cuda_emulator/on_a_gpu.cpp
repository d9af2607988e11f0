// The cases on a GPU: the tensors of a call go there, and what it wrote comes back. Where there is no GPU one case is
// skipped for all, with the reason.

#include "tests/model/cuda_emulator/on_a_gpu.h"

#include <filesystem>
#include <iostream>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/error.h"
#include "tests/model/cuda_emulator/comparison.h"
#include "tests/model/cuda_emulator/scratch_recorder.h"

namespace plimsoll::model {
namespace {

constexpr std::int64_t kBlock = 512;  // what the caching allocator rounds a request up to

train::Device opened;
std::string why_not;             // there is no GPU
std::int64_t scratch_taken = 0;  // by the last call, at the most

const Kernels& real() { return opened.library->kernels(); }

void measure(const std::function<void()>& call) {
  memory::DeviceMemory& memory = *opened.memory;
  memory.synchronize();
  memory.reset_peak();
  const std::int64_t before = memory.live();
  call();
  memory.synchronize();
  scratch_taken = memory.peak_live() - before;
}

/// The tensors of one call. A tensor that is passed twice is one there too; strides stay.
class Journey {
 public:
  const Tensor& there(const Tensor& host) { return carried(host); }
  /// One that is written: back() brings it back.
  Tensor& there(Tensor& host) {
    if (host.defined()) written_.push_back(host);
    return carried(host);
  }
  template <class Value>
  const Value& there(const Value& value) {
    return value;
  }
  void back() {
    for (Tensor& host : written_) host.copy_(carried(host));
  }

 private:
  Tensor& carried(const Tensor& host) {
    Tensor& device = by_tensor_[host.unsafeGetTensorImpl()];
    if (host.defined() && !device.defined()) {
      device = at::empty_strided(host.sizes(), host.strides(), host.options().device(opened.place));
      device.copy_(host);
    }
    return device;
  }

  std::map<const c10::TensorImpl*, Tensor> by_tensor_;  // whose entries stay where they are
  std::vector<Tensor> written_;
};

/// One call of a kernel whose arguments are tensors and values. Only what is no const reference is written.
template <class Base, class... Parameters, class... Arguments>
void travel(void (Base::*kernel)(Parameters...) const, Arguments&... arguments) {
  Journey journey;
  std::tuple<decltype(journey.there(arguments))...> there(journey.there(arguments)...);
  measure([&] { std::apply([&](auto&... each) { (real().*kernel)(each...); }, there); });
  journey.back();
}

LoraTensors carried(Journey& journey, const LoraTensors& layer) {
  return {journey.there(layer.weight),
          journey.there(layer.bias),
          journey.there(layer.a),
          journey.there(layer.b),
          layer.scale,
          layer.site,
          layer.values};
}

AttentionTensors carried(Journey& journey, const AttentionTensors& t) {
  return {journey.there(t.q), journey.there(t.k), journey.there(t.v), t.segments, t.causal};
}

ContextRows carried(Journey& journey, const ContextRows& of) {
  return {journey.there(of.positions), journey.there(of.token_rows), journey.there(of.sensor_rows), of.lengths};
}

ChunkLoss carried(Journey& journey, const ChunkLoss& of) {
  return {journey.there(of.predicted), journey.there(of.actions), journey.there(of.noise), journey.there(of.weight),
          of.flow};
}

Dropout carried(Journey& journey, const Dropout& dropout) {
  return {dropout.rate, journey.there(dropout.keys), dropout.site};
}

class TravellingKernels final : public Kernels {
 public:
  void product(const Product& p, Tensor& out) const override {
    Journey journey;
    const Product there{journey.there(p.a),    p.transpose_a, journey.there(p.b), p.transpose_b,
                        journey.there(p.bias), p.beta,        p.compute};
    Tensor& to = journey.there(out);
    measure([&] { real().product(there, to); });
    journey.back();
  }

  void lora_forward(const Tensor& x, const LoraTensors& layer, const Dropout& dropout, ScalarType compute, Tensor& u,
                    Tensor& y) const override {
    Journey journey;
    const Tensor& x_there = journey.there(x);
    const LoraTensors layer_there = carried(journey, layer);
    const Dropout dropout_there = carried(journey, dropout);
    Tensor &u_there = journey.there(u), &y_there = journey.there(y);
    measure([&] { real().lora_forward(x_there, layer_there, dropout_there, compute, u_there, y_there); });
    journey.back();
  }

  void lora_backward(const Tensor& x, const std::vector<LoraTensors>& layers, const Dropout& dropout,
                     ScalarType compute, std::vector<LoraGradients>& gradients, Tensor& dx) const override {
    Journey journey;
    const Tensor& x_there = journey.there(x);
    const Dropout dropout_there = carried(journey, dropout);
    std::vector<LoraTensors> layers_there;
    for (const LoraTensors& layer : layers) layers_there.push_back(carried(journey, layer));
    std::vector<LoraGradients> gradients_there;
    for (LoraGradients& g : gradients) {
      gradients_there.push_back(
          {journey.there(g.grad_output), journey.there(g.u), journey.there(g.da), journey.there(g.db)});
    }
    Tensor& dx_there = journey.there(dx);
    measure([&] { real().lora_backward(x_there, layers_there, dropout_there, compute, gradients_there, dx_there); });
    journey.back();
  }

  void sum_rows(const Tensor& x, Tensor& out) const override { travel(&Kernels::sum_rows, x, out); }
  void cast(const Tensor& x, Tensor& out) const override { travel(&Kernels::cast, x, out); }
  void add(const Tensor& x, const Tensor& y, Tensor& out) const override { travel(&Kernels::add, x, y, out); }
  void rms_norm_forward(const Tensor& x, const Tensor& weight, double eps, Tensor& out, Tensor& rstd) const override {
    travel(&Kernels::rms_norm_forward, x, weight, eps, out, rstd);
  }
  void rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                         const Tensor& residual, Tensor& dx, Tensor& dweight) const override {
    travel(&Kernels::rms_norm_backward, grad, x, weight, rstd, residual, dx, dweight);
  }
  void swiglu_forward(const Tensor& gate, const Tensor& up, Tensor& out) const override {
    travel(&Kernels::swiglu_forward, gate, up, out);
  }
  void swiglu_backward(const Tensor& grad, const Tensor& gate, const Tensor& up, Tensor& dgate,
                       Tensor& dup) const override {
    travel(&Kernels::swiglu_backward, grad, gate, up, dgate, dup);
  }
  void activation_forward(Activation kind, const Tensor& x, Tensor& out) const override {
    travel(&Kernels::activation_forward, kind, x, out);
  }
  void activation_backward(Activation kind, const Tensor& grad, const Tensor& x, Tensor& dx) const override {
    travel(&Kernels::activation_backward, kind, grad, x, dx);
  }
  void rotary(const Tensor& x, const Tensor& cos, const Tensor& sin, bool backward, Tensor& out) const override {
    travel(&Kernels::rotary, x, cos, sin, backward, out);
  }

  void attention_forward(const AttentionTensors& t, Tensor& out, Tensor& lse) const override {
    Journey journey;
    const AttentionTensors there = carried(journey, t);
    Tensor &out_there = journey.there(out), &lse_there = journey.there(lse);
    measure([&] { real().attention_forward(there, out_there, lse_there); });
    journey.back();
  }
  void attention_backward(const AttentionTensors& t, const Tensor& grad, const Tensor& out, const Tensor& lse,
                          Tensor& dq, Tensor& dk, Tensor& dv) const override {
    Journey journey;
    const AttentionTensors there = carried(journey, t);
    const Tensor &g = journey.there(grad), &o = journey.there(out), &l = journey.there(lse);
    Tensor &to_q = journey.there(dq), &to_k = journey.there(dk), &to_v = journey.there(dv);
    measure([&] { real().attention_backward(there, g, o, l, to_q, to_k, to_v); });
    journey.back();
  }

  void gather_rows(const Tensor& table, const Tensor& indices, Tensor& out) const override {
    travel(&Kernels::gather_rows, table, indices, out);
  }
  void scatter_add_rows(const Tensor& rows, const Tensor& indices, Tensor& out) const override {
    travel(&Kernels::scatter_add_rows, rows, indices, out);
  }
  void place_rows(const Tensor& x, const Tensor& indices, const Tensor& rows, Tensor& out) const override {
    travel(&Kernels::place_rows, x, indices, rows, out);
  }

  void modulated_norm_forward(const Tensor& x, const Tensor& shift, const Tensor& scale, Tensor& y,
                              Tensor& inverse) const override {
    travel(&Kernels::modulated_norm_forward, x, shift, scale, y, inverse);
  }
  void modulated_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& scale, const Tensor& inverse,
                               Tensor& dx, Tensor& dshift, Tensor& dscale) const override {
    travel(&Kernels::modulated_norm_backward, grad, x, scale, inverse, dx, dshift, dscale);
  }
  void gated_residual_forward(const Tensor& x, const Tensor& y, const Tensor& gate, Tensor& out) const override {
    travel(&Kernels::gated_residual_forward, x, y, gate, out);
  }
  void gated_residual_backward(const Tensor& grad, const Tensor& y, const Tensor& gate, Tensor& dy,
                               Tensor& dgate) const override {
    travel(&Kernels::gated_residual_backward, grad, y, gate, dy, dgate);
  }
  void embed_rows_forward(const Tensor& rows, const Tensor& lead, const Tensor& positions, std::int64_t draws,
                          Tensor& out) const override {
    travel(&Kernels::embed_rows_forward, rows, lead, positions, draws, out);
  }
  void embed_rows_backward(const Tensor& grad, std::int64_t draws, Tensor& drows, Tensor& dlead,
                           Tensor& dpositions) const override {
    travel(&Kernels::embed_rows_backward, grad, draws, drows, dlead, dpositions);
  }
  void embed_context_forward(const Tensor& tokens, const Tensor& sensors, const Tensor& table, const ContextRows& of,
                             Tensor& out, Tensor& inverse) const override {
    Journey journey;
    const Tensor &t = journey.there(tokens), &s = journey.there(sensors), &added = journey.there(table);
    const ContextRows there = carried(journey, of);
    Tensor &out_there = journey.there(out), &inverse_there = journey.there(inverse);
    measure([&] { real().embed_context_forward(t, s, added, there, out_there, inverse_there); });
    journey.back();
  }
  void embed_context_backward(const Tensor& grad, const Tensor& out, const Tensor& inverse, const ContextRows& of,
                              Tensor& dtokens, Tensor& dsensors, Tensor& dtable) const override {
    Journey journey;
    const Tensor &g = journey.there(grad), &o = journey.there(out), &i = journey.there(inverse);
    const ContextRows there = carried(journey, of);
    Tensor &to_tokens = journey.there(dtokens), &to_sensors = journey.there(dsensors), &to = journey.there(dtable);
    measure([&] { real().embed_context_backward(g, o, i, there, to_tokens, to_sensors, to); });
    journey.back();
  }

  void add_noise(const Tensor& actions, const Tensor& noise, const Tensor& times, const Tensor& mixtures,
                 Tensor& out) const override {
    travel(&Kernels::add_noise, actions, noise, times, mixtures, out);
  }
  void embed_times(const Tensor& times, double scale, Tensor& out) const override {
    travel(&Kernels::embed_times, times, scale, out);
  }
  void chunk_loss_forward(const ChunkLoss& of, Tensor& losses) const override {
    Journey journey;
    const ChunkLoss there = carried(journey, of);
    Tensor& to = journey.there(losses);
    measure([&] { real().chunk_loss_forward(there, to); });
    journey.back();
  }
  void chunk_loss_backward(const ChunkLoss& of, const Tensor& grad, Tensor& dpredicted) const override {
    Journey journey;
    const ChunkLoss there = carried(journey, of);
    const Tensor& g = journey.there(grad);
    Tensor& to = journey.there(dpredicted);
    measure([&] { real().chunk_loss_backward(there, g, to); });
    journey.back();
  }
};

/// What dry runs take a GPU to be: flash attention's backward takes less on one with fewer multiprocessors than 132.
bool is_what_dry_runs_stand_for() {
  return opened.name.find("H200") != std::string::npos || opened.name.find("H100 80GB HBM3") != std::string::npos;
}

/// Before the first tensor of the process. Why there is no GPU, or "".
std::string open_gpu() {
  const auto library = std::filesystem::read_symlink("/proc/self/exe").parent_path() / train::kDeviceLibraryFile;
  if (!std::filesystem::exists(library)) return library.string() + " was not built: no nvcc was found";
  if (train::count_gpus() == 0) return "no GPU: nothing ran on one";
  opened = train::open_device("cuda", 0);
  return "";
}

TEST(Gpu, IsThere) {
  if (!why_not.empty()) GTEST_SKIP() << why_not << " (nor did any other case of this program)";
  EXPECT_TRUE(opened.place.is_cuda()) << opened.name;
}

}  // namespace

const train::Device& gpu() { return opened; }

const Kernels& kernels_under_test() {
  static const TravellingKernels kernels;
  return kernels;
}

bool on_a_gpu() { return true; }

std::int64_t expect_same_scratch(const char* what, const std::function<void()>& real_run,
                                 const std::function<void()>& dry) {
  real_run();
  const std::int64_t taken = scratch_taken, said = emulator::most_at_once(emulator::scratch_of(dry), kBlock);
  EXPECT_LE(taken, said) << what << ": a dry run must not say less than is taken";
  if (is_what_dry_runs_stand_for()) {
    EXPECT_EQ(taken, said) << what;
  }
  return taken;
}

}  // namespace plimsoll::model

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  try {
    plimsoll::model::why_not = plimsoll::model::open_gpu();
  } catch (const plimsoll::Error& error) {
    std::cerr << error.what() << '\n';
    return static_cast<int>(error.code());
  }
  if (!plimsoll::model::why_not.empty()) GTEST_FLAG_SET(filter, "Gpu.*");
  return RUN_ALL_TESTS();
}
