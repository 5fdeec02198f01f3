// Compiled once for every instruction set. Formulas: micron_kernels/diagonal_attention/reference.py.
//
// One head is done in blocks of ROW_BLOCK query rows. For a block, dS (times scale) is held for all keys at once,
// so that the scores are computed once: dK += dSᵀ·Q takes it tile by tile where it is made, dQ = dS·K when it is
// complete. Every element of a gradient is summed by one task in one order, whatever the number of threads.
#include <math.h>

#include "head.h"

namespace micron::diagonal_attention::MICRON_INSTRUCTION_SET {
namespace {

constexpr int PANELS = ROW_BLOCK / PANEL;
constexpr int64_t KEY_BLOCK = 128;  // keys of a packed operand of dQ

struct RowScalars {
  float maximum[ROW_BLOCK];   // +inf in masked rows, whose P is 0
  float slope[ROW_BLOCK];     // −scale · g_i / Σ_j exp(s_ij − max)
  float diagonal[ROW_BLOCK];  // scale · g_i (1 − p_i)
  float factor[ROW_BLOCK];    // w_i · p_i
  float d_weight[ROW_BLOCK];  // p_i · v_i·dO_i
};

// Where the intermediate results of one head lie.
template <class T>
struct Scratch {
  RowScalars* rows;
  Lanes* lanes;           // [PANELS]
  Word<T>* packed_lanes;  // [PANELS][words][PANEL]
  float* columns;         // the rows of query in panels of columns: [E / PANEL][ROW_BLOCK][PANEL]
  float* d_scores;        // [keys][ROW_BLOCK]

  static int64_t keys(const Problem& p) { return divide_up(p.length, TILE) * TILE; }
  static int64_t lane_words(const Problem& p) { return words(p.query.width, static_cast<Word<T>*>(nullptr)) * PANEL; }
  static int64_t column_panels(const Problem& p) { return divide_up(p.query.width, PANEL); }
  static size_t bytes(const Problem& p) {
    return sizeof(RowScalars) + PANELS * (sizeof(Lanes) + lane_words(p) * sizeof(Word<T>)) +
           (column_panels(p) * ROW_BLOCK * PANEL + (keys(p) + 1) * ROW_BLOCK) * sizeof(float) + 5 * 64;
  }
  Scratch(const Problem& p, Workspace& workspace)
      : rows(workspace.take<RowScalars>(1)),
        lanes(workspace.take<Lanes>(PANELS)),
        packed_lanes(workspace.take<Word<T>>(PANELS * lane_words(p))),
        columns(workspace.take<float>(column_panels(p) * ROW_BLOCK * PANEL)),
        d_scores(workspace.take<float>((keys(p) + 1) * ROW_BLOCK)) {}
};

template <class T>
struct Block {
  const Backward& problem;
  const Head<T> head;
  const Scratch<T>& scratch;
  int64_t first, count;  // its rows

  // q_i·k_i for the rows of a panel, added in the order of the tile: where s_ii is the maximum, p is exact.
  void diagonal(int panel, Word<T>* packed, float* to) const {
    const T* rows[PANEL];
    for (int lane = 0; lane < PANEL; ++lane) {
      const int64_t row = panel * PANEL + lane;
      rows[lane] = row < count ? head.key(head.position(first + row)) : nullptr;
    }
    pack_lanes(rows, problem.key.width, packed);
    const Word<T>* lanes = scratch.packed_lanes + panel * Scratch<T>::lane_words(problem);
    vfloat sums[VECTORS] = {};
    for (int64_t k = 0; k < Scratch<T>::lane_words(problem); k += PANEL) {
      for (int v = 0; v < VECTORS; ++v) {
        sums[v] = multiply_add(sums[v], load_words(packed + k + v * LANES), lanes + k + v * LANES);
      }
    }
    memcpy(to, sums, sizeof(sums));
  }

