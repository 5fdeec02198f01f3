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
__device__ inline uint4 gather_quad(uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  // First neighbours exchange what lies across the diagonals of 2 × 2 blocks, then pairs exchange blocks.
  const uint32_t a = __shfl_xor_sync(0xffffffffu, odd ? w0 : w1, 1);
  const uint32_t b = __shfl_xor_sync(0xffffffffu, odd ? w2 : w3, 1);
  if (odd) w0 = a, w2 = b;
  else w1 = a, w3 = b;
  const uint32_t c = __shfl_xor_sync(0xffffffffu, high ? w0 : w2, 2);
  const uint32_t d = __shfl_xor_sync(0xffffffffu, high ? w1 : w3, 2);
  return {high ? c : w0, high ? d : w1, high ? w2 : c, high ? w3 : d};
}

template <class T, int CHUNKS>
__device__ void write_score_gradients(const ScoreGradients<T>& p, const TileShared<CHUNKS>& shared,
                                      Ring<CHUNKS>& ring, const Work& work, int first_tile, int last_tile) {
  const Shape& shape = p.product.shape;
  const int row = work.first_row + Holder::row(), thread = threadIdx.x % 4;
  const int first_of_group = work.first_row + group_of_thread() * 64;
  const auto write_part = [&](auto& scores, int first_key) {
    constexpr int COUNT = std::extent_v<std::remove_reference_t<decltype(scores)>>, KEYS = 2 * COUNT;
    float offset[2], f[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {  // rows beyond the last one are not written
      const int64_t at = int64_t{work.head_index} * shape.length + min(row + 8 * r, shape.length - 1);
      offset[r] = -p.row_max[at], f[r] = -p.f[at];
    }
    const int64_t first = int64_t{work.head_index - p.first_head} * shape.length + row;
    T* to = p.d_scores + first * p.row + first_key + thread * 8;
#pragma unroll
    for (int i = 0; i < COUNT; i += 16) {  // four times eight columns of two rows
      uint32_t pairs[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        T pair[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float score = scores[i + 2 * j + e];
          pair[e] = static_cast<T>(f[j % 2] * exp2_of(fmaf(score, shape.scale_log2, offset[j % 2])));
        }
        memcpy(&pairs[j], pair, 4);
      }
      const bool inside = first_key + i * 2 + thread * 8 < p.row;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const Eight<T> eight{gather_quad(pairs[r], pairs[2 + r], pairs[4 + r], pairs[6 + r])};
        if (inside && row + 8 * r < shape.length) eight.store(to + r * 8 * p.row);
      }
      to += 32;
    }
    if (first_key <= first_of_group && first_of_group < first_key + KEYS) {
      __syncwarp();  // the diagonal goes over what lies there
      const int lane = threadIdx.x % 32, n = work.first_row + threadIdx.x / 32 * 16 + lane;
      if (lane < 16 && n < shape.length) {
        const int64_t head = work.head_index - p.first_head;
        p.d_scores[(head * shape.length + n) * p.row + n] =
            static_cast<T>(p.c[int64_t{work.head_index} * shape.length + n]);
      }
    }
  };
  Parts<T, CHUNKS> parts(p.product, shared, ring);
  if (first_of_group < shape.length) parts.for_each(first_tile, last_tile, write_part);
  else parts.skip(first_tile, last_tile);
  arrive_warp(shared.query_free);
}

#endif

template <class T, int CHUNKS>
__global__ void __launch_bounds__(TILE_THREADS, SHARES_SM<CHUNKS> ? 2 : 1)
    score_gradients_kernel(const __grid_constant__ ScoreGradients<T> p) {
#ifdef MICRON_HOPPER
  MICRON_DYNAMIC_SHARED(memory);
  const Shape& shape = p.product.shape;
  const TileShared<CHUNKS> shared(memory, p.product.chunks);
  const int tiles = (shape.length + TILE_KEYS - 1) / TILE_KEYS;
  const auto work_of = [&](int index) {
    return Work::of(index / p.splits, p.heads, shape.length, shape.heads, p.first_head);
  };
  const auto tile_of = [&](int split) { return split * tiles / p.splits; };
  make_barriers(shared);
  Ring<CHUNKS> ring;
  if (group_of_thread() < 2) {
    for (int index = blockIdx.x; index < p.product.works; index += gridDim.x) {
      const int split = index % p.splits;
      write_score_gradients(p, shared, ring, work_of(index), tile_of(split), tile_of(split + 1));
    }
  } else if (threadIdx.x == 256) {
    uint32_t count = 0;
    for (int index = blockIdx.x; index < p.product.works; index += gridDim.x) {
      const int split = index % p.splits;
      stream_keys(p.product, shared, ring, work_of(index), tile_of(split), tile_of(split + 1), count++);
    }
  }
#endif
}

}  // namespace micron::diagonal_attention
