// The register tile all products of diagonal attention are made of, and the packing of its operands.
//
// A tile is acc[i][lane] += Σ_k a[i, k] · b[k][lane]: `a` is broadcast element by element, `b` is read by whole
// registers. For the scores, lanes are query rows and i counts keys: the running maximum and sum of a row then
// live in one lane, and nothing is summed across lanes.
#pragma once

#include "../cpu/vec.h"

namespace micron::diagonal_attention::MICRON_INSTRUCTION_SET {

using namespace ::micron::MICRON_INSTRUCTION_SET;
using ::micron::MICRON_INSTRUCTION_SET::broadcast;

constexpr int VECTORS = 2;
constexpr int PANEL = VECTORS * LANES;  // lanes of a tile
#if defined(__AVX512F__)
constexpr int TILE = 14;  // 28 of 32 registers hold sums
#else
constexpr int TILE = 6;  // 12 of 16
#endif

struct Sums {
  vfloat at[TILE][VECTORS];
};

// Two neighbouring bf16 elements, multiplied and added by one instruction.
struct Pair {
  bfloat16 low, high;
};

template <class T>
struct WordOf {
  using type = float;
};
#if defined(__AVX512BF16__)
template <>
struct WordOf<bfloat16> {
  using type = Pair;
};
#endif

// What a score tile multiplies: floats, or pairs of bf16.
template <class T>
using Word = typename WordOf<T>::type;

MICRON_INLINE int64_t words(int64_t width, const float*) { return width; }
MICRON_INLINE int64_t words(int64_t width, const Pair*) { return (width + 1) / 2; }

MICRON_INLINE vfloat multiply_add(vfloat sums, vfloat a, const float* b) { return fma(a, load(b), sums); }
#if defined(__AVX512BF16__)
MICRON_INLINE vint broadcast(Pair pair) { return broadcast(bits_as<int32_t>(pair)); }
MICRON_INLINE vfloat multiply_add(vfloat sums, vint a, const Pair* b) {
  return (vfloat)_mm512_dpbf16_ps((__m512)sums, (__m512bh)_mm512_loadu_si512(b), (__m512bh)a);
}
#endif

MICRON_INLINE vfloat load_words(const float* from) { return load(from); }
MICRON_INLINE vint load_words(const Pair* from) { return load_bits<vint>(from); }

// The first V registers of each row of the tile; a[i, k] lies at a[i * stride + k], b[k] at b + k * PANEL.
template <int V, class W>
MICRON_INLINE void accumulate_rows(Sums& sums, const W* a, int64_t stride, const W* b, int64_t count) {
  constexpr int HALF = TILE / 2;
  const W* half[2] = {a, a + HALF * stride};
  int64_t offset[HALF];
  for (int i = 0; i < HALF; ++i) {
    offset[i] = i * stride;
    asm("" : "+r"(offset[i]));  // or the compiler keeps a pointer a row, more than there are registers
  }
  for (int64_t k = 0; k < count; ++k, ++half[0], ++half[1], b += PANEL) {
#pragma GCC unroll 16
    for (int i = 0; i < TILE; ++i) {
      const auto element = broadcast(half[i / HALF][offset[i % HALF]]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums.at[i][v] = multiply_add(sums.at[i][v], element, b + v * LANES);
    }
  }
}

// The same where a[i, k] lies at a[i + k * stride].
template <int V>
MICRON_INLINE void accumulate_columns(Sums& sums, const float* a, int64_t stride, const float* b, int64_t count) {
  for (int64_t k = 0; k < count; ++k, a += stride, b += PANEL) {
#pragma GCC unroll 16
    for (int i = 0; i < TILE; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums.at[i][v] = multiply_add(sums.at[i][v], broadcast(a[i]), b + v * LANES);
    }
  }
}

// Whether the elements of a row of `a` are neighbours, or those of a column.
enum class Order { rows, columns };

// One tile of a matrix product: rows <= TILE and columns <= PANEL of `to`, which starts from nothing or is added to.
// TILE rows of `a` are read.
template <Order ORDER, int V>
__attribute__((noinline)) void multiply(float* to, int64_t to_stride, int64_t rows, int64_t columns, bool from_nothing,
                                        const float* a, int64_t a_stride, const float* b, int64_t depth) {
  float buffer[TILE * PANEL];
  const bool whole = rows == TILE && columns == V * LANES;
  float* sums = whole ? to : buffer;
  const int64_t stride = whole ? to_stride : PANEL;
  Sums s = {};
  if (!from_nothing) {
    if (!whole) {
      memset(buffer, 0, sizeof(buffer));
      for (int64_t i = 0; i < rows; ++i) copy(buffer + i * PANEL, to + i * to_stride, columns);
    }
#pragma GCC unroll 16
    for (int i = 0; i < TILE; ++i) {
      for (int v = 0; v < V; ++v) s.at[i][v] = load(sums + i * stride + v * LANES);
    }
  }
  if constexpr (ORDER == Order::rows) {
    accumulate_rows<V>(s, a, a_stride, b, depth);
  } else {
    accumulate_columns<V>(s, a, a_stride, b, depth);
  }
#pragma GCC unroll 16
  for (int i = 0; i < TILE; ++i) {
    for (int v = 0; v < V; ++v) store(sums + i * stride + v * LANES, s.at[i][v]);
  }
  if (whole) return;
  for (int64_t i = 0; i < rows; ++i) copy(to + i * to_stride, buffer + i * PANEL, columns);
}

// ---- words of a row of T ----

template <class T>
MICRON_INLINE float word(const T* row, int64_t index, int64_t, const float*) {
  return to_float(row[index]);
}
template <class T>
MICRON_INLINE Pair word(const T* row, int64_t index, int64_t width, const Pair*) {
  return {row[2 * index], 2 * index + 1 < width ? row[2 * index + 1] : bfloat16{0}};
}
template <class T>
MICRON_INLINE vfloat load_words(const T* row, int64_t index, const float*) {
  return load(row + index);
}
template <class T>
MICRON_INLINE vint load_words(const T* row, int64_t index, const Pair*) {
  return load_bits<vint>(row + 2 * index);
}
MICRON_INLINE int64_t whole_words(int64_t width, const float*) { return width; }
MICRON_INLINE int64_t whole_words(int64_t width, const Pair*) { return width / 2; }

// ---- packing; a null row counts as zeros ----

// A row as words, one after the other: what is broadcast in a score tile.
template <class T, class W>
void pack_row(const T* row, int64_t width, W* to) {
  const int64_t count = words(width, to), whole = whole_words(width, to);
  if (row == nullptr) {
    memset(static_cast<void*>(to), 0, static_cast<size_t>(count) * sizeof(W));
    return;
  }
  int64_t k = 0;
  for (; k + LANES <= whole; k += LANES) store_bits(to + k, load_words(row, k, to));
  for (; k < count; ++k) to[k] = word(row, k, width, to);
}

// Whether rows of T, `stride` elements apart, are rows of words as they lie.
template <class T, class W>
MICRON_INLINE bool are_words(const T*, const W*, int64_t, int64_t) {
  return false;
}
MICRON_INLINE bool are_words(const float*, const float*, int64_t, int64_t) { return true; }
MICRON_INLINE bool are_words(const bfloat16*, const Pair*, int64_t width, int64_t stride) {
  return width % 2 == 0 && stride % 2 == 0;
}

// to[k][PANEL]: the PANEL rows of a score tile that are its lanes, transposed.
template <class T, class W>
void pack_lanes(const T* const (&rows)[PANEL], int64_t width, W* to) {
  const int64_t count = words(width, to), whole = whole_words(width, to);
  for (int v = 0; v < VECTORS; ++v) {
    const T* const* group = rows + v * LANES;
    int64_t k = 0;
    for (; k + LANES <= whole; k += LANES) {
      using V = decltype(load_words(group[0], k, to));
      V x[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) x[i] = group[i] == nullptr ? V{} : load_words(group[i], k, to);
      transpose(x);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) store_bits(to + (k + i) * PANEL + v * LANES, x[i]);
    }
    for (; k < count; ++k) {
      for (int i = 0; i < LANES; ++i) {
        to[k * PANEL + v * LANES + i] = group[i] == nullptr ? W{} : word(group[i], k, width, to);
      }
    }
  }
}

// to[PANEL] = row[start, start + PANEL) in fp32, zeros past the width.
template <class T>
MICRON_INLINE void pack_columns(const T* row, int64_t start, int64_t width, float* to) {
  const int64_t count = width - start < PANEL ? width - start : PANEL;
  if (row == nullptr || count < PANEL) memset(to, 0, PANEL * sizeof(float));
  if (row != nullptr) map(count, to, [](vfloat x) { return x; }, row + start);
}

}  // namespace micron::diagonal_attention::MICRON_INSTRUCTION_SET