  void pack_panel(int panel, Word<T>* packed_keys) const {
    Lanes& lanes = scratch.lanes[panel];
    lanes.pack(head, first + panel * PANEL, scratch.packed_lanes + panel * Scratch<T>::lane_words(problem));
    float products[PANEL];
    diagonal(panel, packed_keys, products);
    for (int64_t row = panel * PANEL; row < (panel + 1) * PANEL; ++row) {
      RowScalars& scalars = *scratch.rows;
      scalars.slope[row] = scalars.diagonal[row] = scalars.factor[row] = scalars.d_weight[row] = 0;
      scalars.maximum[row] = __builtin_inff();
      if (row >= count) continue;
      const int64_t n = head.position(first + row);
      const T* query = head.query(n);
      for (int64_t p = 0; p < Scratch<T>::column_panels(problem); ++p) {
        pack_columns(query, p * PANEL, problem.query.width, scratch.columns + (p * ROW_BLOCK + row) * PANEL);
      }
      if (query == nullptr) continue;
      const int64_t at = head.statistics(first + row);
      const float value_grad =
          problem.grad_out.data == nullptr
              ? 0.0f
              : dot(problem.value.width, row_of<T>(problem.value, head.b, head.h, n), grad_out(row));
      const float a = head.weight(n) * value_grad + (problem.grad_weights == nullptr ? 0.0f : problem.grad_weights[at]);
      const float score = products[row - panel * PANEL] * problem.scale;
      const float p = expf(score - problem.row_max[at]) / problem.row_sum[at];
      scalars.maximum[row] = problem.row_max[at];
      scalars.slope[row] = -problem.scale * p * a / problem.row_sum[at];
      scalars.diagonal[row] = problem.scale * p * (a - p * a);  // rounded less than g − g·p
      scalars.factor[row] = head.weight(n) * p;
      scalars.d_weight[row] = p * value_grad;
    }
  }

  const T* grad_out(int64_t row) const { return row_of<T>(problem.grad_out, head.b, head.h, first + row); }

  // scale · g_i (δ_ij − P_ij) of one tile of keys and one panel of rows.
  template <int V>
  __attribute__((noinline)) void d_scores(const Keys<T>& keys, int panel) const {
    Sums s;
    scores<V>(s, keys, scratch.packed_lanes + panel * Scratch<T>::lane_words(problem), problem.query.width,
           problem.scale);
    const Lanes& lanes = scratch.lanes[panel];
    const bool meets = lanes.meets(keys.first);
    float* to = scratch.d_scores + keys.first * ROW_BLOCK + panel * PANEL;
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const vfloat maximum = load(scratch.rows->maximum + panel * PANEL + v * LANES);
      const vfloat slope = load(scratch.rows->slope + panel * PANEL + v * LANES);
      const vfloat diagonal = load(scratch.rows->diagonal + panel * PANEL + v * LANES);
#pragma GCC unroll 16
      for (int i = 0; i < TILE; ++i) {
        vfloat d = slope * exp(s.at[i][v] - maximum);
        if (meets) {
          d = select(lanes.position[v] == broadcast(static_cast<int32_t>(keys.first + i)), diagonal, d);
        }
        store(to + i * ROW_BLOCK + v * LANES, d);
      }
    }
  }

