// What this machine can do at most, on one thread: FMA rate by instruction set, read and copy bandwidth.
#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

#include <pybind11/pybind11.h>

namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The best of `repeats` runs: the peak is what nothing disturbed.
template <class F>
double best_seconds(int repeats, const F& f) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const double start = seconds();
    f();
    const double taken = seconds() - start;
    if (taken < best) best = taken;
  }
  return best;
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

// Bytes read a second from a buffer of this size.
double read_bandwidth(int64_t bytes) {
  typedef int64_t vec __attribute__((vector_size(32)));
  std::vector<char> buffer(static_cast<size_t>(bytes) + 256, 1);
  const int64_t blocks = bytes / 128;
  const double taken = best_seconds(9, [&] {
    vec sums[4] = {};
    for (int64_t i = 0; i < blocks; ++i) {
      for (int j = 0; j < 4; ++j) {
        vec x;
        memcpy(&x, buffer.data() + i * 128 + j * 32, 32);
        sums[j] += x;
      }
    }
    const vec total = sums[0] + sums[1] + sums[2] + sums[3];
    sink = static_cast<float>(total[0] + total[1] + total[2] + total[3]);
  });
  return static_cast<double>(bytes) / taken;
}

// Bytes read plus bytes written a second.
double copy_bandwidth(int64_t bytes) {
  std::vector<char> from(static_cast<size_t>(bytes), 1), to(static_cast<size_t>(bytes), 0);
  const double taken = best_seconds(9, [&] {
    memcpy(to.data(), from.data(), static_cast<size_t>(bytes));
    sink = to[static_cast<size_t>(bytes) / 2];
  });
  return 2.0 * static_cast<double>(bytes) / taken;
}

}  // namespace

PYBIND11_MODULE(ceilings, m) {
  m.def("fma_peak", &fma_peak);
  m.def("read_bandwidth", &read_bandwidth);
  m.def("copy_bandwidth", &copy_bandwidth);
}
