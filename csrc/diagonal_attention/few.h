// Heads of so few rows that these would leave most lanes of a panel empty: the lanes of a register are LANES rows of
// whatever heads, each with its own keys.
#pragma once

#include "head.h"

namespace micron::diagonal_attention::MICRON_INSTRUCTION_SET {

constexpr int64_t FEW = 3;  // measured: for more rows, packing a head into panels is worth it

MICRON_INLINE bool few(const Problem& problem) {
  return problem.computed <= FEW && problem.batch * problem.heads * problem.computed >= LANES;
}

template <class T>
MICRON_INLINE vfloat load_up_to(const T* from, int64_t count) {
  return count >= LANES ? load(from) : load_some(from, count);
}
MICRON_INLINE void store_up_to(float* to, vfloat x, int64_t count) {
  if (count >= LANES) return store(to, x);
  memcpy(to, &x, static_cast<size_t>(count) * sizeof(float));
}

// LANES rows: the slots [first, first + LANES) of (B, H, K), the last one again where there are no more.
template <class T>
struct Slots {
  const Problem& problem;
  const T* query[LANES];
  const T* keys[LANES];
  const bool* kept[LANES];  // of the keys
  int32_t position[LANES];

  // `zeros` is a row of them, for a query that is masked.
  Slots(const Problem& of, int64_t first, const T* zeros) : problem(of) {
    for (int i = 0; i < LANES; ++i) {
      const int64_t at = at_most(of.batch * of.heads * of.computed - 1, first + i);
      const Head<T> head(of, at / of.computed);
      const int64_t n = head.position(at % of.computed);
      query[i] = head.masked(n) ? zeros : head.query(n);
      keys[i] = row_of<T>(of.key, head.b, head.h, 0);
      kept[i] = of.key_mask == nullptr ? nullptr : of.key_mask + head.b * of.length;
      position[i] = static_cast<int32_t>(n);
    }
  }

  // scale · q·k_j, −inf where the key is not kept.
  MICRON_INLINE vfloat scores(int64_t j) const {
    const int64_t width = problem.key.width, offset = j * problem.key.stride_n;
    vfloat x[LANES] = {};
    int64_t e = 0;
    for (; e + LANES <= width; e += LANES) {
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) x[i] = fma(load(query[i] + e), load(keys[i] + offset + e), x[i]);
    }
    if (e < width) {
      for (int i = 0; i < LANES; ++i) {
        x[i] = fma(load_some(query[i] + e, width - e), load_some(keys[i] + offset + e, width - e), x[i]);
      }
    }
    transpose(x);
#pragma GCC unroll 4
    for (int half = LANES / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < half; ++i) x[i] += x[i + half];
    }
    vfloat s = problem.scale * x[0];
    if (problem.key_mask != nullptr) {
      for (int i = 0; i < LANES; ++i) s[i] = kept[i][j] ? s[i] : -__builtin_inff();
    }
    return s;
  }
};

template <class T>
T* take_zeros(Workspace& workspace, int64_t width) {
  T* zeros = workspace.take<T>(width);
  zero(zeros, width);
  return zeros;
}

template <class T>
void forward_few(const Forward& problem) {
  const int64_t length = problem.length, computed = problem.computed, width = problem.key.width;
  const int64_t slots = problem.batch * problem.heads * computed;
  const int64_t grain = 1 + (1 << 13) / ((length + 1) * (width + 32));
  parallel(divide_up(slots, LANES), grain, [&](int64_t begin, int64_t end) {
    Workspace workspace(length * LANES * sizeof(float) + width * sizeof(T) + 128);
    float* scores = workspace.take<float>(length * LANES);
    const T* zeros = take_zeros<T>(workspace, width);
    for (int64_t first = begin * LANES; first < at_most(slots, end * LANES); first += LANES) {
      const Slots<T> rows(problem, first, zeros);
      const vint position = load_bits<vint>(rows.position);
      vfloat maximum[1] = {broadcast(LOWEST)}, sum[1] = {}, diagonal{};
      for (int64_t j = 0; j < length; ++j) {
        const vfloat s = rows.scores(j);
        store(scores + j * LANES, s);
        diagonal = select(position == broadcast(static_cast<int32_t>(j)), s, diagonal);
        maximum[0] = max(s, maximum[0]);
      }
      exponentials(scores, LANES, length, maximum, sum);
      complete(maximum[0], sum[0], diagonal);
      const int64_t some = slots - first;
      store_up_to(problem.row_max + first, maximum[0], some);
      store_up_to(problem.row_sum + first, sum[0], some);
      for (int64_t i = 0; i < at_most(LANES, some); ++i) {
        const int64_t at = first + i;
        write_row(problem, Head<T>(problem, at / computed), rows.position[i], at, diagonal[i]);
        if (problem.exponentials == nullptr) continue;
        for (int64_t j = 0; j < length; ++j) problem.exponentials[at * length + j] = scores[j * LANES + i];
      }
    }
  });
}

