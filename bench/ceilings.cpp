// What this machine can do at most, on one thread: its FMA rate by instruction set, and reading memory.
#include <chrono>
#include <cstdint>
#include <cstring>
#include <string>

#include <pybind11/pybind11.h>

namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

constexpr int CHAINS = 12;  // independent sums: more than latency × units of any core so far
constexpr int64_t ROUNDS = 4'000'000;
volatile float sink;
volatile float start_of[CHAINS] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};

// No lambda inside: it would be compiled without the target.
#define FMA_LOOP(name, flags, lanes)                                                             \
  __attribute__((target(flags), noinline)) double name() {                                       \
    typedef float vec __attribute__((vector_size(4 * lanes)));                                   \
    double best = 1e30;                                                                          \
    for (int repeat = 0; repeat < 5; ++repeat) {                                                 \
      vec sums[CHAINS], a, b;                                                                    \
      for (int i = 0; i < CHAINS; ++i) sums[i] = vec{} + start_of[i]; /* alike, they were merged */ \
      for (int i = 0; i < lanes; ++i) a[i] = 0.999f, b[i] = 1e-9f;                               \
      const double start = seconds();                                                            \
      for (int64_t round = 0; round < ROUNDS; ++round) {                                         \
        _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; ++i) sums[i] = sums[i] * a + b;     \
      }                                                                                          \
      vec total{};                                                                               \
      _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; ++i) total += sums[i];                \
      sink = total[0];                                                                           \
      const double taken = seconds() - start;                                                    \
      if (taken < best) best = taken;                                                            \
    }                                                                                            \
    return 2.0 * lanes * CHAINS * ROUNDS / best;                                                 \
  }

FMA_LOOP(fma_portable, "default", 4)
FMA_LOOP(fma_avx2, "avx2,fma", 8)
FMA_LOOP(fma_avx512, "avx512f", 16)

double fma_peak(const std::string& instruction_set) {
  if (instruction_set == "portable") return fma_portable();
  if (instruction_set == "avx2") return fma_avx2();
  return fma_avx512();
}

// Reads memory, and does nothing with it.
void read_memory(uintptr_t address, int64_t bytes) {
  typedef int64_t vec __attribute__((vector_size(32)));
  const char* from = reinterpret_cast<const char*>(address);
  vec sums[4] = {};
  for (int64_t i = 0; i + 128 <= bytes; i += 128) {
    for (int j = 0; j < 4; ++j) {
      vec x;
      memcpy(&x, from + i + j * 32, 32);
      sums[j] += x;
    }
  }
  const vec total = sums[0] + sums[1] + sums[2] + sums[3];
  sink = static_cast<float>(total[0] + total[1] + total[2] + total[3]);
}

}  // namespace

PYBIND11_MODULE(ceilings, m) {
  m.def("fma_peak", &fma_peak);
  m.def("read", &read_memory);
}
