// dS for Hopper, stored, so that dQ = scale · dS K and dK = scale · dSᵀ Q are products of matrices for a library. The
// formulas, and f and c, are those of micron_kernels/diagonal_attention/triton_kernels.py.
#pragma once

#include "scores.cuh"

namespace micron::diagonal_attention {

// A work is split further: each split has some of the tiles of keys.
template <class T>
struct ScoreGradients {
  Product<T> product;
  const float *row_max, *f, *c;  // (B, H, N)
  T* d_scores;                   // (heads, N, row): of the heads from first_head on
  int row, heads, first_head, splits;
};

#ifdef MICRON_HOPPER

// Of four words that each of four neighbouring threads holds, word t of all of them goes to thread t.
__device__ inline uint4 gather_quad(const uint32_t (&words)[4]) {
  const int thread = threadIdx.x % 4;
  const bool odd = thread & 1, high = thread & 2;
  // Neighbours exchange what lies in the other's column of 2 × 2 blocks, then pairs do.
  const uint32_t a = __shfl_xor_sync(0xffffffffu, odd ? words[0] : words[1], 1);
  const uint32_t b = __shfl_xor_sync(0xffffffffu, odd ? words[2] : words[3], 1);
  const uint32_t w0 = odd ? a : words[0], w1 = odd ? words[1] : a, w2 = odd ? b : words[2], w3 = odd ? words[3] : b;
  const uint32_t c = __shfl_xor_sync(0xffffffffu, high ? w0 : w2, 2);
  const uint32_t d = __shfl_xor_sync(0xffffffffu, high ? w1 : w3, 2);
  return high ? uint4{c, d, w2, w3} : uint4{w0, w1, c, d};
}

template <class T, int STAGES>
__device__ void write_score_gradients(const ScoreGradients<T>& p, const TileShared<STAGES>& shared,
                                      Ring<STAGES>& ring, const Work& work, int first_tile, int last_tile,
                                      bool is_first) {
  const Shape& shape = p.product.shape;
  const int row = work.first_row + Holder::row(), thread = threadIdx.x % 4;
  float offset[2], f[2], c[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int n = min(row + 8 * r, shape.length - 1);
    const int64_t at = int64_t{work.head_index} * shape.length + n;
    offset[r] = -p.row_max[at], f[r] = p.f[at], c[r] = p.c[at];
  }
  for_tiles(shape.length, first_tile, last_tile, [&](auto keys, int tile) {
    constexpr int COUNT = decltype(keys)::count / 2;
    float scores[COUNT];
    scores_of_tile<decltype(keys)::count>(p.product, shared, ring, is_first && tile == first_tile, scores);
    const int first_key = tile * TILE_KEYS;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int r = i / 2 % 2;
      scores[i] = -f[r] * exp2_of(fmaf(scores[i], shape.scale_log2, offset[r]));
      if (first_key + Holder::column(i) == row + 8 * r) scores[i] = c[r];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      T* to = p.d_scores + (int64_t{work.head_index - p.first_head} * shape.length + row + 8 * r) * p.row + first_key;
#pragma unroll
      for (int i = 0; i < COUNT; i += 16) {  // four columns of eight
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const T pair[2] = {static_cast<T>(scores[i + j * 4 + r * 2]), static_cast<T>(scores[i + j * 4 + r * 2 + 1])};
          memcpy(&words[j], pair, 4);
        }
        const uint4 eight = gather_quad(words);
        const int column = i / 4 * 8 + thread * 8;
        if (row + 8 * r < shape.length && first_key + column < p.row) *reinterpret_cast<uint4*>(to + column) = eight;
      }
    }
  });
  arrive_warp(shared.query_free);
}

#endif

template <class T, int STAGES>
__global__ void __launch_bounds__(TILE_THREADS, SHARES_SM<STAGES> ? 2 : 1)
    score_gradients_kernel(const __grid_constant__ ScoreGradients<T> p) {
#ifdef MICRON_HOPPER
  MICRON_DYNAMIC_SHARED(memory);
  const Shape& shape = p.product.shape;
  const TileShared<STAGES> shared(memory, p.product.chunks);
  const int first = static_cast<int>(blockIdx.x), step = static_cast<int>(gridDim.x);
  const int tiles = (shape.length + TILE_KEYS - 1) / TILE_KEYS;
  const auto work_of = [&](int index) {
    return Work::of(index / p.splits, p.heads, shape.length, shape.heads, p.first_head);
  };
  const auto tile_of = [&](int split) { return split * tiles / p.splits; };
  make_barriers(shared);
  Ring<STAGES> ring;
  if (threadIdx.x < 256) {
    for (int index = first; index < p.product.works; index += step) {
      const int split = index % p.splits;
      write_score_gradients(p, shared, ring, work_of(index), tile_of(split), tile_of(split + 1), index == first);
    }
  } else if (threadIdx.x == 256) {
    uint32_t count = 0;
    for (int index = first; index < p.product.works; index += step) {
      const int split = index % p.splits;
      stream_keys(p.product, shared, ring, work_of(index), tile_of(split), tile_of(split + 1), count++);
    }
  }
#endif
}

}  // namespace micron::diagonal_attention
