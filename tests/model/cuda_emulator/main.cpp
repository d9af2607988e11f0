#include "emu.h"
#include <cstdio>
#include <random>
#include "core/error.h"
#include "model/kernels_cpu.h"
#define columns cuda_columns_unused
#undef columns
#include "model/cuda/kernels_cuda.h"
namespace emu {
ucontext_t main_ctx; Fiber* me; Block* block; dim3 block_id, block_dim, grid_dim; const std::function<void()>* body;
static void entry() { (*body)(); me->done = true; leave(block->all); leave(block->warps[warp()]); swapcontext(&me->ctx, &main_ctx); }
static std::vector<std::unique_ptr<Fiber>> pool;
void launch(const std::function<void()>& f, dim3 grid, dim3 blk) {
  grid_dim = grid; block_dim = blk; body = &f; int n = blk.x * blk.y * blk.z;
  if (n > 1024 || n == 0 || !grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535) { printf("BAD LAUNCH %d %u %u %u\n", n, grid.x, grid.y, grid.z); abort(); }
  while ((int)pool.size() < n) { pool.push_back(std::make_unique<Fiber>()); pool.back()->stack.resize(128 << 10); }
  for (unsigned z = 0; z < grid.z; ++z) for (unsigned y = 0; y < grid.y; ++y) for (unsigned x = 0; x < grid.x; ++x) {
    Block b; block = &b; block_id = dim3(x, y, z); b.all.live = n; int w = (n + 31) / 32; b.warps.resize(w); b.slot.resize(w); b.mma.resize(w);
    for (int i = 0; i < n; ++i) { b.warps[i / 32].live++; Fiber& t = *pool[i]; t.done = false; t.linear = i; t.tid = dim3(i % blk.x, i / blk.x % blk.y, i / blk.x / blk.y); getcontext(&t.ctx); t.ctx.uc_stack.ss_sp = t.stack.data(); t.ctx.uc_stack.ss_size = t.stack.size(); t.ctx.uc_link = nullptr; makecontext(&t.ctx, entry, 0); }
    int left = n; while (left) { left = 0; static std::mt19937 gen(7); std::vector<int> order(n); for (int i = 0; i < n; ++i) order[i] = i; std::shuffle(order.begin(), order.end(), gen); for (int i : order) { if (pool[i]->done) continue; me = pool[i].get(); swapcontext(&main_ctx, &me->ctx); left += !me->done; } }
  }
}
}  // namespace emu
namespace plimsoll::model::cuda {
void refuse_type(at::ScalarType t) { fail(ExitCode::kUsage, "type {}", c10::toString(t)); }
void hold_workspaces() {}
void gemm(float alpha, Matrix a, Matrix b, float beta, const Tensor& c) {
  if (a.values.scalar_type() != b.values.scalar_type()) { printf("gemm types\n"); abort(); }
  Tensor x = a.values.detach().to(at::kDouble), y = b.values.detach().to(at::kDouble); if (a.transposed) x = x.t(); if (b.transposed) y = y.t();
  Tensor r = at::matmul(x, y) * alpha; if (beta != 0) r = r + c.to(at::kDouble) * beta; const_cast<Tensor&>(c).copy_(r);
}
void CudaKernels::product(const Product&, Tensor&) const { abort(); }
void CudaKernels::attention_forward(const AttentionTensors& t, Tensor& o, Tensor& l) const { exact_attention_forward(t, o, l); }
void CudaKernels::attention_backward(const AttentionTensors& t, const Tensor& g, const Tensor& o, const Tensor& l, Tensor& a, Tensor& b, Tensor& c) const { exact_attention_backward(t, g, o, l, a, b, c); }
}
using namespace plimsoll::model; using at::Tensor;
static cuda::CudaKernels gpu; static cpu::CpuKernels ref; static int bad = 0;
static void near(const char* what, const Tensor& a, const Tensor& b, double tol) {
  if (a.numel() == 0) return; double e = ((a.to(at::kDouble) - b.to(at::kDouble)).abs().max() / (b.to(at::kDouble).abs().max() + 1e-30)).item<double>();
  bool ok = e <= tol; if (!ok) ++bad; printf("%-28s %.2e %s\n", what, e, ok ? "" : "BAD"); }
