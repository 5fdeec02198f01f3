// Compiled once for every instruction set. Formulas: micron_kernels/poi_topk/reference.py.
#include "kernel.h"

#include "../cpu/vec.h"

namespace micron::poi_topk::MICRON_INSTRUCTION_SET {

using namespace ::micron::MICRON_INSTRUCTION_SET;

namespace {

template <class T>
MICRON_INLINE float score_of(const Scores& scores, int64_t b, int64_t n) {
  return to_float(static_cast<const T*>(scores.data)[b * scores.stride_b + n * scores.stride_n]);
}

float score(const Scores& scores, int64_t b, int64_t n) {
  switch (scores.dtype) {
    case Dtype::bfloat16:
      return score_of<bfloat16>(scores, b, n);
    case Dtype::float16:
      return score_of<float16>(scores, b, n);
    default:
      return score_of<float>(scores, b, n);
  }
}

template <class T>
void load_scores(const Scores& scores, int64_t b, int64_t length, float* to) {
  if (scores.stride_n == 1) {
    map(length, to, [](vfloat x) { return x; }, static_cast<const T*>(scores.data) + b * scores.stride_b);
  } else {
    for (int64_t n = 0; n < length; ++n) to[n] = score_of<T>(scores, b, n);
  }
}

// Integers in the order of the scores: −0 equals 0, NaN comes below −inf.
void order(int64_t length, const float* scores, int32_t* keys) {
  for (int64_t n = 0; n < length; ++n) {
    const float x = scores[n] + 0.0f;
    const int32_t bits = bits_as<int32_t>(x), ordered = bits < 0 ? bits ^ 0x7fffffff : bits;
    keys[n] = x != x ? INT32_MIN : ordered;
  }
}

int32_t count_at_least(int64_t length, const int32_t* keys, int32_t bound) {
  int32_t count = 0;
  for (int64_t n = 0; n < length; ++n) count += keys[n] >= bound;
  return count;
}

// A bound that at least k keys reach and fewer than k exceed, bit by bit from the highest.
int32_t threshold(int64_t length, const int32_t* keys, int64_t k) {
  uint32_t bound = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t candidate = bound | (1u << bit);
    const int32_t count = count_at_least(length, keys, static_cast<int32_t>(candidate ^ 0x80000000u));
    if (count >= k) bound = candidate;
    if (count == k) break;
  }
  return static_cast<int32_t>(bound ^ 0x80000000u);
}

void topk_of_row(const TopK& p, int64_t b, float* scores, int32_t* keys, int64_t* kept) {
  switch (p.scores.dtype) {
    case Dtype::bfloat16:
      load_scores<bfloat16>(p.scores, b, p.length, scores);
      break;
    case Dtype::float16:
      load_scores<float16>(p.scores, b, p.length, scores);
      break;
    default:
      load_scores<float>(p.scores, b, p.length, scores);
  }
  order(p.length, scores, keys);
  const int32_t bound = p.k > 0 ? threshold(p.length, keys, p.k) : INT32_MAX;
  const int64_t above = p.k > 0 && bound < INT32_MAX ? count_at_least(p.length, keys, bound + 1) : 0;
  int64_t equal = p.k - above;  // so many of those at the bound are kept, lowest positions first
  if (above > p.k) equal = 0;
  int64_t count = 0;
  for (int64_t n = 0; n < p.length; ++n) {
    const bool tie = (keys[n] == bound) & (equal > 0);
    const bool keep = (keys[n] > bound) | tie;
    equal -= tie;
    kept[count] = n;
    count += keep;
    if (p.mask != nullptr) p.mask[b * p.length + n] = keep;
  }
  copy(p.indices + b * p.k, kept, p.k);
}

constexpr int64_t KEPT_A_TASK = 128;

template <class T>
const T* row(const void* data, int64_t b, int64_t stride_b, int64_t n, int64_t stride_n) {
  return static_cast<const T*>(data) + b * stride_b + n * stride_n;
}

// Calls write(j) for every kept token, and zeroes those that are not kept where the result has all N.
template <class T, class Write>
void for_kept(const Gather& p, bool in_place, T* out, const Write& write) {
  const int64_t tasks = p.k == 0 ? 1 : (p.k + KEPT_A_TASK - 1) / KEPT_A_TASK;
  parallel(p.batch * tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / tasks, first = task % tasks * KEPT_A_TASK;
      const int64_t last = first + KEPT_A_TASK < p.k ? first + KEPT_A_TASK : p.k;
      const int64_t* indices = p.indices + b * p.k;
      T* rows = out + b * (in_place ? p.length : p.k) * p.width;
      int64_t next = first == 0 ? 0 : indices[first - 1] + 1;
      for (int64_t j = first; j < last; ++j) {
        if (in_place) zero(rows + next * p.width, (indices[j] - next) * p.width);
        write(b, j, indices[j], rows + (in_place ? indices[j] : j) * p.width);
        next = indices[j] + 1;
      }
      if (in_place && last == p.k) zero(rows + next * p.width, (p.length - next) * p.width);
    }
  });
}

template <class T>
MICRON_INLINE void write_row(const Gather& p, int64_t b, int64_t n, const T* from, T* to) {
  if (p.scores.data == nullptr) {
    copy(to, from, p.width);
  } else {
    const vfloat factor = broadcast(score(p.scores, b, n));
    map(p.width, to, [=](vfloat x) { return x * factor; }, from);
  }
}

template <class T>
void gather_of(const Gather& p) {
  for_kept(p, p.in_place, static_cast<T*>(p.out), [&](int64_t b, int64_t, int64_t n, T* to) {
    write_row(p, b, n, row<T>(p.tokens, b, p.stride_b, n, p.stride_n), to);
  });
}

template <class T>
void backward_of(const GatherBackward& p) {
  if (p.d_scores != nullptr) zero(p.d_scores, p.batch * p.length);
  for_kept(p, true, static_cast<T*>(p.d_tokens), [&](int64_t b, int64_t j, int64_t n, T* to) {
    const T* grad = row<T>(p.grad, b, p.grad_stride_b, p.in_place ? n : j, p.grad_stride_n);
    write_row(p, b, n, grad, to);
    if (p.d_scores != nullptr) {
      p.d_scores[b * p.length + n] = dot(p.width, row<T>(p.tokens, b, p.stride_b, n, p.stride_n), grad);
    }
  });
}

}  // namespace

void topk(const TopK& p) {
  parallel(p.batch, 1 + 8192 / (p.length + 1), [&](int64_t begin, int64_t end) {
    Workspace workspace((p.length + 1) * (sizeof(float) + sizeof(int32_t) + sizeof(int64_t)) + 192);
    float* scores = workspace.take<float>(p.length);
    int32_t* keys = workspace.take<int32_t>(p.length);
    int64_t* kept = workspace.take<int64_t>(p.length + 1);
    for (int64_t b = begin; b < end; ++b) topk_of_row(p, b, scores, keys, kept);
  });
}

void gather(const Gather& p) {
  switch (p.dtype) {
    case Dtype::bfloat16:
      return gather_of<bfloat16>(p);
    case Dtype::float16:
      return gather_of<float16>(p);
    default:
      return gather_of<float>(p);
  }
}

void backward(const GatherBackward& p) {
  switch (p.dtype) {
    case Dtype::bfloat16:
      return backward_of<bfloat16>(p);
    case Dtype::float16:
      return backward_of<float16>(p);
    default:
      return backward_of<float>(p);
  }
}

}  // namespace micron::poi_topk::MICRON_INSTRUCTION_SET