// Of one head, from dS (times scale): dQ = dS·K and dK = dSᵀ·Q.
template <class T>
void products_of_few(const Backward& problem, const Head<T>& head, const float* d_scores) {
  const int64_t length = problem.length, width = problem.key.width, computed = problem.computed;
  const int64_t index = head.b * problem.heads + head.h;
  const T* query[FEW];
  float* d_query[FEW];
  for (int64_t row = 0; row < computed; ++row) {
    const int64_t n = head.position(row);
    query[row] = head.query(n);
    d_query[row] = problem.d_query == nullptr ? nullptr : problem.d_query + (index * length + n) * width;
    if (d_query[row] != nullptr && problem.rows == nullptr) zero(d_query[row], width);
  }
  for (int64_t j = 0; j < length; ++j) {
    const T* key = head.key(j);
    for (int64_t e = 0; e < width; e += LANES) {
      const int64_t some = width - e;
      const vfloat k = key == nullptr ? vfloat{} : load_up_to(key + e, some);
      vfloat sum{};
      for (int64_t row = 0; key != nullptr && row < computed; ++row) {
        if (query[row] == nullptr) continue;
        const vfloat d = broadcast(d_scores[row * length + j]);
        sum = fma(d, load_up_to(query[row] + e, some), sum);
        if (d_query[row] == nullptr) continue;
        float* to = d_query[row] + e;
        store_up_to(to, fma(d, k, load_up_to(to, some)), some);
      }
      if (problem.d_key != nullptr) store_up_to(problem.d_key + (index * length + j) * width + e, sum, some);
    }
  }
}

// dQ and dK; `products` (B, H, K): v_i·dO_i.
template <class T>
void backward_few(const Backward& problem, const float* products) {
  const int64_t length = problem.length, computed = problem.computed, width = problem.key.width;
  const int64_t heads = problem.batch * problem.heads;
  const int64_t grain = 1 + (1 << 11) / ((computed * length + 1) * (width + 32));
  parallel(divide_up(heads, LANES), grain, [&](int64_t begin, int64_t end) {
    Workspace workspace(LANES * computed * length * sizeof(float) + width * sizeof(T) + 128);
    float* d_scores = workspace.take<float>(LANES * computed * length);
    const T* zeros = take_zeros<T>(workspace, width);
    for (int64_t index = begin * LANES; index < at_most(heads, end * LANES); index += LANES) {
      const int64_t first = index * computed, slots = at_most(LANES, heads - index) * computed;
      for (int64_t slot = 0; problem.exponentials == nullptr && slot < slots; slot += LANES) {
        const Slots<T> rows(problem, first + slot, zeros);
        const int64_t some = at_most(LANES, slots - slot);
        const vfloat maximum = load_up_to(problem.row_max + first + slot, some);
        for (int64_t j = 0; j < length; ++j) {
          const vfloat e = exp(rows.scores(j) - maximum);
          for (int64_t i = 0; i < some; ++i) d_scores[(slot + i) * length + j] = e[i];
        }
      }
      for (int64_t slot = 0; slot < slots; ++slot) {
        const int64_t at = first + slot;
        const Head<T> head(problem, at / computed);
        const int64_t n = head.position(at % computed);
        float* to = d_scores + slot * length;
        if (head.masked(n)) {
          zero(to, length);
          continue;
        }
        const RowGradient of_row(problem, head.weight(n), at, products[at]);
        const float* from = problem.exponentials == nullptr ? to : problem.exponentials + at * length;
        map(length, to, [&](vfloat e) { return of_row.slope * e; }, from);
        to[n] = of_row.diagonal;
      }
      for (int64_t i = 0; i * computed < slots; ++i) {
        products_of_few(problem, Head<T>(problem, index + i), d_scores + i * computed * length);
      }
    }
  });
}

// One row and one key: P is 1 where their score is finite, and does not change with it.
MICRON_INLINE bool is_one(const Problem& problem) { return problem.length == 1 && problem.computed == 1; }

template <class T>
void forward_one(const Forward& problem) {
  const int64_t width = problem.key.width, grain = 1 + (1 << 13) / (width + 32);
  parallel(problem.batch * problem.heads, grain, [&](int64_t begin, int64_t end) {
    Head<T> head(problem, begin);
    for (int64_t at = begin; at < end; ++at, head.next()) {
      const bool masked = head.masked(0);
      const float score = masked ? -__builtin_inff() : problem.scale * dot(width, head.query(0), head.key(0));
      const float p = score == -__builtin_inff() ? 0 : score - score + 1;  // NaN of NaN and of infinity
      problem.row_max[at] = p == 0 ? 0 : score;
      problem.row_sum[at] = p == 0 ? 1 : p;
      if (problem.exponentials != nullptr) problem.exponentials[at] = p;
      write_row(problem, head, 0, at, p);
    }
  });
}

// dQ and dK; `products` (B, H, 1): v_i·dO_i.
template <class T>
void backward_one(const Backward& problem, const float* products) {
  const int64_t width = problem.key.width, grain = 1 + (1 << 13) / (width + 32);
  parallel(problem.batch * problem.heads, grain, [&](int64_t begin, int64_t end) {
    Head<T> head(problem, begin);
    for (int64_t at = begin; at < end; ++at, head.next()) {
      const T *query = head.query(0), *key = head.key(0);  // null where masked
      const float d = query == nullptr ? 0 : RowGradient(problem, head.weight(0), at, products[at]).diagonal;
      const auto multiple = [&](const T* of, float* gradients) {
        if (gradients == nullptr) return;
        float* to = gradients + at * width;
        of == nullptr ? zero(to, width) : map(width, to, [=](vfloat x) { return d * x; }, of);
      };
      multiple(key, problem.d_query);
      multiple(query, problem.d_key);
    }
  });
}

}  // namespace micron::diagonal_attention::MICRON_INSTRUCTION_SET