static Tensor rnd(at::IntArrayRef s, at::ScalarType t) { return at::randn(s).to(t); }
static Tensor nan_like(at::IntArrayRef s, at::ScalarType t) { return at::full(s, NAN, at::TensorOptions().dtype(t)); }
static void lora(int n, int in, std::vector<int> outs, int r, float rate, at::ScalarType x_t, at::ScalarType t, at::ScalarType bias_t) {
  printf("-- lora n %d in %d r %d rate %.2f layers %zu %s/%s\n", n, in, r, rate, outs.size(), c10::toString(x_t), c10::toString(t));
  double tol = t == at::kFloat ? 2e-6 : 1.2e-2; Tensor none; Tensor x = rnd({n, in}, x_t);
  Tensor keys = at::randint(0, 1LL << 62, {n, 2}, at::kLong); Dropout d{rate, keys, 0};
  std::vector<Tensor> W, B, A, Bi, U, G; std::vector<LoraTensors> L; for (int o : outs) { W.push_back(rnd({o, in}, t) * 0.1); Bi.push_back(rnd({o}, bias_t)); A.push_back(at::randn({r, in}) * 0.2); B.push_back(at::randn({o, r}) * 0.3); G.push_back(rnd({n, o}, t)); }
  U.resize(outs.size());
  for (size_t i = 0; i < outs.size(); ++i) {
    LoraTensors l{W[i], Bi[i], A[i], B[i], 2.0F, (unsigned)(256 + i), true}; Tensor u0 = nan_like({n, r}, t), u1 = u0.clone(), y0 = nan_like({n, outs[i]}, t), y1 = y0.clone();
    ref.lora_forward(x, l, d, t, u0, y0); gpu.lora_forward(x, l, d, t, u1, y1); near("u", u1, u0, tol); near("y", y1, y0, tol); U[i] = u0; }
  bool adapt1 = outs.size() > 1;
  Tensor no;
  for (size_t i = 0; i < outs.size(); ++i) { bool plain = adapt1 && i == 1; L.push_back({W[i], none, plain ? no : A[i], plain ? no : B[i], 2.0F, (unsigned)(256 + i)}); }
  std::vector<LoraGradients> g0, g1; for (size_t i = 0; i < outs.size(); ++i) { bool plain = adapt1 && i == 1; for (auto* g : {&g0, &g1}) g->push_back({G[i], U[i], plain ? no : nan_like({r, in}, at::kFloat), plain ? no : nan_like({outs[i], r}, at::kFloat)}); }
  Tensor dx0 = nan_like({n, in}, x_t), dx1 = dx0.clone(); ref.lora_backward(x, L, d, t, g0, dx0); gpu.lora_backward(x, L, d, t, g1, dx1);
  near("dx", dx1, dx0, tol); for (size_t i = 0; i < outs.size(); ++i) if (g0[i].da.defined()) { near("da", g1[i].da, g0[i].da, t == at::kFloat ? 2e-6 : 1e-3); near("db", g1[i].db, g0[i].db, t == at::kFloat ? 2e-6 : 1e-3); }
}
static void rows_test(int n, int w, at::ScalarType t) {
  printf("-- rows n %d w %d %s\n", n, w, c10::toString(t)); double tol = t == at::kFloat ? 2e-6 : 8e-3; double strict = t == at::kFloat ? 2e-6 : 5e-3; Tensor none;
  Tensor x = rnd({n, w}, t), wt = rnd({w}, t), g = rnd({n, w}, t), res = rnd({n, w}, t), y = rnd({n, w}, t);
  for (int weighted = 0; weighted < 2; ++weighted) { Tensor wgt = weighted ? wt : none; Tensor o0 = nan_like({n, w}, t), o1 = o0.clone(), r0 = nan_like({n}, at::kFloat), r1 = r0.clone();
    ref.rms_norm_forward(x, wgt, 1e-6, o0, r0); gpu.rms_norm_forward(x, wgt, 1e-6, o1, r1); near("norm", o1, o0, strict); near("rstd", r1, r0, 1e-6);
    Tensor d0 = g.clone(), d1 = g.clone(), w0 = weighted ? nan_like({w}, t) : none, w1 = weighted ? w0.clone() : none; Tensor rr = weighted ? res : none;
    ref.rms_norm_backward(d0, x, wgt, r0, rr, d0, w0); gpu.rms_norm_backward(d1, x, wgt, r0, rr, d1, w1); near("norm dx in place", d1, d0, strict); if (weighted) near("dweight", w1, w0, tol); }
  for (auto ot : {at::kFloat, at::kBFloat16}) { Tensor s0 = nan_like({w}, ot), s1 = s0.clone(); ref.sum_rows(x, s0); gpu.sum_rows(x, s1); near("sum_rows", s1, s0, ot == at::kFloat ? 2e-6 : 5e-3); Tensor c0 = nan_like({n, w}, ot), c1 = c0.clone(); ref.cast(x, c0); gpu.cast(x, c1); near("cast", c1, c0, 0); }
  Tensor a0 = nan_like({n, w}, t), a1 = a0.clone(), b0 = a0.clone(), b1 = a0.clone(); ref.add(x, y, a0); gpu.add(x, y, a1); near("add", a1, a0, 0);
  ref.swiglu_forward(x, y, a0); gpu.swiglu_forward(x, y, a1); near("swiglu", a1, a0, strict); ref.swiglu_backward(g, x, y, a0, b0); gpu.swiglu_backward(g, x, y, a1, b1); near("dgate", a1, a0, strict); near("dup", b1, b0, strict);
  for (auto k : {Activation::kGeluErf, Activation::kGeluTanh, Activation::kSilu}) { ref.activation_forward(k, x, a0); gpu.activation_forward(k, x, a1); near("act", a1, a0, strict); ref.activation_backward(k, g, x, a0); gpu.activation_backward(k, g, x, a1); near("act'", a1, a0, strict); }
  Tensor idx = at::randint(0, 7, {n}, at::kLong); Tensor table = rnd({7, w}, t), go0 = nan_like({n, w}, t), go1 = go0.clone(); ref.gather_rows(table, idx, go0); gpu.gather_rows(table, idx, go1); near("gather", go1, go0, 0);
  Tensor so0 = nan_like({7, w}, t), so1 = so0.clone(); ref.scatter_add_rows(x, idx, so0); gpu.scatter_add_rows(x, idx, so1); near("scatter", so1, so0, 0);
  Tensor big = rnd({9, w}, t), p0 = nan_like({9, w}, t), p1 = p0.clone(); ref.place_rows(big, idx, x, p0); gpu.place_rows(big, idx, x, p1); near("place", p1, p0, 0); ref.place_rows(big, idx, none, p0); gpu.place_rows(big, idx, none, p1); near("place zeros", p1, p0, 0);
}
static void rotary_test(int n, int h, int d, at::ScalarType t, at::ScalarType ct) { Tensor f = rnd({n, 3, h, d}, t); Tensor x = f.select(1, 1); Tensor c = rnd({n, d}, ct), s = rnd({n, d}, ct); for (bool b : {false, true}) { Tensor o0 = nan_like({n, h, d}, t), o1 = o0.clone(); ref.rotary(x, c, s, b, o0); gpu.rotary(x, c, s, b, o1); near("rotary", o1, o0, t == at::kFloat ? 1e-6 : 5e-3); } }
static void attention_test(std::vector<int64_t> q, std::vector<int64_t> k, int h, int kv, int d, bool causal, at::ScalarType t) {
  printf("-- attention h %d kv %d d %d causal %d %s\n", h, kv, d, causal, c10::toString(t)); double tol = t == at::kFloat ? 5e-6 : 2e-2; int64_t n = 0, m = 0; for (auto v : q) n += v; for (auto v : k) m += v;
  Tensor Q = rnd({n, 2, h, d}, t).select(1, 1), K = rnd({m, kv, d}, t), V = rnd({m, 3, kv, d}, t).select(1, 2), G = rnd({n, h, d}, t); Segments s{q, k}; AttentionTensors a{Q, K, V, s, causal};
  Tensor o0 = nan_like({n, h, d}, t), o1 = o0.clone(), l0 = nan_like({n, h}, at::kFloat), l1 = l0.clone(); ref.attention_forward(a, o0, l0); gpu.attention_forward(a, o1, l1); near("out", o1, o0, tol); near("lse", l1, l0, 2e-6);
  Tensor q0 = nan_like({n, h, d}, t), q1 = q0.clone(), k0 = nan_like({m, kv, d}, t), k1 = k0.clone(), v0 = k0.clone(), v1 = k0.clone(); ref.attention_backward(a, G, o0, l0, q0, k0, v0); gpu.attention_backward(a, G, o0, l0, q1, k1, v1); near("dq", q1, q0, tol); near("dk", k1, k0, tol); near("dv", v1, v0, tol); }
