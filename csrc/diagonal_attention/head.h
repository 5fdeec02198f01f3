// One head, and the score tile that forward and backward share.
#pragma once

#include "kernel.h"
#include "tile.h"

namespace micron::diagonal_attention::MICRON_INSTRUCTION_SET {


MICRON_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
MICRON_INLINE const T* row_of(const Tokens& x, int64_t b, int64_t h, int64_t n) {
  return static_cast<const T*>(x.data) + b * x.stride_b + h * x.stride_h + n * x.stride_n;
}

// One head of one batch entry; rows of it that are masked are null.
template <class T>
struct Head {
  const Problem& problem;
  int64_t b, h;

  int64_t position(int64_t row) const {
    return problem.rows == nullptr ? row : problem.rows[b * problem.computed + row];
  }
  bool masked(int64_t n) const { return problem.key_mask != nullptr && !problem.key_mask[b * problem.length + n]; }
  const T* query(int64_t n) const { return masked(n) ? nullptr : row_of<T>(problem.query, b, h, n); }
  const T* key(int64_t n) const { return masked(n) ? nullptr : row_of<T>(problem.key, b, h, n); }
  float weight(int64_t n) const {
    if (problem.row_weight == nullptr) return 1.0f;
    return problem.row_weight[b * problem.weight_stride_b + h * problem.weight_stride_h + n * problem.weight_stride_n];
  }
  int64_t statistics(int64_t row) const { return (b * problem.heads + h) * problem.computed + row; }
};

// Which rows the lanes of a panel are: their positions, -1 where there is none.
struct Lanes {
  vint position[VECTORS];
  int64_t low, high;  // bounds of the positions
  bool narrow;        // one register holds all the rows

  template <class T, class W>
  void pack(const Head<T>& head, int64_t first, W* to) {
    const T* rows[PANEL];
    int32_t positions[PANEL];
    low = INT64_MAX, high = -1;
    narrow = head.problem.computed - first <= LANES;
    for (int lane = 0; lane < PANEL; ++lane) {
      const bool exists = first + lane < head.problem.computed;
      const int64_t n = exists ? head.position(first + lane) : -1;
      rows[lane] = exists ? head.query(n) : nullptr;
      positions[lane] = static_cast<int32_t>(n);
      if (exists && n < low) low = n;
      if (n > high) high = n;
    }
    pack_lanes(rows, head.problem.query.width, to);
    memcpy(position, positions, sizeof(position));
  }
  bool meets(int64_t first_key) const { return low < first_key + TILE && high >= first_key; }
};

// TILE keys as words, `stride` apart: where they lie, if they lie there as words, otherwise packed. `kept` tells
// which of them exist and are not masked.
template <class T>
struct Keys {
  Word<T>* packed;
  const Word<T>* words_of_first;
  int64_t stride, first;
  bool kept[TILE], all_kept;

  void pack(const Head<T>& head, int64_t first_key) {
    const int64_t width = head.problem.key.width;
    const T* rows[TILE];
    first = first_key, all_kept = true;
    for (int i = 0; i < TILE; ++i) {
      rows[i] = first + i < head.problem.length ? head.key(first + i) : nullptr;
      kept[i] = rows[i] != nullptr;
      all_kept = all_kept && kept[i];
    }
    if (all_kept && are_words(rows[0], packed, width, head.problem.key.stride_n)) {
      words_of_first = reinterpret_cast<const Word<T>*>(rows[0]);
      stride = head.problem.key.stride_n * static_cast<int64_t>(sizeof(T)) / static_cast<int64_t>(sizeof(Word<T>));
      return;
    }
    stride = words(width, packed);
    for (int i = 0; i < TILE; ++i) pack_row(rows[i], width, packed + i * stride);
    words_of_first = packed;
  }
  static int64_t size(int64_t width) { return words(width, static_cast<Word<T>*>(nullptr)) * TILE; }
};

// scale · q·k, −inf for keys that are not kept.  [TILE keys][V registers of rows]
template <int V, class T>
MICRON_INLINE void scores(Sums& s, const Keys<T>& keys, const Word<T>* lanes, int64_t width, float scale) {
  const int64_t count = words(width, lanes);
  s = Sums{};
  accumulate_rows<V>(s, keys.words_of_first, keys.stride, lanes, count);
#pragma GCC unroll 16
  for (int i = 0; i < TILE; ++i) {
    for (int v = 0; v < V; ++v) s.at[i][v] *= scale;
  }
  if (keys.all_kept) return;
#pragma GCC unroll 16
  for (int i = 0; i < TILE; ++i) {
    for (int v = 0; v < V; ++v) {
      if (!keys.kept[i]) s.at[i][v] = broadcast(-__builtin_inff());
    }
  }
}

}  // namespace micron::diagonal_attention::MICRON_INSTRUCTION_SET
