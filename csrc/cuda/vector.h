// Vectors of up to 16 bytes and dtypes as float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.h"

namespace micron::cuda {

template <int BYTES>
struct WordOf;
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned int;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

// N elements that one instruction loads or stores, at an address that is a multiple of their size. They stay packed
// until they are used, or the loads that are under way would take four times the registers.
template <class T, int N>
struct Vector {
  static constexpr int SIZE = sizeof(T), BYTES = N * SIZE;
  using Word = typename WordOf<BYTES>::type;
  unsigned packed[(BYTES + 3) / 4];

  __device__ __forceinline__ float operator[](int e) const {
    const unsigned bits = packed[e * SIZE / 4] >> e * SIZE % 4 * 8;
    T x;
    memcpy(&x, &bits, SIZE);
    return to_float(x);
  }

  // To be called for e = 0, 1, ... in turn.
  __device__ __forceinline__ void set(int e, float value) {
    const T x = from_float<T>(value);
    unsigned bits = 0;
    memcpy(&bits, &x, SIZE);
    unsigned& word = packed[e * SIZE / 4];
    word = e * SIZE % 4 == 0 ? bits : word | bits << e * SIZE % 4 * 8;
  }
};

template <int N, class T>
__device__ __forceinline__ Vector<T, N> vector_of(typename Vector<T, N>::Word word) {
  Vector<T, N> result{};
  memcpy(result.packed, &word, sizeof(word));
  return result;
}

// Tokens are read and written once: the cache is to let go of them first.
template <int N, class T>
__device__ __forceinline__ Vector<T, N> load(const T* from) {
  return vector_of<N, T>(__ldcs(reinterpret_cast<const typename Vector<T, N>::Word*>(from)));
}

template <int N, class T>
__device__ __forceinline__ void store(T* to, const Vector<T, N>& vector) {
  typename Vector<T, N>::Word word;
  memcpy(&word, vector.packed, sizeof(word));
  __stcs(reinterpret_cast<typename Vector<T, N>::Word*>(to), word);
}

template <int N, class T>
__device__ __forceinline__ Vector<T, N> zeros() {
  return {};  // 0 in every dtype
}

// Calls f with an element of the floating dtype.
template <class F>
void with_floating(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::bfloat16:
      return f(__nv_bfloat16{});
    case Dtype::float16:
      return f(__half{});
    default:
      return f(float{});
  }
}

// Whether steps along `dims` keep an address a multiple of `bytes`.
inline bool is_aligned(const Tensor& x, std::initializer_list<int64_t> dims, int64_t bytes) {
  bool aligned = reinterpret_cast<uintptr_t>(x.data_ptr()) % static_cast<uintptr_t>(bytes) == 0;
  for (int64_t dim : dims) {
    aligned = aligned && (x.size(dim) <= 1 || x.stride(dim) * static_cast<int64_t>(x.element_size()) % bytes == 0);
  }
  return aligned;
}

inline int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

inline unsigned grid_of(int64_t blocks) {
  STD_TORCH_CHECK(blocks <= INT32_MAX, "too large for one launch: ", blocks, " blocks");
  return static_cast<unsigned>(blocks);
}

}  // namespace micron::cuda