  // dK of one tile of keys, a panel of columns at a time.
  __attribute__((noinline)) void d_key(int64_t first_key, int64_t column_panel) const {
    const int64_t width = problem.query.width, column = column_panel * PANEL;
    const int64_t existing = problem.length - first_key < TILE ? problem.length - first_key : TILE;
    float* to = problem.d_key +
                ((head.b * problem.heads + head.h) * problem.length + first_key) * width + column;
    const bool whole = existing == TILE && column + PANEL <= width;
    float buffer[TILE * PANEL];
    float* sums = whole ? to : buffer;
    const int64_t stride = whole ? width : PANEL;
    const int64_t columns = width - column < PANEL ? width - column : PANEL;
    Sums s;
    if (first == 0) {
      s = Sums{};
    } else {
      if (!whole) {
        memset(buffer, 0, sizeof(buffer));
        for (int64_t i = 0; i < existing; ++i) memcpy(buffer + i * PANEL, to + i * width, columns * sizeof(float));
      }
#pragma GCC unroll 16
      for (int i = 0; i < TILE; ++i) {
        s.at[i][0] = load(sums + i * stride);
        s.at[i][1] = load(sums + i * stride + LANES);
      }
    }
    accumulate<TILE, VECTORS, ROW_BLOCK, 1>(s, scratch.d_scores + first_key * ROW_BLOCK,
                                   scratch.columns + column_panel * ROW_BLOCK * PANEL, count);
#pragma GCC unroll 16
    for (int i = 0; i < TILE; ++i) {
      store(sums + i * stride, s.at[i][0]);
      store(sums + i * stride + LANES, s.at[i][1]);
    }
    if (whole) return;
    for (int64_t i = 0; i < existing; ++i) memcpy(to + i * width, buffer + i * PANEL, columns * sizeof(float));
  }

  // dQ of the block, one panel of columns. `packed` [KEY_BLOCK][PANEL], `sums` [ROW_BLOCK + ROW_TILE][PANEL].
  void d_query(int64_t column_panel, float* packed, float* sums) const {
    const int64_t width = problem.query.width, column = column_panel * PANEL;
    memset(sums, 0, (ROW_BLOCK + ROW_TILE) * PANEL * sizeof(float));
    for (int64_t key = 0; key < problem.length; key += KEY_BLOCK) {
      const int64_t keys = problem.length - key < KEY_BLOCK ? problem.length - key : KEY_BLOCK;
      for (int64_t k = 0; k < keys; ++k) pack_columns(head.key(key + k), column, width, packed + k * PANEL);
      for (int64_t row = 0; row < count; row += ROW_TILE) d_query_tile(key, keys, row, packed, sums + row * PANEL);
    }
    for (int64_t row = 0; row < count; ++row) {
      float* to = problem.d_query +
                  ((head.b * problem.heads + head.h) * problem.length + head.position(first + row)) * width + column;
      add(width - column < PANEL ? width - column : PANEL, to, 1.0f, sums + row * PANEL);
    }
  }

  __attribute__((noinline)) void d_query_tile(int64_t key, int64_t keys, int64_t row, const float* packed,
                                              float* sums) const {
    Sums s;
#pragma GCC unroll 16
    for (int i = 0; i < ROW_TILE; ++i) {
      s.at[i][0] = load(sums + i * PANEL);
      s.at[i][1] = load(sums + i * PANEL + LANES);
    }
    accumulate<ROW_TILE, VECTORS, 1, ROW_BLOCK>(s, scratch.d_scores + key * ROW_BLOCK + row, packed, keys);
#pragma GCC unroll 16
    for (int i = 0; i < ROW_TILE; ++i) {
      store(sums + i * PANEL, s.at[i][0]);
      store(sums + i * PANEL + LANES, s.at[i][1]);
    }
  }

  // dV and dw. One task: a position may be named twice by `rows`.
  void d_value_and_weight() const {
    const int64_t index = head.b * problem.heads + head.h, width = problem.value.width;
    for (int64_t row = 0; row < count; ++row) {
      const int64_t n = head.position(first + row);
      float* to = problem.d_value + (index * problem.length + n) * width;
      if (head.masked(n) || problem.grad_out.data == nullptr) {
        if (problem.rows == nullptr) zero(to, width);
      } else {
        add(width, to, scratch.rows->factor[row], grad_out(row));
      }
      if (problem.d_weight == nullptr) continue;
      float& d_weight = problem.d_weight[index * problem.length + n];
      d_weight = scratch.rows->d_weight[row] + (problem.rows == nullptr ? 0.0f : d_weight);
    }
  }

