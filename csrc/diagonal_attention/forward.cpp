// Compiled once for every instruction set. Formulas: micron_kernels/diagonal_attention/reference.py.
//
// A few panels of query rows at a time, so many that they stay in the cache while all keys pass by, a block after the
// other: the scores of a block, then the softmax of these rows goes on with them. Where the exponentials are kept,
// the block is all keys: they are taken against the maximum of the whole row.
#include "few.h"
#include "head.h"

namespace micron::diagonal_attention::MICRON_INSTRUCTION_SET {
namespace {

constexpr int64_t LANES_BYTES = 256 << 10;  // of packed query rows a thread holds: they stay in its L2 cache
constexpr int64_t KEY_BLOCK = 8 * TILE;
constexpr int64_t PANELS = 16, PANELS_KEPT = 6;  // at most at a time

// The running softmax of some rows, an element each.
struct Softmax {
  float *maximum, *sum, *diagonal;
};

// Goes on with `keys` scores of V registers of rows, and leaves their exponentials against the new maximum.
template <int V>
MICRON_INLINE void go_on(const Softmax& softmax, int64_t row, float* scores, int64_t stride, int64_t keys) {
  vfloat maximum[V], sum[V];
  for (int v = 0; v < V; ++v) maximum[v] = load(softmax.maximum + row + v * LANES);
  for (int64_t key = 0; key < keys; ++key) {
    for (int v = 0; v < V; ++v) maximum[v] = max(load(scores + key * stride + v * LANES), maximum[v]);
  }
  for (int v = 0; v < V; ++v) {
    float* before = softmax.maximum + row + v * LANES;
    sum[v] = load(softmax.sum + row + v * LANES) * exp(load(before) - maximum[v]);
    store(before, maximum[v]);
  }
  exponentials(scores, stride, keys, maximum, sum);
  for (int v = 0; v < V; ++v) store(softmax.sum + row + v * LANES, sum[v]);
}

// to[row][key] = from[key][row]. LANES more rows and keys than there are must be readable.
__attribute__((noinline)) void store_rows(const float* from, int64_t stride, int64_t keys, int64_t rows, float* to) {
  for (int64_t row = 0; row < rows; row += LANES) {
    const int64_t some_rows = at_most(LANES, rows - row);
    for (int64_t key = 0; key < keys; key += LANES) {
      vfloat x[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) x[i] = load(from + (key + i) * stride + row);
      transpose(x);
      if (some_rows == LANES && key + LANES <= keys) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) store(to + (row + i) * keys + key, x[i]);
      } else {
        const int64_t some_keys = at_most(LANES, keys - key);
        for (int64_t i = 0; i < some_rows; ++i) {
          memcpy(to + (row + i) * keys + key, &x[i], static_cast<size_t>(some_keys) * sizeof(float));
        }
      }
    }
  }
}

template <class T>
void finish(const Forward& problem, const Head<T>& head, const Softmax& softmax, int64_t first, int64_t count) {
  for (int64_t row = 0; row < count; row += LANES) {
    vfloat maximum = load(softmax.maximum + row), sum = load(softmax.sum + row), p = load(softmax.diagonal + row);
    complete(maximum, sum, p);
    store(softmax.maximum + row, maximum), store(softmax.sum + row, sum), store(softmax.diagonal + row, p);
  }
  const int64_t at = head.statistics(first);
  copy(problem.row_max + at, softmax.maximum, count);
  copy(problem.row_sum + at, softmax.sum, count);
  for (int64_t row = 0; row < count; ++row) {
    write_row(problem, head, head.position(first + row), at + row, softmax.diagonal[row]);
  }
}

// What a thread works on: `rows` query rows and a block of keys.
template <class T>
struct Block {
  const Forward& problem;
  int64_t rows, key_block, stride, lanes;
  Word<T>* packed_rows;  // [rows / PANEL][words][PANEL]
  Keys<T> keys;
  float* scores;  // [key_block][stride]
  Softmax softmax;

