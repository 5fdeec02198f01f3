// fp16 keeps five bits of an exponent: at p of 1/N and small gradients dS would be subnormal. So f and c, and dS with
// them, are multiplied by a power of two that brings the largest of them to [1, 2), and dQ and dK divided by it.
#pragma once

#include "device.cuh"

namespace micron::diagonal_attention {

constexpr int RANGE_THREADS = 256, RANGE_BLOCKS = 256;

// 2^-floor(log2 x) of the float whose bits these are; 1 of 0, of infinity and of NaN.
__device__ inline float power_over(unsigned largest) {
  const unsigned exponent = largest >> 23, power = exponent == 0 || exponent > 253 ? 127 : 254 - exponent;
  return __uint_as_float(power << 23);
}

// The bits of the largest |x|, which rank as the numbers do.
__global__ void __launch_bounds__(RANGE_THREADS) largest_kernel(const float* x, int64_t count, unsigned* largest) {
  unsigned most = 0;
  for (int64_t i = blockIdx.x * RANGE_THREADS + threadIdx.x; i < count; i += RANGE_THREADS * gridDim.x) {
    most = max(most, __float_as_uint(fabsf(x[i])));
  }
  for (int bits = 16; bits > 0; bits /= 2) most = max(most, __shfl_xor_sync(0xffffffffu, most, bits));
  if (threadIdx.x % 32 == 0) atomicMax(largest, most);
}

__global__ void __launch_bounds__(RANGE_THREADS) to_range_kernel(float* x, int64_t count, const unsigned* largest) {
  const float power = power_over(*largest);
  for (int64_t i = blockIdx.x * RANGE_THREADS + threadIdx.x; i < count; i += RANGE_THREADS * gridDim.x) x[i] *= power;
}

template <class T>
__global__ void __launch_bounds__(RANGE_THREADS) from_range_kernel(T* x, int64_t eights, const unsigned* largest) {
#ifdef MICRON_HOPPER  // the other kernels are for Hopper alone
  const float inverse = 1 / power_over(*largest);
  for (int64_t i = blockIdx.x * RANGE_THREADS + threadIdx.x; i < eights; i += RANGE_THREADS * gridDim.x) {
    const Eight<T> of_range = Eight<T>::load(x + i * 8);
    float result[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) result[j] = of_range[j] * inverse;
    Eight<T>::of(result).store(x + i * 8);
  }
#endif
}

}  // namespace micron::diagonal_attention
