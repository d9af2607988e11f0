#include "tests/model/cuda_emulator/emulator.h"

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

namespace emulator {
namespace {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStack = std::size_t{128} << 10;

/// Threads that wait for each other. One that has ended is waited for no more, as on the device.
struct Barrier {
  int running = 0, waiting = 0;
  long round = 0;
};

struct Fiber {
  ucontext_t context{};
  std::vector<char> stack = std::vector<char>(kStack);
  unsigned number = 0;  ///< in its block
  bool done = false;
};

using Operands = std::array<std::uint32_t, 6>;  ///< of one thread: four words of a, two of b

struct Warp {
  Barrier barrier;
  std::array<std::uint32_t, kWarp> words{};
  std::array<Operands, kWarp> operands{};
};

struct Block {
  Barrier barrier;
  std::vector<Warp> warps;
  bool any = false;
};

struct Device {
  ucontext_t scheduler{};
  std::vector<std::unique_ptr<Fiber>> fibers;  ///< kept: a stack is made once
  Fiber* running = nullptr;
  Block* block = nullptr;
  Place place;
  const std::function<void()>* kernel = nullptr;
  std::mt19937 random{7};
};

Device& device() {
  static Device one;
  return one;
}

Warp& warp() { return device().block->warps[device().running->number / kWarp]; }

void let_others_run() { swapcontext(&device().running->context, &device().scheduler); }

void open_if_all_wait(Barrier& barrier) {
  if (barrier.running == 0 || barrier.waiting < barrier.running) return;
  barrier.waiting = 0;
  ++barrier.round;
}

void wait(Barrier& barrier) {
  const long round = barrier.round;
  ++barrier.waiting;
  open_if_all_wait(barrier);
  while (barrier.round == round) let_others_run();
}

void leave(Barrier& barrier) {
  --barrier.running;
  open_if_all_wait(barrier);
}

void run_thread() {
  Device& d = device();
  (*d.kernel)();
  d.running->done = true;
  leave(d.block->barrier);
  leave(warp().barrier);
  let_others_run();
}

void start(Fiber& fiber, unsigned number) {
  fiber.number = number;
  fiber.done = false;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.data();
  fiber.context.uc_stack.ss_size = fiber.stack.size();
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_thread, 0);
}

void run_block(unsigned threads) {
  Device& d = device();
  Block block;
  d.block = &block;
  block.barrier.running = static_cast<int>(threads);
  block.warps.resize((threads + kWarp - 1) / kWarp);
  std::vector<Fiber*> left;
  for (unsigned i = 0; i < threads; ++i) {
    ++block.warps[i / kWarp].barrier.running;
    start(*d.fibers[i], i);
    left.push_back(d.fibers[i].get());
  }
  while (!left.empty()) {
    std::shuffle(left.begin(), left.end(), d.random);
    for (Fiber* fiber : left) {
      d.running = fiber;
      const dim3 size = d.place.block_size;
      d.place.thread = dim3(fiber->number % size.x, fiber->number / size.x % size.y, fiber->number / size.x / size.y);
      swapcontext(&d.scheduler, &fiber->context);
    }
    std::erase_if(left, [](const Fiber* fiber) { return fiber->done; });
  }
}

void check_sizes(dim3 grid, dim3 block) {
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535)
    throw std::invalid_argument("a device refuses such a launch");
}

float half_of(std::uint32_t word, bool high) { return std::bit_cast<float>(high ? word & 0xFFFF0000U : word << 16); }

/// Element (row, k) of a and (k, column) of b, wherever in the warp it is held.
float left_element(const Warp& w, unsigned row, unsigned k) {
  const unsigned holder = row % 8 * 4 + k % 8 / 2, word = (row >= 8 ? 1U : 0U) + (k >= 8 ? 2U : 0U);
  return half_of(w.operands[holder][word], k % 2 == 1);
}
float right_element(const Warp& w, unsigned k, unsigned column) {
  return half_of(w.operands[column * 4 + k % 8 / 2][4 + (k >= 8 ? 1 : 0)], k % 2 == 1);
}

}  // namespace

const Place& place() { return device().place; }

void launch(const std::function<void()>& kernel, dim3 grid, dim3 block) {
  check_sizes(grid, block);
  Device& d = device();
  const unsigned threads = block.x * block.y * block.z;
  while (d.fibers.size() < threads) d.fibers.push_back(std::make_unique<Fiber>());
  d.kernel = &kernel;
  d.place.grid_size = grid;
  d.place.block_size = block;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        d.place.block = dim3(x, y, z);
        run_block(threads);
      }
    }
  }
}

void wait_for_block() { wait(device().block->barrier); }
void wait_for_warp() { wait(warp().barrier); }
unsigned lane() { return device().running->number % kWarp; }

std::uint32_t exchange(std::uint32_t bits, unsigned from) {
  Warp& w = warp();
  w.words[lane()] = bits;
  wait(w.barrier);
  const std::uint32_t got = w.words[from % kWarp];
  wait(w.barrier);
  return got;
}

bool any_in_block(bool value) {
  Block& block = *device().block;
  wait(block.barrier);
  if (value) block.any = true;
  wait(block.barrier);
  const bool any = block.any;
  wait(block.barrier);
  block.any = false;
  wait(block.barrier);
  return any;
}

unsigned ballot(bool value) {
  Warp& w = warp();
  w.words[lane()] = value ? 1 : 0;
  wait(w.barrier);
  unsigned bits = 0;
  for (unsigned i = 0; i < kWarp; ++i) bits |= w.words[i] << i;
  wait(w.barrier);
  return bits;
}

void multiply_add(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  Warp& w = warp();
  w.operands[lane()] = {a[0], a[1], a[2], a[3], b0, b1};
  wait(w.barrier);
  float products[4] = {};
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane() / 4 + (i >= 2 ? 8 : 0), column = 2 * (lane() % 4) + i % 2;
    for (unsigned k = 0; k < 16; ++k) products[i] += left_element(w, row, k) * right_element(w, k, column);
  }
  wait(w.barrier);
  for (unsigned i = 0; i < 4; ++i) sums[i] += products[i];
}

}  // namespace emulator
