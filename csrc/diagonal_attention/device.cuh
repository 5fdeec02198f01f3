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

__device__ inline float warp_sum(float x) {
  for (int bits = 16; bits > 0; bits /= 2) x += __shfl_xor_sync(0xffffffffu, x, bits);
  return x;
}

// q_i k_i, by one warp.
template <class T>
__device__ float row_product(const T* a, const T* b, int width) {
  float sum = 0;
  for (int e = threadIdx.x % 32 * 8; e < width; e += 256) {
    const uint4 x = *reinterpret_cast<const uint4*>(a + e), y = *reinterpret_cast<const uint4*>(b + e);
    const T *xs = reinterpret_cast<const T*>(&x), *ys = reinterpret_cast<const T*>(&y);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += static_cast<float>(xs[i]) * static_cast<float>(ys[i]);
  }
  return warp_sum(sum);
}

// Rows of x at `positions` (in shared memory; zeros where -1) to shared memory, chunk by chunk of 64 columns.
template <class T>
__device__ void load_block(unsigned char* to, const Rows<T>& x, const int* positions, int count, int chunks, int batch,
                           int head, int thread, int threads) {
  const int vectors = chunks * 8;
  for (int i = thread; i < count * vectors; i += threads) {
    const int row = i / vectors, vector = i % vectors;
    const bool there = positions[row] >= 0 && vector * 8 < x.width;
    const uint4 value = there ? *reinterpret_cast<const uint4*>(x.row(batch, head, positions[row]) + vector * 8)
                              : uint4{0, 0, 0, 0};
    *reinterpret_cast<uint4*>(to + vector / 8 * count * 128 + cuda::swizzled(row, vector % 8 * 16)) = value;
  }
}

}  // namespace micron::diagonal_attention
