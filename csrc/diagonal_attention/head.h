// One head, and the scores that forward and backward share.
#pragma once

#include "kernel.h"
#include "tile.h"

namespace micron::diagonal_attention::MICRON_INSTRUCTION_SET {

MICRON_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
MICRON_INLINE int64_t at_most(int64_t most, int64_t x) { return x < most ? x : most; }

template <class T>
MICRON_INLINE const T* row_of(const Tokens& x, int64_t b, int64_t h, int64_t n) {
  return static_cast<const T*>(x.data) + b * x.stride_b + h * x.stride_h + n * x.stride_n;
}

// One head of one batch entry; rows of it that are masked are null.
template <class T>
struct Head {
  const Problem& problem;
  int64_t b, h;

  Head(const Problem& of, int64_t index) : problem(of), b(index / of.heads), h(index % of.heads) {}
  void next() {  // counted: a division takes as long as a row of a narrow head
    if (++h == problem.heads) ++b, h = 0;
  }
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

constexpr float LOWEST = -0x1.fffffep127f;  // where a maximum starts from

// Scores of V registers of rows become exponentials against the maximum; what they add to is their sum. They are summed
// some at a time: one sum of all would round as often as there are keys.
template <int V>
MICRON_INLINE void exponentials(float* scores, int64_t stride, int64_t keys, const vfloat (&maximum)[V],
                                vfloat (&sum)[V]) {
  constexpr int64_t SOME = 8;
  for (int64_t first = 0; first < keys; first += SOME) {
    vfloat some[V] = {};
    for (int64_t key = first; key < at_most(keys, first + SOME); ++key) {
      for (int v = 0; v < V; ++v) {
        float* at = scores + key * stride + v * LANES;
        const vfloat e = exp(load(at) - maximum[v]);
        some[v] += e;
        store(at, e);
      }
    }
    for (int v = 0; v < V; ++v) sum[v] += some[v];
  }
}

// The end of LANES rows: the sum of their exponentials against the maximum, which began at LOWEST; `diagonal` is s_ii
// and becomes p_i.
MICRON_INLINE void complete(vfloat& maximum, vfloat& sum, vfloat& diagonal) {
  const vint none = sum == 0.0f;  // of its scores is above −inf
  maximum = select(none, vfloat{}, maximum);
  sum = select(none, broadcast(1.0f), sum);
  diagonal = exp(diagonal - maximum) / sum;
}

// p_i and w_i · p_i · v_i of position n.
template <class T>
MICRON_INLINE void write_row(const Forward& problem, const Head<T>& head, int64_t n, int64_t at, float p) {
  const int64_t width = problem.value.width;
  T* out = static_cast<T*>(problem.out) + at * width;
  problem.weights[at] = head.masked(n) ? 0 : p;
  if (head.masked(n)) return zero(out, width);
  const float factor = head.weight(n) * p;
  map(width, out, [=](vfloat x) { return factor * x; }, row_of<T>(problem.value, head.b, head.h, n));
}

// What the backward knows of a row, from a_i = w_i · v_i·dO_i + dp_i.
struct RowGradient {
  float maximum, slope, diagonal;  // dS_ij = slope · exp(s_ij − maximum), and its diagonal; both times scale

  RowGradient(const Backward& problem, float weight, int64_t at, float product) : maximum(problem.row_max[at]) {
    const float p = problem.weights[at];
    const float a = weight * product + (problem.grad_weights == nullptr ? 0.0f : problem.grad_weights[at]);
    slope = -problem.scale * p * a / problem.row_sum[at];
    diagonal = problem.scale * p * (a - p * a);  // rounded less than g − g·p
  }
};

// The rows [first, first + PANEL) that are computed, as the lanes of a score tile.
template <class T>
void pack_query(const Head<T>& head, int64_t first, Word<T>* to) {
  const T* rows[PANEL];
  for (int lane = 0; lane < PANEL; ++lane) {
    const bool exists = first + lane < head.problem.computed;
    rows[lane] = exists ? head.query(head.position(first + lane)) : nullptr;
  }
  pack_lanes(rows, head.problem.query.width, to);
}

// TILE keys as words, `stride` apart: where they lie, if they lie there as words, otherwise packed. `kept` tells
// which of them exist and are not masked.
template <class T>
struct KeyTile {
  const Word<T>* words_of_first;
  int64_t stride;
  bool kept[TILE], all_kept;

