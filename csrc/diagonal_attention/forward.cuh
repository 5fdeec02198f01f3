// Forward for Hopper: the scores of a block of rows, tile by tile of keys, under a running maximum and sum.
#pragma once

#include "scores.cuh"

namespace micron::diagonal_attention {

template <class T>
struct Forward {
  Product<T> product;
  TensorMap value_map;
  Rows<T> value;  // gathered, row by row, where there are `rows`
  const float* row_weight;
  int64_t weight_b, weight_h, weight_n;
  T* out;  // rows of value.width
  float *weights, *row_max, *row_sum;
};

#ifdef MICRON_HOPPER

// One exponential of so many is left to exp2_by_fma, none for 0. Up to 64 columns exponentials keep their units busy for
// longer than all else takes: 34 for 32 scores and two rows, of which 30 remain.
template <int CHUNKS>
constexpr int BY_FMA = CHUNKS == 1 ? 8 : 0;

// Of the two rows of a thread, over the columns that it has seen: the highest score, unscaled, and the sum of the
// exponentials under it. `scale` is positive, in units of log 2.
struct Statistics {
  float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  template <int EVERY, int COUNT>  // of which one is left to exp2_by_fma
  __device__ void add(const float (&scores)[COUNT], float scale) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float highest = maximum[r];
#pragma unroll
      for (int i = 0; i < COUNT / 2; ++i) highest = fmaxf(highest, scores[i / 2 * 4 + r * 2 + i % 2]);
      const float base = finite(highest), offset = -base * scale;
      float parts[4] = {sum[r] * exp2_of((maximum[r] - base) * scale), 0, 0, 0};  // short chains of additions
#pragma unroll
      for (int i = 0; i < COUNT / 2; ++i) {
        const float x = fmaf(scores[i / 2 * 4 + r * 2 + i % 2], scale, offset);
        parts[i % 4] += EVERY > 0 && i % max(EVERY, 1) == EVERY - 1 ? exp2_by_fma(x) : exp2_of(x);
      }
      maximum[r] = highest, sum[r] = (parts[0] + parts[1]) + (parts[2] + parts[3]);
    }
  }

  __device__ void merge(int r, float other_maximum, float other_sum, float scale) {
    const float highest = fmaxf(maximum[r], other_maximum), base = finite(highest);
    sum[r] = sum[r] * exp2_of((maximum[r] - base) * scale) + other_sum * exp2_of((other_maximum - base) * scale);
    maximum[r] = highest;
  }

  // 0 where every score so far is masked.
  static __device__ float finite(float highest) { return highest == -INFINITY ? 0.f : highest; }
};

// p_ii of this thread's rows, and to shared memory w_i p_ii, what each row of value is multiplied by.
template <class T, int CHUNKS>
__device__ void weigh_rows(const Forward<T>& p, const TileShared<CHUNKS>& shared, Ring<CHUNKS>& ring,
                           const Work& work) {
  const Shape& shape = p.product.shape;
  const int first_slot = work.first_row;
  const float scale = shape.positive_scale_log2();
  const int row = Holder::row(), lane = threadIdx.x % 32;
  Statistics statistics;
  float own[2] = {0, 0};  // the score on the diagonal, where this thread holds it
  const int tiles = (shape.length + TILE_KEYS - 1) / TILE_KEYS, first_of_group = first_slot + group_of_thread() * 64;
  const auto add_part = [&](auto& scores, int first_key) {
    constexpr int COUNT = std::extent_v<std::remove_reference_t<decltype(scores)>>, KEYS = 2 * COUNT;
    if (shape.scale_log2 < 0) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) scores[i] = -scores[i];
    }
    const bool holds_diagonal =
        shape.rows != nullptr || (first_key < first_of_group + 64 && first_of_group < first_key + KEYS);
    if (holds_diagonal) {
      const int position[2] = {shared.position[row] - first_key, shared.position[row + 8] - first_key};
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        if (Holder::column(i) == position[i / 2 % 2]) own[i / 2 % 2] = scores[i];
      }
    }
    if (shape.key_mask != nullptr || first_key + KEYS > shape.length) {
      const Visible<KEYS> visible(shape, work.batch, first_key);
#pragma unroll
      for (int i = 0; i < COUNT; ++i) scores[i] = visible.sees(i) ? scores[i] : -INFINITY;
    }
    // What is divided by the sum is in it to the last bit: p of one key is 1.
    if (BY_FMA<CHUNKS> == 0 || holds_diagonal) statistics.add<0>(scores, scale);
    else statistics.add<BY_FMA<CHUNKS>>(scores, scale);
  };
  Parts<T, CHUNKS> parts(p.product, shared, ring);
  if (first_of_group < shape.computed) parts.for_each(0, tiles, add_part);
  else parts.skip(0, tiles);
  arrive_warp(shared.query_free);

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    for (int bits = 1; bits < 4; bits *= 2) {  // the four threads of a row
      const float maximum = __shfl_xor_sync(0xffffffffu, statistics.maximum[r], bits);
      statistics.merge(r, maximum, __shfl_xor_sync(0xffffffffu, statistics.sum[r], bits), scale);
      own[r] += __shfl_xor_sync(0xffffffffu, own[r], bits);
    }
    const int position = shared.position[row + 8 * r];
    const bool there = position >= 0;
    const float offset = there ? -Statistics::finite(statistics.maximum[r]) * scale : 0.f;
    const float sum = there && statistics.sum[r] != 0 ? statistics.sum[r] : 1.f;
    const float weight = there ? exp2_of(fmaf(own[r], scale, offset)) / sum : 0.f;
    const int slot = first_slot + row + 8 * r;
    if (lane % 4 == 0) {
      float factor = weight;
      if (there && p.row_weight != nullptr) {
        factor *= p.row_weight[work.batch * p.weight_b + work.head * p.weight_h + position * p.weight_n];
      }
      shared.factor[row + 8 * r] = factor;
      if (slot < shape.computed) {
        const int64_t index = int64_t{work.head_index} * shape.computed + slot;
        p.weights[index] = weight, p.row_max[index] = -offset, p.row_sum[index] = sum;
      }
    }
  }
  __syncwarp();
}

