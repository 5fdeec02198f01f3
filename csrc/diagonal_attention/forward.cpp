// Compiled once for every instruction set. Formulas: micron_kernels/diagonal_attention/reference.py.
#include <math.h>

#include "head.h"

namespace micron::diagonal_attention::MICRON_INSTRUCTION_SET {
namespace {

constexpr float LOWEST = -0x1.fffffep127f;
constexpr int64_t LANES_BYTES = 256 << 10;  // of packed query rows a thread holds: they stay in its L2 cache

// The running softmax of PANEL rows.
struct Panel {
  Lanes lanes;
  vfloat maximum[VECTORS], sum[VECTORS], diagonal[VECTORS];
};

template <int V, class T>
__attribute__((noinline)) void attend(Panel& panel, const Keys<T>& keys, const Word<T>* lanes, int64_t width,
                                      float scale) {
  Sums s;
  scores<V>(s, keys, lanes, width, scale);
  if (panel.lanes.meets(keys.first)) {
#pragma GCC unroll 16
    for (int i = 0; i < TILE; ++i) {
      const vint key = broadcast(static_cast<int32_t>(keys.first + i));
      for (int v = 0; v < V; ++v) {
        panel.diagonal[v] = select(panel.lanes.position[v] == key, s.at[i][v], panel.diagonal[v]);
      }
    }
  }
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    vfloat maximum = panel.maximum[v];
#pragma GCC unroll 16
    for (int i = 0; i < TILE; ++i) maximum = max(s.at[i][v], maximum);
    vfloat sum{};
#pragma GCC unroll 16
    for (int i = 0; i < TILE; ++i) sum += exp(s.at[i][v] - maximum);
    panel.sum[v] = fma(panel.sum[v], exp(panel.maximum[v] - maximum), sum);
    panel.maximum[v] = maximum;
  }
}

template <class T>
void finish(const Forward& problem, const Head<T>& head, const Panel& panel, int64_t first) {
  float maximum[PANEL], sum[PANEL], diagonal[PANEL];
  memcpy(maximum, panel.maximum, sizeof(maximum));
  memcpy(sum, panel.sum, sizeof(sum));
  memcpy(diagonal, panel.diagonal, sizeof(diagonal));
  for (int lane = 0; lane < PANEL && first + lane < problem.computed; ++lane) {
    const int64_t n = head.position(first + lane), at = head.statistics(first + lane), width = problem.value.width;
    T* out = static_cast<T*>(problem.out) + at * width;
    problem.row_max[at] = sum[lane] == 0 ? 0 : maximum[lane];
    problem.row_sum[at] = sum[lane] == 0 ? 1 : sum[lane];
    if (head.masked(n)) {
      problem.weights[at] = 0;
      zero(out, width);
      continue;
    }
    const float p = expf(diagonal[lane] - maximum[lane]) / sum[lane], factor = head.weight(n) * p;
    problem.weights[at] = p;
    map(width, out, [=](vfloat x) { return factor * x; }, row_of<T>(problem.value, head.b, head.h, n));
  }
}

// Panels [begin, end) of one head: each key is packed once for all of them.
template <class T>
void forward_panels(const Forward& problem, const Head<T>& head, int64_t begin, int64_t end, Panel* panels,
                    Word<T>* packed_lanes, Keys<T>& keys) {
  const int64_t width = problem.query.width, step = words(width, packed_lanes) * PANEL;
  for (int64_t i = begin; i < end; ++i) {
    Panel& panel = panels[i - begin];
    panel.lanes.pack(head, i * PANEL, packed_lanes + (i - begin) * step);
    for (int v = 0; v < VECTORS; ++v) {
      panel.maximum[v] = broadcast(LOWEST);
      panel.sum[v] = panel.diagonal[v] = vfloat{};
    }
  }
  for (int64_t key = 0; key < problem.length; key += TILE) {
    keys.pack(head, key);
    for (int64_t i = 0; i < end - begin; ++i) {
      const auto attend_to = panels[i].lanes.narrow ? attend<1, T> : attend<VECTORS, T>;
      attend_to(panels[i], keys, packed_lanes + i * step, width, problem.scale);
    }
  }
  for (int64_t i = begin; i < end; ++i) finish(problem, head, panels[i - begin], i * PANEL);
}

template <class T>
void forward_of(const Forward& problem) {
  const int64_t width = problem.query.width;
  const int64_t panels = divide_up(problem.computed, PANEL);
  const int64_t lanes = words(width, static_cast<Word<T>*>(nullptr)) * PANEL;
  const int64_t fitting = LANES_BYTES / (lanes * static_cast<int64_t>(sizeof(Word<T>)) + 1);
  const int64_t together = fitting < 1 ? 1 : fitting > 16 ? 16 : fitting;
  parallel(problem.batch * problem.heads * panels, 1, [&](int64_t begin, int64_t end) {
    Workspace workspace(together * (lanes * sizeof(Word<T>) + sizeof(Panel) + 128) +
                        Keys<T>::size(width) * sizeof(Word<T>));
    Panel* state = workspace.take<Panel>(together);
    Word<T>* packed = workspace.take<Word<T>>(together * lanes);
    Keys<T> keys;
    keys.packed = workspace.take<Word<T>>(Keys<T>::size(width));
    while (begin < end) {
      const int64_t index = begin / panels, first = begin % panels;
      int64_t count = end - begin < panels - first ? end - begin : panels - first;
      if (count > together) count = together;
      const Head<T> head{problem, index / problem.heads, index % problem.heads};
      forward_panels(problem, head, first, first + count, state, packed, keys);
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
