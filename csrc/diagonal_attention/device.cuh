// What the CUDA kernels of diagonal attention share. Scores are kept in units of log 2, so that exp is exp2.
#pragma once

#include "../cuda/hopper.h"

namespace micron::diagonal_attention {

using cuda::TensorMap;

constexpr int CHUNK = 64;  // columns of a row that lie together in shared memory: 128 bytes

// (B, H, N, width); elements of a row lie side by side.
template <class T>
struct Rows {
  const T* data = nullptr;
  int64_t stride_b = 0, stride_h = 0, stride_n = 0;
  int width = 0;

  __device__ const T* row(int batch, int head, int position) const {
    return data + batch * stride_b + head * stride_h + position * stride_n;
  }
};

// Eight elements, which one instruction moves.
template <class T>
struct Eight {
  uint4 bits;

  static __device__ Eight load(const T* from) { return {*reinterpret_cast<const uint4*>(from)}; }
  static __device__ Eight of(const float (&x)[8]) {
    Eight result;
#pragma unroll
    for (int i = 0; i < 8; ++i) reinterpret_cast<T*>(&result.bits)[i] = static_cast<T>(x[i]);
    return result;
  }
  __device__ float operator[](int i) const { return static_cast<float>(reinterpret_cast<const T*>(&bits)[i]); }
  __device__ void store(T* to) const { cuda::store_vector(to, bits); }
};

struct Shape {
  int batch, heads, length, computed;
  float scale, scale_log2;
  const int64_t* rows;
  const bool* key_mask;

  __device__ bool visible(int b, int position) const {
    return position >= 0 && position < length && (key_mask == nullptr || key_mask[int64_t{b} * length + position]);
  }
  // The position of a slot; -1 where there is none or where it is masked.
  __device__ int position(int b, int slot) const {
    if (slot >= computed) return -1;
    const int64_t n = rows == nullptr ? slot : rows[int64_t{b} * computed + slot];
    return n >= 0 && n < length && visible(b, static_cast<int>(n)) ? static_cast<int>(n) : -1;
  }
  // Scores are negated for a negative scale, and 0 times a masked one would be NaN.
  __device__ float positive_scale_log2() const { return fmaxf(fabsf(scale_log2), 1e-30f); }
};

__device__ inline float exp2_of(float x) {
#ifdef MICRON_EMULATED
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// The larger; NaN where one of them is, which fmaxf would drop.
__device__ inline float max_or_nan(float x, float y) {
#ifdef MICRON_EMULATED
  return x != x || y != y ? NAN : fmaxf(x, y);
#else
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(x), "f"(y));
  return larger;
#endif
}

// exp2_of for x <= 0 without the units that it keeps busy, in ten instructions: 2^n 2^f, n the whole number next to x.
// The largest error is 2.6e-6 of the value; results of 16 bits keep nothing of it, p, in fp32, its share.
__device__ inline float exp2_by_fma(float x) {
  constexpr float ROUND = 12582912;  // 1.5 · 2^23: what is added to it loses its fraction
  const float at_least = max_or_nan(x, -127);  // of which 2^n is 0
  const float shifted = at_least + (ROUND + 127), f = at_least - (shifted - (ROUND + 127));
  float power = fmaf(f, 0.009570102f, 0.05591786f);  // minimax over [-1/2, 1/2]
  power = fmaf(f, power, 0.24024744f);
  power = fmaf(f, power, 0.6931218f);
  power = fmaf(f, power, 0.9999993f);
  return power * __uint_as_float(__float_as_uint(shifted) << 23);  // n + 127, where floats keep their exponents
}

__device__ inline float warp_sum(float x) {
  for (int bits = 16; bits > 0; bits /= 2) x += __shfl_xor_sync(0xffffffffu, x, bits);
  return x;
}

// Rows of x at `positions` (in shared memory; zeros where -1) to shared memory, chunk by chunk of 64 columns.
template <class T>
__device__ void load_block(unsigned char* to, const Rows<T>& x, const int* positions, int count, int chunk_bytes,
                           int chunks, int batch, int head, int thread, int threads) {
  const int vectors = chunks * 8;
  for (int i = thread; i < count * vectors; i += threads) {
    const int row = i / vectors, vector = i % vectors;
    const bool there = positions[row] >= 0 && vector * 8 < x.width;
    const T* from = there ? x.row(batch, head, positions[row]) + vector * 8 : x.data;
    cuda::copy_async(to + vector / 8 * chunk_bytes + cuda::swizzled(row, vector % 8 * 16), from, there);
  }
  cuda::copy_async_wait();
}

}  // namespace micron::diagonal_attention
