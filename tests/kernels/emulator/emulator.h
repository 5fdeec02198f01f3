// CUDA kernels on a CPU, thread by thread: each thread of a block is a fiber that runs until it has to wait. This
// shows wrong indices, missing barriers (every other block runs its threads in reverse order) and deadlocks; it
// does not show what the hardware's memory model allows beyond that, nor anything about speed.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#undef __shared__
#define __shared__ static
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#define threadIdx (emulator::current().index)
#define blockIdx (emulator::grid().block_index)
#define blockDim (emulator::grid().block)
#define gridDim (emulator::grid().size)
#define MICRON_DYNAMIC_SHARED(name) unsigned char* const name = emulator::grid().shared

namespace emulator {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "CUDA emulator: %s\n", what);
  std::abort();
}

// MICRON_EMULATOR_WITHOUT plants a fault: proxy_fence and registers_down leave out that instruction, opt_in the call
// that asks for more shared memory, alignment is what the data of a tensor map then lacks.
inline bool is_planted(const char* fault) {
  const char* without = std::getenv("MICRON_EMULATOR_WITHOUT");
  return without != nullptr && std::strcmp(without, fault) == 0;
}

// Released when as many threads have arrived as it waits for.
struct Barrier {
  int arrived = 0;
  uint64_t generation = 0;
  void arrive(int expected) {
    if (++arrived >= expected) arrived = 0, ++generation;
  }
};

struct Warp {
  std::map<unsigned, Barrier> barriers;  // by the lanes that take part
  uint64_t values[32];
};

struct Thread {
  dim3 index;
  int linear = 0;
  int registers = 0;
  bool finished = false;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
};

struct Grid {
  dim3 size, block, block_index;
  uint64_t number = 0;  // of blocks so far
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  int alive = 0;
  bool progress = false;
  int free_registers = 0;  // of those that the block was launched with
  Barrier whole_block;
  std::map<int, Barrier> named;
  std::vector<Warp> warps;
  std::vector<std::unique_ptr<Thread>> threads;
  Thread* running = nullptr;
  ucontext_t scheduler;
  const std::function<void()>* kernel = nullptr;
};

inline Grid& grid() {
  static Grid instance;
  return instance;
}

inline Thread& current() { return *grid().running; }
inline int lane() { return current().linear % 32; }
inline Warp& warp() { return grid().warps[current().linear / 32]; }

inline void let_others_run() {
  Thread& me = current();
  swapcontext(&me.context, &grid().scheduler);
  grid().progress = true;
}

template <class Condition>
void wait_until(Condition done) {
  Thread& me = current();
  while (!done()) swapcontext(&me.context, &grid().scheduler);
  grid().progress = true;
}

inline void wait_at(Barrier& barrier, int expected) {
  const uint64_t generation = barrier.generation;
  barrier.arrive(expected);
  wait_until([&] { return barrier.generation != generation; });
}

inline void thread_main() {
  Grid& g = grid();
  (*g.kernel)();
  current().finished = true;
  g.progress = true;
  --g.alive;  // a thread that has left is not waited for
  if (g.whole_block.arrived > 0 && g.whole_block.arrived >= g.alive) {
    g.whole_block.arrived = 0;
    ++g.whole_block.generation;
  }
  swapcontext(&current().context, &g.scheduler);
}

inline void run_block(bool reversed) {
  constexpr size_t stack_bytes = 256 * 1024;
  Grid& g = grid();
  const int count = static_cast<int>(g.block.x * g.block.y * g.block.z);
  g.alive = count;
  g.free_registers = 0;
  ++g.number;
  g.whole_block = {};
  g.named.clear();
  g.warps.assign((count + 31) / 32, {});
  while (static_cast<int>(g.threads.size()) < count) {
    g.threads.push_back(std::make_unique<Thread>());
    g.threads.back()->stack = std::make_unique<char[]>(stack_bytes);
  }
  for (int i = 0; i < count; ++i) {
    Thread& t = *g.threads[i];
    t.linear = i;
    t.registers = 0;  // as launched, until they change hands
    t.index = dim3(i % g.block.x, i / g.block.x % g.block.y, i / (g.block.x * g.block.y));
    t.finished = false;
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack.get();
    t.context.uc_stack.ss_size = stack_bytes;
    t.context.uc_link = nullptr;
    makecontext(&t.context, &thread_main, 0);
  }
  while (g.alive > 0) {
    g.progress = false;
    for (int i = 0; i < count; ++i) {
      Thread& t = *g.threads[reversed ? count - 1 - i : i];
      if (t.finished) continue;
      g.running = &t;
      swapcontext(&g.scheduler, &t.context);
    }
    if (!g.progress) fail("deadlock: every thread of a block waits for another");
  }
}

