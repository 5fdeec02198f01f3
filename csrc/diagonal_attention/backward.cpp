// Compiled once for every instruction set. Formulas: micron_kernels/diagonal_attention/reference.py.
//
// One head is done in blocks of query rows, and these in blocks of keys: dS (times scale) of a block, then what it adds
// to dK = dSᵀ·Q and to dQ = dS·K, a panel of columns at a time. Every element of a gradient is summed by one task in
// one order, whatever the number of threads.
#include "few.h"
#include "head.h"

namespace micron::diagonal_attention::MICRON_INSTRUCTION_SET {
namespace {

#if defined(__AVX512F__)
constexpr int64_t MOST_ROWS = 224, KEY_BLOCK = 140;
#else
constexpr int64_t MOST_ROWS = 192, KEY_BLOCK = 132;
#endif

// Query rows, keys and what lies between them, for one head at a time.
template <class T>
struct Block {
  const Backward& problem;
  const float* products;   // (B, H, K): v_i·dO_i
  int64_t rows, keys;      // of a block, at most
  int64_t stride, panels;  // panels of PANEL columns
  float* maximum;          // +inf in masked rows, whose P is 0
  float* slope;            // −scale · g_i / Σ_j exp(s_ij − max)
  float* diagonal;         // scale · g_i (1 − p_i)
  Word<T>* packed_rows = nullptr;   // [rows / PANEL][words][PANEL], where scores are made again
  float* d_scores;                  // [keys][stride] where scores are made again, else [rows][stride]
  float* query_columns = nullptr;   // [panels][rows][PANEL]
  float* key_columns = nullptr;     // [panels][keys][PANEL]
  float* d_query_rows = nullptr;    // [rows][E], where a position may be named twice

  static int64_t lane_words(const Backward& p) {
    return words(p.query.width, static_cast<Word<T>*>(nullptr)) * PANEL;
  }
  bool again() const { return problem.exponentials == nullptr; }

  template <class Memory>  // a Workspace, or a Measure of it
  Block(const Backward& p, const float* products, Memory& memory)
      : problem(p),
        products(products),
        rows(divide_up(divide_up(p.computed, divide_up(p.computed, MOST_ROWS)), PANEL) * PANEL),
        keys(divide_up(divide_up(p.length, divide_up(p.length, KEY_BLOCK)), TILE) * TILE),
        stride(padded(again() ? rows : keys)),
        panels(divide_up(p.query.width, PANEL)) {
    maximum = memory.template take<float>(rows);
    slope = memory.template take<float>(rows);
    diagonal = memory.template take<float>(rows);
    d_scores = memory.template take<float>(((again() ? keys : rows) + TILE) * stride);
    if (again()) packed_rows = memory.template take<Word<T>>(rows / PANEL * lane_words(p));
    if (p.d_key != nullptr) query_columns = memory.template take<float>(panels * (rows | 1) * PANEL);
    if (p.d_query != nullptr) key_columns = memory.template take<float>(panels * (keys | 1) * PANEL);
    if (p.d_query != nullptr && p.rows != nullptr) d_query_rows = memory.template take<float>(rows * p.query.width);
  }

  float* gradient_of(float* gradients, const Head<T>& head, int64_t n) const {
    return gradients + ((head.b * problem.heads + head.h) * problem.length + n) * problem.query.width;
  }

  // Row `row` of x as column panels of `count` rows.
  void pack(const T* x, int64_t row, int64_t count, float* to) const {
    for (int64_t p = 0; p < panels; ++p) {
      pack_columns(x, p * PANEL, problem.query.width, to + (p * (count | 1) + row) * PANEL);
    }
  }

  void prepare_rows(const Head<T>& head, int64_t first, int64_t begin, int64_t end) const {
    for (int64_t row = begin; again() && row < end; row += PANEL) {
      pack_query(head, first + row, packed_rows + row / PANEL * lane_words(problem));
    }
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = head.position(first + row), at = head.statistics(first + row);
      const T* query = head.query(n);
      if (query_columns != nullptr) pack(query, row, rows, query_columns);
      slope[row] = diagonal[row] = 0;
      maximum[row] = __builtin_inff();
      if (query == nullptr) continue;
      const RowGradient of_row(problem, head.weight(n), at, products[at]);
      maximum[row] = of_row.maximum, slope[row] = of_row.slope, diagonal[row] = of_row.diagonal;
    }
  }