  static int64_t lane_words(const Forward& p) { return words(p.query.width, static_cast<Word<T>*>(nullptr)) * PANEL; }
  static int64_t rows_of(const Forward& p) {
    const int64_t fitting = LANES_BYTES / (lane_words(p) * static_cast<int64_t>(sizeof(Word<T>)) + 1);
    const int64_t most = p.exponentials == nullptr ? PANELS : PANELS_KEPT, panels = divide_up(p.computed, PANEL);
    return at_most(panels, at_most(most, fitting < 1 ? 1 : fitting)) * PANEL;
  }
  static int64_t keys_of(const Forward& p) {
    return p.exponentials == nullptr ? KEY_BLOCK : divide_up(p.length, TILE) * TILE;
  }
  template <class Memory>  // a Workspace, or a Measure of it
  Block(const Forward& p, Memory& memory)
      : problem(p), rows(rows_of(p)), key_block(keys_of(p)), stride(padded(rows)), lanes(lane_words(p)) {
    packed_rows = memory.template take<Word<T>>(rows / PANEL * lanes);
    keys.packed = memory.template take<Word<T>>(Keys<T>::size(p.key.width));
    scores = memory.template take<float>((key_block + LANES) * stride);
    softmax.maximum = memory.template take<float>(rows);
    softmax.sum = memory.template take<float>(rows);
    softmax.diagonal = memory.template take<float>(rows);
  }

  // Rows [first, first + count) of a head.
  void run(const Head<T>& head, int64_t first, int64_t count) {
    for (int64_t row = 0; row < count; row += PANEL) pack_query(head, first + row, packed_rows + row / PANEL * lanes);
    for (int64_t row = 0; row < rows; ++row) {
      softmax.maximum[row] = LOWEST, softmax.sum[row] = softmax.diagonal[row] = 0;
    }
    for (int64_t key = 0; key < problem.length; key += key_block) {
      const int64_t some = at_most(key_block, problem.length - key);
      score_block(head, key, key + some, count, packed_rows, keys, scores, stride);
      for (int64_t row = 0; row < count; ++row) {
        const int64_t n = head.position(first + row);
        if (n >= key && n < key + some) softmax.diagonal[row] = scores[(n - key) * stride + row];
      }
      int64_t row = 0;
      for (; row + LANES < count; row += PANEL) go_on<VECTORS>(softmax, row, scores + row, stride, some);
      if (row < count) go_on<1>(softmax, row, scores + row, stride, some);
    }
    if (problem.exponentials != nullptr) {
      float* to = problem.exponentials + head.statistics(first) * problem.length;
      store_rows(scores, stride, problem.length, count, to);
    }
    finish(problem, head, softmax, first, count);
  }
};

template <class T>
void forward_of(const Forward& problem) {
  if (is_one(problem)) return forward_one<T>(problem);
  if (few(problem)) return forward_few<T>(problem);
  const int64_t panels = divide_up(problem.computed, PANEL);
  parallel(problem.batch * problem.heads * panels, 1, [&](int64_t begin, int64_t end) {
    Measure measure;
    (void)Block<T>(problem, measure);
    Workspace workspace(measure.bytes());
    Block<T> block(problem, workspace);
    while (begin < end) {
      const int64_t index = begin / panels, first = begin % panels;
      const int64_t count = at_most(block.rows / PANEL, at_most(panels - first, end - begin));
      block.run(Head<T>(problem, index), first * PANEL,
                at_most(count * PANEL, problem.computed - first * PANEL));
      begin += count;
    }
  });
}

}  // namespace

#if defined(__AVX512BF16__)
void forward(const Forward& problem) { forward_of<bfloat16>(problem); }
#else
void forward(const Forward& problem) {
  switch (problem.dtype) {
    case Dtype::float32:
      return forward_of<float>(problem);
    case Dtype::bfloat16:
      return forward_of<bfloat16>(problem);
    case Dtype::float16:
      return forward_of<float16>(problem);
    default:
      return;
  }
}
#endif

}  // namespace micron::diagonal_attention::MICRON_INSTRUCTION_SET