// What cudaFuncSetAttribute does for cudaFuncAttributeMaxDynamicSharedMemorySize.
inline std::map<const void*, size_t>& asked_for() {
  static std::map<const void*, size_t> bytes;
  return bytes;
}
inline void ask_for_shared_memory(const void* kernel, size_t bytes) {
  if (!is_planted("opt_in")) asked_for()[kernel] = bytes;
}

// `most_static` is what a kernel may have of shared memory beside `shared_bytes`; test_cuda_compiles.py holds them to it.
inline void launch(dim3 size, dim3 block, size_t shared_bytes, size_t most_static, const void* function,
                   const std::function<void()>& kernel) {
  if (shared_bytes + most_static > 48 * 1024 && asked_for()[function] < shared_bytes) {
    fail("more than 48 KB of shared memory, and it was not asked for");
  }
  if (block.x * block.y * block.z > 1024) fail("more than 1024 threads a block");
  if (size.x == 0 || size.y == 0 || size.z == 0 || size.y > 65535 || size.z > 65535) fail("invalid grid");
  if (shared_bytes > 227 * 1024) fail("more than 227 KB of shared memory");
  Grid& g = grid();
  std::vector<unsigned char> memory(shared_bytes + 1024);
  g.shared = memory.data() + (1024 - reinterpret_cast<uintptr_t>(memory.data()) % 1024) % 1024;
  g.size = size, g.block = block, g.kernel = &kernel, g.shared_bytes = shared_bytes;
  int number = 0;
  for (unsigned z = 0; z < size.z; ++z) {
    for (unsigned y = 0; y < size.y; ++y) {
      for (unsigned x = 0; x < size.x; ++x) {
        std::memset(g.shared, 0xff, shared_bytes);  // NaN: what a block has not written tells nothing
        g.block_index = dim3(x, y, z);
        run_block(number++ % 2 == 1);
      }
    }
  }
}

// Every lane of `mask` gives a value, and `read` gets all of them.
template <class T, class Read>
auto exchange(unsigned mask, T value, Read read) {
  static_assert(sizeof(T) <= 8);
  Warp& w = warp();
  std::memcpy(&w.values[lane()], &value, sizeof(T));
  const int lanes = __builtin_popcount(mask);
  wait_at(w.barriers[mask], lanes);
  const auto result = read([&](int from) {
    T got;
    std::memcpy(&got, &w.values[from & 31], sizeof(T));
    return got;
  });
  wait_at(w.barriers[mask], lanes);
  return result;
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait_at(emulator::grid().whole_block, emulator::grid().alive); }

inline int __syncthreads_count(int predicate) {
  static int count;
  __syncthreads();
  count = 0;
  __syncthreads();
  count += predicate != 0;
  __syncthreads();
  return count;
}
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) > 0; }

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulator::wait_at(emulator::warp().barriers[mask], __builtin_popcount(mask));
}

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  const int first = emulator::lane() / width * width;
  return emulator::exchange(mask, value, [&](auto of) { return of(first + from % width); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int = 32) {
  return emulator::exchange(mask, value, [&](auto of) { return of(emulator::lane() ^ bits); });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int = 32) {
  const int from = emulator::lane() - static_cast<int>(delta);
  return emulator::exchange(mask, value, [&](auto of) { return of(from < 0 ? emulator::lane() : from); });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int = 32) {
  const int from = emulator::lane() + static_cast<int>(delta);
  return emulator::exchange(mask, value, [&](auto of) { return of(from > 31 ? emulator::lane() : from); });
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return emulator::exchange(mask, predicate != 0, [&](auto of) {
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i) {
      if (mask >> i & 1) bits |= static_cast<unsigned>(of(i)) << i;
    }
    return bits;
  });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

template <class T>
T __ldg(const T* p) { return *p; }
template <class T>
T __ldcs(const T* p) { return *p; }
template <class T>
void __stcs(T* p, T value) { *p = value; }

template <class T, class U>
T atomicAdd(T* p, U value) {
  const T before = *p;
  *p = before + static_cast<T>(value);
  return before;
}

template <class T>
T atomicMax(T* p, T value) {
  return std::exchange(*p, std::max(*p, value));
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline float __int_as_float(int x) { return __uint_as_float(static_cast<unsigned>(x)); }
using std::max;
using std::min;