  // d_scores of the rows [first, first + count) and the keys [key + begin, key + end).
  void prepare_keys(const Head<T>& head, int64_t first, int64_t count, int64_t key, int64_t begin, int64_t end) const {
    for (int64_t i = begin; key_columns != nullptr && i < end; ++i) pack(head.key(key + i), i, keys, key_columns);
    if (again()) {
      Workspace workspace(Keys<T>::size(problem.key.width) * sizeof(Word<T>));
      Keys<T> tile;
      tile.packed = workspace.take<Word<T>>(Keys<T>::size(problem.key.width));
      score_block(head, key + begin, key + end, count, packed_rows, tile, d_scores + begin * stride, stride);
    }
    for (int64_t i = begin; again() && i < end; ++i) {
      float* to = d_scores + i * stride;
      map(count, to, [](vfloat s, vfloat m, vfloat c) { return c * exp(s - m); }, to, maximum, slope);
    }
    for (int64_t row = 0; row < count; ++row) {
      const int64_t n = head.position(first + row);
      if (!again() && head.masked(n)) {
        zero(d_scores + row * stride + begin, end - begin);
      } else if (!again()) {
        const float* from = problem.exponentials + head.statistics(first + row) * problem.length + key + begin;
        map(end - begin, d_scores + row * stride + begin, [=](vfloat e) { return slope[row] * e; }, from);
      }
      if (n >= key + begin && n < key + end) d_scores[again() ? (n - key) * stride + row : row * stride + n - key] = diagonal[row];
    }
  }

  // What `depth` keys or rows add to `count` rows of a gradient, in one panel of columns.
  template <Order ORDER>
  void add_product(float* to, int64_t count, int64_t panel, bool from_nothing, const float* b, int64_t depth) const {
    const int64_t width = problem.query.width, columns = at_most(PANEL, width - panel * PANEL);
    const auto tile = columns <= LANES ? multiply<ORDER, 1> : multiply<ORDER, VECTORS>;
    to += panel * PANEL;
    for (int64_t i = 0; i < count; i += TILE) {
      const float* a = d_scores + i * (ORDER == Order::rows ? stride : 1);
      tile(to + i * width, width, at_most(TILE, count - i), columns, from_nothing, a, stride, b, depth);
    }
  }

  void products_of(const Head<T>& head, int64_t first, int64_t count, int64_t key, int64_t some, int64_t panel) const {
    if (query_columns != nullptr) {
      float* to = gradient_of(problem.d_key, head, key);
      const float* b = query_columns + panel * (rows | 1) * PANEL;
      again() ? add_product<Order::rows>(to, some, panel, first == 0, b, count)
              : add_product<Order::columns>(to, some, panel, first == 0, b, count);
    }
    if (key_columns != nullptr) {
      float* to = d_query_rows != nullptr ? d_query_rows : gradient_of(problem.d_query, head, first);
      const float* b = key_columns + panel * (keys | 1) * PANEL;
      again() ? add_product<Order::columns>(to, count, panel, key == 0, b, some)
              : add_product<Order::rows>(to, count, panel, key == 0, b, some);
    }
  }

