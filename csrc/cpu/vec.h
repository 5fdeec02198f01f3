// One SIMD register of floats, and what the kernels do with it, in the vector types of GCC and Clang: they
// compile for any CPU. Intrinsics stand only where the compiler finds no instruction by itself.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common.h"

#define MICRON_INLINE inline __attribute__((always_inline))

namespace micron::MICRON_INSTRUCTION_SET {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vfloat __attribute__((vector_size(4 * LANES)));
typedef int32_t vint __attribute__((vector_size(4 * LANES)));

template <class To, class From>
MICRON_INLINE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// memset and memcpy, which may not be given null: what an empty tensor has for data, even where there is nothing to do.
template <class T>
MICRON_INLINE void zero(T* to, int64_t count) {
  if (count > 0) memset(static_cast<void*>(to), 0, static_cast<size_t>(count) * sizeof(T));
}

template <class T>
MICRON_INLINE void copy(T* to, const T* from, int64_t count) {
  if (count > 0) memcpy(static_cast<void*>(to), from, static_cast<size_t>(count) * sizeof(T));
}

MICRON_INLINE vfloat broadcast(float x) { return x - vfloat{}; }
MICRON_INLINE vint broadcast(int32_t x) { return x - vint{}; }

template <class V, class T>
MICRON_INLINE V load_bits(const T* from) {
  V v;
  memcpy(&v, from, sizeof(v));
  return v;
}

template <class T, class V>
MICRON_INLINE void store_bits(T* to, const V& v) {
  memcpy(to, &v, sizeof(v));
}

// a · b + c, rounded once where the CPU can. Elsewhere products are rounded as written (-ffp-contract=off): the
// backward repeats the scores of the forward to the bit.
MICRON_INLINE vfloat fma(vfloat a, vfloat b, vfloat c) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

MICRON_INLINE float fma(float a, float b, float c) {
#if defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// b where a or b is NaN.
MICRON_INLINE vfloat max(vfloat a, vfloat b) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vfloat)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

MICRON_INLINE vfloat abs(vfloat x) { return bits_as<vfloat>(bits_as<vint>(x) & 0x7fffffff); }

// a where condition holds all ones, b where it holds zeros.
MICRON_INLINE vfloat select(vint condition, vfloat a, vfloat b) {
  return bits_as<vfloat>((condition & bits_as<vint>(a)) | (~condition & bits_as<vint>(b)));
}

MICRON_INLINE float sum(vfloat v) {
  float lanes[LANES], total = 0;
  store_bits(lanes, v);
  for (int half = LANES / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  total = lanes[0];
  return total;
}

// e^x for x <= 88, 0 where that is far below 2^-126; NaN stays. x = n·ln 2 + r, and on |r| <= ln 2 / 2 a polynomial
// of minimax coefficients, relative error 3e-09 before rounding.
MICRON_INLINE vfloat exp(vfloat x) {
#if defined(__AVX512F__)
  x = max(broadcast(-151.0f), x);
  const vfloat n = (vfloat)_mm512_roundscale_ps((__m512)(x * 0x1.715476p+0f), _MM_FROUND_TO_NEAREST_INT);
#else
  constexpr float ROUND = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  x = max(broadcast(-88.1f), x);
  const vfloat shifted = fma(x, broadcast(0x1.715476p+0f), broadcast(ROUND));
  const vfloat n = shifted - ROUND;
#endif
  vfloat r = fma(n, broadcast(-0x1.62e4p-1f), x);  // few enough bits for n times it to be exact
  r = fma(n, broadcast(-0x1.7f7d1cp-20f), r);
  vfloat p = broadcast(0x1.6a244c00p-10f);
  p = fma(p, r, broadcast(0x1.1239d400p-7f));
  p = fma(p, r, broadcast(0x1.5558f200p-5f));
  p = fma(p, r, broadcast(0x1.55549200p-3f));
  p = fma(p, r, broadcast(0x1.fffffc00p-2f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
#if defined(__AVX512F__)
  return (vfloat)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return p * bits_as<vfloat>((bits_as<vint>(shifted) + 127) << 23);
#endif
}

// x[i] becomes lane i of every result: log2(LANES) rounds of interleaving the two halves.
template <class V>
MICRON_INLINE void transpose(V (&x)[LANES]) {
  vint low, high;
  for (int i = 0; i < LANES; ++i) {
    low[i] = i / 2 + (i % 2) * LANES;
    high[i] = low[i] + LANES / 2;
  }
#pragma GCC unroll 4
  for (int round = 1; round < LANES; round *= 2) {
    V y[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES / 2; ++i) {
      y[2 * i] = __builtin_shuffle(x[i], x[i + LANES / 2], low);
      y[2 * i + 1] = __builtin_shuffle(x[i], x[i + LANES / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) x[i] = y[i];
  }
}

// ---- to and from the storage types ----

MICRON_INLINE float to_float(float x) { return x; }
MICRON_INLINE float to_float(uint8_t x) { return x; }
MICRON_INLINE float to_float(bfloat16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }
MICRON_INLINE float to_float(float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, rest = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  if (rest >= 0x0f800000) return bits_as<float>(sign | 0x70000000 | rest);  // infinity and NaN
  return bits_as<float>(sign | bits_as<uint32_t>(bits_as<float>(rest) * 0x1p112f));
}

MICRON_INLINE void from_float(float x, float* to) { *to = x; }
MICRON_INLINE void from_float(float x, bfloat16* to) {
  const uint32_t bits = bits_as<uint32_t>(x);
  to->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
MICRON_INLINE void from_float(float x, float16* to) {
  const uint32_t bits = bits_as<uint32_t>(x), magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude >= 0x47800000) {
    half = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  } else if (magnitude < 0x38800000) {  // subnormal: the last bit of 0.5 + x is worth 2^-24
    half = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000;
  } else {
    half = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  }
  to->bits = static_cast<uint16_t>(half | (bits >> 16 & 0x8000));
}

MICRON_INLINE vfloat load(const float* from) { return load_bits<vfloat>(from); }

template <class T>
MICRON_INLINE vfloat load_each(const T* from) {
  vfloat v;
  for (int i = 0; i < LANES; ++i) v[i] = to_float(from[i]);
  return v;
}

MICRON_INLINE vfloat load(const bfloat16* from) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#elif defined(__AVX2__)
  return (vfloat)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
#else
  return load_each(from);
#endif
}
MICRON_INLINE vfloat load(const float16* from) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
  return (vfloat)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
  return load_each(from);
#endif
}
MICRON_INLINE vfloat load(const uint8_t* from) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif defined(__AVX2__)
  return (vfloat)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
  return load_each(from);
#endif
}

MICRON_INLINE void store(float* to, vfloat v) { store_bits(to, v); }
MICRON_INLINE void store(bfloat16* to, vfloat v) {
#if defined(__AVX512F__)
  const __m512i bits = (__m512i)v, odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __mmask16 is_nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  rounded = _mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16(rounded));
#else
  for (int i = 0; i < LANES; ++i) from_float(v[i], to + i);
#endif
}
MICRON_INLINE void store(float16* to, vfloat v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < LANES; ++i) from_float(v[i], to + i);
#endif
}

// The first count < LANES elements, then zeros.
template <class T>
MICRON_INLINE vfloat load_some(const T* from, int64_t count) {
  vfloat v{};
  for (int64_t i = 0; i < count; ++i) v[i] = to_float(from[i]);
  return v;
}

// to[i] = f(from[i]...) for i < count; f takes and returns vfloat.
template <class To, class F, class... From>
MICRON_INLINE void map(int64_t count, To* to, const F& f, const From*... from) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(to + i, f(load(from + i)...));
  if (i < count) {
    To result[LANES];
    store(result, f(load_some(from + i, count - i)...));
    memcpy(to + i, result, static_cast<size_t>(count - i) * sizeof(To));
  }
}

template <class A, class B>
MICRON_INLINE float dot(int64_t count, const A* a, const B* b) {
  vfloat total[4] = {};
  int64_t i = 0;
  for (; i + 4 * LANES <= count; i += 4 * LANES) {
    for (int v = 0; v < 4; ++v) total[v] = fma(load(a + i + v * LANES), load(b + i + v * LANES), total[v]);
  }
  for (; i + LANES <= count; i += LANES) total[0] = fma(load(a + i), load(b + i), total[0]);
  float rest = 0;
  for (; i < count; ++i) rest = fma(to_float(a[i]), to_float(b[i]), rest);
  return sum((total[0] + total[1]) + (total[2] + total[3])) + rest;
}

// Runs f(begin, end) over ranges that cover [0, count).
template <class F>
MICRON_INLINE void parallel(int64_t count, int64_t grain, const F& f) {
  const auto body = [](void* context, int64_t begin, int64_t end) { (*static_cast<const F*>(context))(begin, end); };
  parallel_for(count, grain, body, const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace micron::MICRON_INSTRUCTION_SET