  // to += factor · x where rows may repeat, to = factor · x where each position comes once.
  template <class X>
  void add(int64_t width, float* to, float factor, const X* x) const {
    if (problem.rows == nullptr) {
      map(width, to, [=](vfloat from) { return factor * from; }, x);
    } else {
      map(width, to, [=](vfloat from, vfloat before) { return fma(broadcast(factor), from, before); }, x, to);
    }
  }

  void run() const {
    const int64_t panels = divide_up(count, PANEL), columns = Scratch<T>::column_panels(problem);
    parallel(panels, 1, [&](int64_t begin, int64_t end) {
      Workspace workspace(Scratch<T>::lane_words(problem) * sizeof(Word<T>));
      Word<T>* packed_keys = workspace.take<Word<T>>(Scratch<T>::lane_words(problem));
      for (int64_t i = begin; i < end; ++i) pack_panel(static_cast<int>(i), packed_keys);
    });
    parallel(divide_up(problem.length, TILE), 1, [&](int64_t begin, int64_t end) {
      Workspace workspace(Keys<T>::size(problem.key.width) * sizeof(Word<T>));
      Keys<T> keys;
      keys.packed = workspace.take<Word<T>>(Keys<T>::size(problem.key.width));
      for (int64_t tile = begin; tile < end; ++tile) {
        keys.pack(head, tile * TILE);
        for (int panel = 0; panel < panels; ++panel) {
          scratch.lanes[panel].narrow ? d_scores<1>(keys, panel) : d_scores<VECTORS>(keys, panel);
        }
        for (int64_t column = 0; column < columns; ++column) d_key(tile * TILE, column);
      }
    });
    parallel(columns + 1, 1, [&](int64_t begin, int64_t end) {
      Workspace workspace((KEY_BLOCK + ROW_BLOCK + ROW_TILE) * PANEL * sizeof(float));
      float* packed = workspace.take<float>(KEY_BLOCK * PANEL);
      float* sums = workspace.take<float>((ROW_BLOCK + ROW_TILE) * PANEL);
      for (int64_t i = begin; i < end; ++i) {
        if (i < columns) {
          d_query(i, packed, sums);
        } else {
          d_value_and_weight();
        }
      }
    });
  }
};

template <class T>
void backward_of_head(const Backward& problem, int64_t index) {
  if (problem.computed == 0) {
    const int64_t size = problem.length * problem.query.width;
    zero(problem.d_key + index * size, size);
    return;
  }
  Workspace workspace(Scratch<T>::bytes(problem));
  const Scratch<T> scratch(problem, workspace);
  const Head<T> head{problem, index / problem.heads, index % problem.heads};
  for (int64_t row = 0; row < problem.computed; row += ROW_BLOCK) {
    const int64_t count = problem.computed - row < ROW_BLOCK ? problem.computed - row : ROW_BLOCK;
    Block<T>{problem, head, scratch, row, count}.run();
  }
}

// Heads go to threads whole where that shares them out evenly; otherwise all threads work on one head at a time.
template <class T>
void backward_of(const Backward& problem) {
  const int64_t heads = problem.batch * problem.heads, threads = thread_count();
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) backward_of_head<T>(problem, i);
  };
  if (heads % threads == 0 || heads >= 4 * threads) {
    parallel(heads, 1, run);
  } else {
    run(0, heads);
  }
}

}  // namespace

#if defined(__AVX512BF16__)
void backward(const Backward& problem) { backward_of<bfloat16>(problem); }
#else
void backward(const Backward& problem) {
  switch (problem.dtype) {
    case Dtype::float32:
      return backward_of<float>(problem);
    case Dtype::bfloat16:
      return backward_of<bfloat16>(problem);
    case Dtype::float16:
      return backward_of<float16>(problem);
    default:
      return;
  }
}
#endif

}  // namespace micron::diagonal_attention::MICRON_INSTRUCTION_SET