  void run(const Head<T>& head) const {
    const int64_t width = problem.query.width;
    for (int64_t first = 0; first < problem.computed; first += rows) {
      const int64_t count = at_most(rows, problem.computed - first);
      parallel(divide_up(count, PANEL), 1, [&](int64_t begin, int64_t end) {
        prepare_rows(head, first, begin * PANEL, at_most(count, end * PANEL));
      });
      for (int64_t key = 0; key < problem.length; key += keys) {
        const int64_t some = at_most(keys, problem.length - key);
        parallel(divide_up(some, TILE), 1, [&](int64_t begin, int64_t end) {
          prepare_keys(head, first, count, key, begin * TILE, at_most(some, end * TILE));
        });
        parallel(panels, 1, [&](int64_t begin, int64_t end) {
          for (int64_t panel = begin; panel < end; ++panel) products_of(head, first, count, key, some, panel);
        });
      }
      for (int64_t row = 0; d_query_rows != nullptr && row < count; ++row) {
        const int64_t n = head.position(first + row);
        float* to = gradient_of(problem.d_query, head, n);
        if (head.masked(n)) continue;
        map(width, to, [](vfloat x, vfloat before) { return x + before; }, d_query_rows + row * width, to);
      }
    }
    // A masked position has no part in any score, but 0 · NaN of another one is not 0.
    for (int64_t n = 0; problem.key_mask != nullptr && n < problem.length; ++n) {
      if (!head.masked(n)) continue;
      if (problem.d_key != nullptr) zero(gradient_of(problem.d_key, head, n), width);
      if (problem.d_query != nullptr) zero(gradient_of(problem.d_query, head, n), width);
    }
  }
};

// v_i·dO_i of every row, and what needs no other: dV and dw.
template <class T>
void value_gradients(const Backward& problem, float* products) {
  const int64_t width = problem.value.width, computed = problem.computed;
  const int64_t together = problem.rows == nullptr ? 1 : computed;  // a position may be named twice
  const int64_t grain = 1 + (1 << 15) / (together * (width + 16));
  parallel(problem.batch * problem.heads * computed / together, grain, [&](int64_t begin, int64_t end) {
    int64_t index = begin * together / computed, row = begin * together % computed;
    Head<T> head(problem, index);
    for (int64_t at = begin * together; at < end * together; ++at, ++row) {
      if (row == computed) {
        row = 0, ++index;
        head.next();
      }
      const int64_t n = head.position(row), to = index * problem.length + n;
      const bool counts = !head.masked(n) && problem.grad_out.data != nullptr;
      const T* gradient = counts ? row_of<T>(problem.grad_out, head.b, head.h, row) : nullptr;
      const float product = counts && products != nullptr
                                ? dot(width, row_of<T>(problem.value, head.b, head.h, n), gradient)
                                : 0;
      if (products != nullptr) products[at] = product;
      const float p = problem.weights[at], factor = head.weight(n) * p;
      if (problem.d_weight != nullptr) {
        problem.d_weight[to] = p * product + (problem.rows == nullptr ? 0 : problem.d_weight[to]);
      }
      if (problem.d_value == nullptr) continue;
      float* d_value = problem.d_value + to * width;
      if (!counts) {
        if (problem.rows == nullptr) zero(d_value, width);
      } else if (problem.rows == nullptr) {
        map(width, d_value, [=](vfloat x) { return factor * x; }, gradient);
      } else {
        map(width, d_value, [=](vfloat x, vfloat before) { return fma(broadcast(factor), x, before); }, gradient,
            d_value);
      }
    }
  });
}

template <class T>
void backward_of(const Backward& problem) {
  const int64_t heads = problem.batch * problem.heads, threads = thread_count();
  const bool scores = problem.d_query != nullptr || problem.d_key != nullptr;
  Workspace statistics(heads * problem.computed * sizeof(float));
  float* products = scores || problem.d_weight != nullptr ? statistics.take<float>(heads * problem.computed) : nullptr;
  if (problem.computed > 0) value_gradients<T>(problem, products);
  if (!scores) return;
  if (problem.computed == 0) {
    if (problem.d_key != nullptr) zero(problem.d_key, heads * problem.length * problem.query.width);
    return;
  }
  if (is_one(problem)) return backward_one<T>(problem, products);
  if (few(problem)) return backward_few<T>(problem, products);
  const auto run = [&](int64_t begin, int64_t end) {
    Measure measure;
    (void)Block<T>(problem, products, measure);
    Workspace workspace(measure.bytes());
    const Block<T> block(problem, products, workspace);
    for (int64_t i = begin; i < end; ++i) block.run(Head<T>(problem, i));
  };
  // Heads go to threads whole where that shares them out evenly; otherwise all threads work on one head at a time.
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