  void pack(const Head<T>& head, int64_t first_key, Word<T>* packed) {
    const int64_t width = head.problem.key.width;
    const T* rows[TILE];
    all_kept = true;
    for (int i = 0; i < TILE; ++i) {
      rows[i] = first_key + i < head.problem.length ? head.key(first_key + i) : nullptr;
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
};

// As many keys as pass by a panel of rows while DEPTH words of it stay in the L1 cache.
constexpr int64_t KEY_TILES = 8, DEPTH = 128;

template <class T>
struct Keys {
  Word<T>* packed;  // [KEY_TILES][TILE][words]
  KeyTile<T> tiles[KEY_TILES];

  static int64_t tile_size(int64_t width) { return words(width, static_cast<Word<T>*>(nullptr)) * TILE; }
  static int64_t size(int64_t width) { return tile_size(width) * KEY_TILES; }
};

// scale · q·k of one tile, −inf for keys that are not kept: what the words [first, first + DEPTH) add to it. A score is
// a sum of such sums, which rounds less than one long one.
template <int V, class T>
__attribute__((noinline)) void score_tile(const KeyTile<T>& keys, const Word<T>* lanes, int64_t first, int64_t count,
                                          float scale, float* to, int64_t stride) {
  const int64_t some = at_most(DEPTH, count - first);
  const bool is_last = first + some == count;
  Sums s = {};
  accumulate_rows<V>(s, keys.words_of_first + first, keys.stride, lanes + first * PANEL, some);
#pragma GCC unroll 16
  for (int i = 0; i < TILE; ++i) {
    for (int v = 0; v < V; ++v) {
      float* at = to + i * stride + v * LANES;
      if (first > 0) s.at[i][v] += load(at);
      store(at, is_last ? scale * s.at[i][v] : s.at[i][v]);
    }
  }
  for (int i = 0; is_last && !keys.all_kept && i < TILE; ++i) {
    for (int v = 0; !keys.kept[i] && v < V; ++v) store(to + i * stride + v * LANES, broadcast(-__builtin_inff()));
  }
}

// A row of `width` floats and some to spare: an odd number of cache lines, so that rows do not share one set.
MICRON_INLINE int64_t padded(int64_t width) { return (divide_up(width, 16) | 1) * 16; }

// Scores of the keys [begin, end) and `rows` packed rows, to[key][row]; keys are done in whole tiles.
template <class T>
void score_block(const Head<T>& head, int64_t begin, int64_t end, int64_t rows, const Word<T>* packed_rows,
                 Keys<T>& keys, float* to, int64_t stride) {
  const int64_t width = head.problem.query.width, count = words(width, packed_rows);
  for (int64_t key = begin; key < end; key += KEY_TILES * TILE, to += KEY_TILES * TILE * stride) {
    const int64_t tiles = at_most(KEY_TILES, divide_up(end - key, TILE));
    for (int64_t t = 0; t < tiles; ++t) {
      keys.tiles[t].pack(head, key + t * TILE, keys.packed + t * Keys<T>::tile_size(width));
    }
    const Word<T>* lanes = packed_rows;
    for (int64_t row = 0; row < rows; row += PANEL, lanes += count * PANEL) {
      const auto tile = rows - row <= LANES ? score_tile<1, T> : score_tile<VECTORS, T>;
      int64_t first = 0;
      do {  // once where the width is 0: those scores are 0
        for (int64_t t = 0; t < tiles; ++t) {
          tile(keys.tiles[t], lanes, first, count, head.problem.scale, to + t * TILE * stride + row, stride);
        }
        first += DEPTH;
      } while (first < count);
    }
  }
}

}  // namespace micron::diagonal_attention::MICRON_INSTRUCTION_SET
