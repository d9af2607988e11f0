// Which kernels serve which device, and the CPU's threads, scratch and matrix products.

#include "model/kernels_cpu.h"

#include <omp.h>

#include <array>
#include <atomic>
#include <exception>

#include "core/error.h"
#include "model/kernels_meta.h"

// The BLAS that libtorch_cpu.so carries and exports. Called directly: for the small products of a small model, ATen's
// way there costs more than the product.
extern "C" {
void sgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k, const float* alpha,
            const float* a, const int* lda, const float* b, const int* ldb, const float* beta, float* c,
            const int* ldc);
void cblas_gemm_bf16bf16f32(int layout, int transa, int transb, int m, int n, int k, float alpha,
                            const std::uint16_t* a, int lda, const std::uint16_t* b, int ldb, float beta, float* c,
                            int ldc);
int MKL_Set_Num_Threads_Local(int threads);
}

namespace plimsoll::model {
namespace {

std::array<const Kernels*, c10::COMPILE_TIME_MAX_DEVICE_TYPES>& table() {
  static const cpu::CpuKernels cpu_kernels;
  static std::array<const Kernels*, c10::COMPILE_TIME_MAX_DEVICE_TYPES> kernels = [] {
    std::array<const Kernels*, c10::COMPILE_TIME_MAX_DEVICE_TYPES> built_in{};
    built_in[static_cast<std::size_t>(at::kCPU)] = &cpu_kernels;
    built_in[static_cast<std::size_t>(at::kMeta)] = &meta_kernels();
    return built_in;
  }();
  return kernels;
}

}  // namespace

const Kernels& kernels_for(const Tensor& tensor) {
  const auto type = tensor.device().type();
  const Kernels* kernels = table()[static_cast<std::size_t>(type)];
  if (kernels == nullptr)
    fail(ExitCode::kUsage, "no kernels for device {}: open its library first", c10::DeviceTypeName(type));
  return *kernels;
}

void register_kernels(at::DeviceType device, const Kernels* kernels) {
  table()[static_cast<std::size_t>(device)] = kernels;
}

namespace cpu {
namespace {

/// Inside for_tasks a BLAS call must not start threads of its own: its sums would then depend on how many.
class OneBlasThread {
 public:
  OneBlasThread() : previous_(MKL_Set_Num_Threads_Local(1)) {}
  ~OneBlasThread() { MKL_Set_Num_Threads_Local(previous_); }
  OneBlasThread(const OneBlasThread&) = delete;
  OneBlasThread& operator=(const OneBlasThread&) = delete;

 private:
  int previous_;
};

constexpr std::int64_t kOperationsPerWorker = 100'000;  // some 12 us: twice what waking a thread costs

}  // namespace

void for_tasks(std::int64_t tasks, int workers, c10::function_ref<void(std::int64_t, int)> body) {
  if (workers <= 1) {
    const OneBlasThread one;
    for (std::int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
  std::atomic<std::int64_t> next{0};
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  std::exception_ptr error;
#pragma omp parallel num_threads(workers)
  {
    const int worker = omp_get_thread_num();
    try {
      const OneBlasThread one;
      for (std::int64_t task = next++; task < tasks; task = next++) body(task, worker);
    } catch (...) {
      if (!failed.test_and_set()) error = std::current_exception();
      next = tasks;
    }
  }
  if (error) std::rethrow_exception(error);
}

int workers_for(std::int64_t tasks, std::int64_t operations) {
  const std::int64_t worth = std::min(tasks, operations / kOperationsPerWorker);
  if (worth <= 1 || omp_in_parallel()) return 1;
  return static_cast<int>(std::min<std::int64_t>(worth, at::get_num_threads()));
}

void for_rows(std::int64_t rows, std::int64_t operations_per_row,
              c10::function_ref<void(std::int64_t, std::int64_t)> body) {
  const int workers = workers_for(rows, rows * operations_per_row);
  if (workers == 1) return body(0, rows);
  const std::int64_t piece = (rows + workers - 1) / workers;
  for_tasks(workers, workers, [&](std::int64_t task, int) {
    const std::int64_t first = std::min(rows, task * piece);
    body(first, std::min(rows, first + piece));
  });
}

void gemm(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, Matrix<float> a, Matrix<float> b, float beta,
          float* c, std::int64_t stride_c) {
  if (m == 0 || n == 0) return;
  // Row-major c = a b is column-major c^T = b^T a^T.
  const int rows = static_cast<int>(n), cols = static_cast<int>(m), depth = static_cast<int>(k);
  const int lda = static_cast<int>(std::max<std::int64_t>(b.stride, 1)),
            ldb = static_cast<int>(std::max<std::int64_t>(a.stride, 1));
  const int ldc = static_cast<int>(stride_c);
  sgemm_(b.transposed ? "T" : "N", a.transposed ? "T" : "N", &rows, &cols, &depth, &alpha, b.data, &lda, a.data, &ldb,
         &beta, c, &ldc);
}

void gemm(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, Matrix<c10::BFloat16> a, Matrix<c10::BFloat16> b,
          float beta, float* c, std::int64_t stride_c) {
  if (m == 0 || n == 0) return;
  constexpr int kRowMajor = 101, kPlain = 111, kTransposed = 112;
  cblas_gemm_bf16bf16f32(
      kRowMajor, a.transposed ? kTransposed : kPlain, b.transposed ? kTransposed : kPlain, static_cast<int>(m),
      static_cast<int>(n), static_cast<int>(k), alpha, reinterpret_cast<const std::uint16_t*>(a.data),
      static_cast<int>(std::max<std::int64_t>(a.stride, 1)), reinterpret_cast<const std::uint16_t*>(b.data),
      static_cast<int>(std::max<std::int64_t>(b.stride, 1)), beta, c, static_cast<int>(stride_c));
}

}  // namespace cpu
}  // namespace plimsoll::model