int main() {
  torch::NoGradGuard g; at::set_num_threads(1); at::manual_seed(1);
  for (auto t : {at::kFloat, at::kBFloat16}) { rows_test(5, 64, t); rows_test(70, 37, t); rows_test(9, 520, t); rows_test(3, 2048, t); rows_test(200, 264, t); rows_test(2, 5000, t); }
  for (auto t : {at::kFloat, at::kBFloat16}) for (auto c : {at::kFloat, at::kBFloat16}) { rotary_test(7, 3, 16, t, c); rotary_test(5, 16, 128, t, c); rotary_test(3, 2, 20, t, c); rotary_test(3, 1, 80, t, c); }
  for (auto t : {at::kFloat, at::kBFloat16}) { attention_test({40, 0, 3, 70}, {40, 0, 3, 70}, 4, 2, 12, true, t); attention_test({33, 5, 4, 0}, {70, 1, 0, 6}, 6, 2, 40, false, t); attention_test({5}, {9}, 1, 1, 256, false, t); }
  auto F = at::kFloat, H = at::kBFloat16;
  for (float rate : {0.0F, 0.3F}) { lora(37, 64, {48}, 8, rate, F, F, F); lora(37, 64, {48}, 8, rate, H, H, H); lora(19, 300, {40, 33, 17}, 5, rate, H, H, F); lora(19, 300, {40, 33, 17}, 5, rate, F, F, F); lora(70, 1056, {264, 24}, 16, rate, H, H, H); lora(33, 328, {72}, 40, rate, F, H, F); lora(150, 96, {80, 64, 32, 16, 8, 24}, 72, rate, H, H, H); lora(6, 40, {80}, 70, rate, H, F, F); lora(0, 40, {80}, 4, rate, H, H, F); }
  printf(bad ? "FAILED %d\n" : "all near (%d)\n", bad); return bad != 0; }