// A factor times eight elements; 0 where there is no row, whatever they hold.
template <class T>
__device__ Eight<T> scaled(const Eight<T>& x, float factor, bool there) {
  float result[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) result[i] = there ? factor * x[i] : 0.f;
  return Eight<T>::of(result);
}

// out_i = w_i p_ii v_i of the 16 rows of a warp. The rows of value come through the ring, behind the keys.
template <class T, int CHUNKS>
__device__ void write_rows(const Forward<T>& p, const TileShared<CHUNKS>& shared, Ring<CHUNKS>& ring,
                           const Work& work) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first_slot = work.first_row;
  T* out = p.out + (int64_t{work.head_index} * p.product.shape.computed + first_slot) * p.value.width;
  for (int column = lane % 8 * 8; column - lane % 8 * 8 < p.value.width; column += CHUNK) {
    cuda::barrier_wait(&shared.full[ring.stage], ring.round);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = warp * 16 + i * 4 + lane / 8;
      const auto value = Eight<T>::load(
          reinterpret_cast<const T*>(shared.stage(ring) + cuda::swizzled(row, lane % 8 * 16)));
      if (first_slot + row < p.product.shape.computed && column < p.value.width) {
        scaled(value, shared.factor[row], shared.position[row] >= 0).store(out + int64_t{row} * p.value.width + column);
      }
    }
    __syncwarp();
    arrive_warp(&shared.empty[ring.stage]);
    ring.next();
  }
}

// The same with rows of value that are gathered.
template <class T, int CHUNKS>
__device__ void gather_rows(const Forward<T>& p, const TileShared<CHUNKS>& shared, const Work& work) {
  constexpr int IN_FLIGHT = 4;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, vectors = p.value.width / 8, first_slot = work.first_row;
  T* out = p.out + (int64_t{work.head_index} * p.product.shape.computed + first_slot) * p.value.width;
  for (int first = lane; first < 16 * vectors; first += 32 * IN_FLIGHT) {
    Eight<T> value[IN_FLIGHT];
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; ++i) {
      const int index = first + 32 * i, n = index < 16 * vectors ? shared.position[warp * 16 + index / vectors] : -1;
      value[i] = n < 0 ? Eight<T>{} : Eight<T>::load(p.value.row(work.batch, work.head, n) + index % vectors * 8);
    }
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; ++i) {
      const int index = first + 32 * i, row = warp * 16 + index / vectors;
      if (index >= 16 * vectors || first_slot + row >= p.product.shape.computed) continue;
      scaled(value[i], shared.factor[row], shared.position[row] >= 0)
          .store(out + int64_t{row} * p.value.width + index % vectors * 8);
    }
  }
}

#endif

template <class T, int CHUNKS>
__global__ void __launch_bounds__(TILE_THREADS, SHARES_SM<CHUNKS> ? 2 : 1)
    forward_kernel(const __grid_constant__ Forward<T> p) {
#ifdef MICRON_HOPPER
  MICRON_DYNAMIC_SHARED(memory);
  const Shape& shape = p.product.shape;
  const TileShared<CHUNKS> shared(memory, p.product.chunks);
  const auto work_of = [&](int index) {
    return Work::of(index, shape.batch * shape.heads, shape.computed, shape.heads);
  };
  make_barriers(shared);
  Ring<CHUNKS> ring;
  if (group_of_thread() < 2) {
    for (int index = blockIdx.x; index < p.product.works; index += gridDim.x) {
      const Work work = work_of(index);
      prepare_rows(p.product, shared, work);
      weigh_rows(p, shared, ring, work);
      if (shape.rows == nullptr) write_rows(p, shared, ring, work);
      else gather_rows(p, shared, work);
    }
  } else if (threadIdx.x == 256) {
    const int tiles = (shape.length + TILE_KEYS - 1) / TILE_KEYS;
    uint32_t count = 0;
    for (int index = blockIdx.x; index < p.product.works; index += gridDim.x) {
      const Work work = work_of(index);
      stream_keys(p.product, shared, ring, work, 0, tiles, count++);
      for (int chunk = 0; shape.rows == nullptr && chunk * CHUNK < p.value.width; ++chunk) {
        stream_box(shared, ring, &p.value_map, chunk, work.first_row, work.head, work.batch);
        ring.next();
      }
    }
  }
#endif
}

}  // namespace micron::diagonal_attention
