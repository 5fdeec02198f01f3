// Forward for Hopper: 128 rows a block, kept in shared memory, against all keys, which a producer warp streams in.
#pragma once

#include "device.cuh"

namespace micron::diagonal_attention {

constexpr int FORWARD_ROWS = 128, FORWARD_KEYS = 128, FORWARD_STAGES = 6;
constexpr int FORWARD_THREADS = 256 + 32;  // two warpgroups of 64 rows, and the producer
constexpr int FORWARD_STAGE_BYTES = FORWARD_KEYS * 128;

template <class T>
struct Forward {
  TensorMap key_map;
  Shape shape;
  Rows<T> query, key, value;
  const float* row_weight;
  int64_t weight_b, weight_h, weight_n;
  T* out;
  float *weights, *row_max, *row_sum;
  int chunks, blocks;  // of 64 columns a row; of 128 rows a head
};

inline size_t forward_shared_bytes(int chunks) {
  return static_cast<size_t>(chunks) * FORWARD_ROWS * 128 + FORWARD_STAGES * (FORWARD_STAGE_BYTES + 16) +
         FORWARD_ROWS * 8;
}

#ifdef MICRON_HOPPER

template <class T>
struct ForwardShared {
  unsigned char *query, *keys;
  uint64_t *full, *empty;
  float* diagonal;
  int* position;

  __device__ ForwardShared(unsigned char* memory, int chunks) {
    query = memory;
    keys = query + chunks * FORWARD_ROWS * 128;
    full = reinterpret_cast<uint64_t*>(keys + FORWARD_STAGES * FORWARD_STAGE_BYTES);
    empty = full + FORWARD_STAGES;
    diagonal = reinterpret_cast<float*>(empty + FORWARD_STAGES);
    position = reinterpret_cast<int*>(diagonal + FORWARD_ROWS);
  }
};

template <class T>
__device__ void stream_keys(const Forward<T>& p, const ForwardShared<T>& shared, int batch, int head) {
  const int steps = (p.shape.length + FORWARD_KEYS - 1) / FORWARD_KEYS * p.chunks;
  for (int step = 0; step < steps; ++step) {
    const int stage = step % FORWARD_STAGES, round = step / FORWARD_STAGES;
    if (round > 0) cuda::barrier_wait(&shared.empty[stage], (round - 1) & 1);
    cuda::barrier_arrive_expect(&shared.full[stage], FORWARD_STAGE_BYTES);
    cuda::tensor_load(shared.keys + stage * FORWARD_STAGE_BYTES, &p.key_map, &shared.full[stage],
                      step % p.chunks * CHUNK, step / p.chunks * FORWARD_KEYS, head, batch);
  }
}

// Running maximum and sum of the two rows of a thread, over the columns that it has seen.
struct Statistics {
  float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  __device__ void add_tile(const float (&scores)[64]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float highest = maximum[r];
#pragma unroll
      for (int i = 0; i < 32; ++i) highest = fmaxf(highest, scores[i / 2 * 4 + r * 2 + i % 2]);
      const float finite = highest == -INFINITY ? 0.f : highest;
      float total = sum[r] * exp2_of(maximum[r] - finite);
#pragma unroll
      for (int i = 0; i < 32; ++i) total += exp2_of(scores[i / 2 * 4 + r * 2 + i % 2] - finite);
      maximum[r] = highest, sum[r] = total;
    }
  }

  __device__ void merge(int r, float other_maximum, float other_sum) {
    const float highest = fmaxf(maximum[r], other_maximum);
    const float finite = highest == -INFINITY ? 0.f : highest;
    sum[r] = sum[r] * exp2_of(maximum[r] - finite) + other_sum * exp2_of(other_maximum - finite);
    maximum[r] = highest;
  }
};

// The scores of 64 rows and 128 keys, over all chunks of columns.
template <class T>
__device__ void scores_of_tile(const Forward<T>& p, const ForwardShared<T>& shared, int group, int tile,
                               float (&scores)[64]) {
  const bool speaks = threadIdx.x % 32 == 0;
#pragma unroll
  for (int i = 0; i < 64; ++i) scores[i] = 0;
  for (int chunk = 0; chunk < p.chunks; ++chunk) {
    const int step = tile * p.chunks + chunk, stage = step % FORWARD_STAGES;
    cuda::barrier_wait(&shared.full[stage], step / FORWARD_STAGES & 1);
    const unsigned char* q = shared.query + (chunk * FORWARD_ROWS + group * 64) * 128;
    const unsigned char* k = shared.keys + stage * FORWARD_STAGE_BYTES;
    cuda::wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      cuda::Wgmma<T, 128, false>::run(scores, cuda::matrix_descriptor(q + i * 32), cuda::matrix_descriptor(k + i * 32));
    }
    cuda::wgmma_commit();
    if (chunk > 0) {  // the products of the chunk before are done: its stage is free
      cuda::wgmma_wait<1>();
      if (speaks) cuda::barrier_arrive(&shared.empty[(step - 1) % FORWARD_STAGES]);
    }
  }
  cuda::wgmma_wait<0>();
  if (speaks) cuda::barrier_arrive(&shared.empty[(tile * p.chunks + p.chunks - 1) % FORWARD_STAGES]);
}

template <class T>
__device__ void attend(const Forward<T>& p, const ForwardShared<T>& shared, int first_slot, int batch, int head,
                       int head_index) {
  const Shape& shape = p.shape;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / 4;
  const int row = warp * 16 + lane / 4;  // of the block; the other row of this thread is 8 below
  const int position[2] = {shared.position[row], shared.position[row + 8]};

  Statistics statistics;
  float scores[64];
  const int tiles = (shape.length + FORWARD_KEYS - 1) / FORWARD_KEYS;
  for (int tile = 0; tile < tiles; ++tile) {
    scores_of_tile(p, shared, group, tile, scores);
#pragma unroll
    for (int i = 0; i < 64; ++i) scores[i] *= shape.scale_log2;
    const int first_key = tile * FORWARD_KEYS;
    const bool holds_diagonal = first_key < first_slot + FORWARD_ROWS && first_slot < first_key + FORWARD_KEYS;
    if (holds_diagonal || first_key + FORWARD_KEYS > shape.length || shape.rows != nullptr ||
        shape.key_mask != nullptr) {
#pragma unroll
      for (int i = 0; i < 64; ++i) {
        const int key = first_key + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (!shape.visible(batch, key) || key == position[i / 2 % 2]) scores[i] = -INFINITY;
      }
    }
    statistics.add_tile(scores);
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    for (int bits = 1; bits < 4; bits *= 2) {
      const float maximum = __shfl_xor_sync(0xffffffffu, statistics.maximum[r], bits);
      statistics.merge(r, maximum, __shfl_xor_sync(0xffffffffu, statistics.sum[r], bits));
    }
    const bool there = position[r] >= 0;
    const float own = there ? shared.diagonal[row + 8 * r] : -INFINITY;
    statistics.merge(r, own, there ? 1.f : 0.f);
    const float maximum = statistics.maximum[r] == -INFINITY ? 0.f : statistics.maximum[r];
    const float sum = statistics.sum[r] == 0 ? 1.f : statistics.sum[r];
    const float weight = there ? exp2_of(own - maximum) / sum : 0.f;
    const int slot = first_slot + row + 8 * r;
    __syncwarp();
    if (lane % 4 == 0) {
      shared.diagonal[row + 8 * r] = weight;
      if (slot < shape.computed) {
        const int64_t index = int64_t{head_index} * shape.computed + slot;
        p.weights[index] = weight, p.row_max[index] = maximum, p.row_sum[index] = sum;
      }
    }
  }
  __syncwarp();

  for (int r = warp * 16; r < warp * 16 + 16; ++r) {  // out_i = w_i p_i v_i
    const int slot = first_slot + r, n = shared.position[r];
    if (slot >= shape.computed) break;
    float factor = shared.diagonal[r];
    if (n >= 0 && p.row_weight != nullptr) {
      factor *= p.row_weight[batch * p.weight_b + head * p.weight_h + n * p.weight_n];
    }
    T* out = p.out + (int64_t{head_index} * shape.computed + slot) * p.value.width;
    const T* value = n < 0 ? nullptr : p.value.row(batch, head, n);
    for (int e = lane; e < p.value.width; e += 32) {
      out[e] = static_cast<T>(n < 0 ? 0.f : factor * static_cast<float>(value[e]));
    }
  }
}

#endif

template <class T>
__global__ void __launch_bounds__(FORWARD_THREADS, 1) forward_kernel(const __grid_constant__ Forward<T> p) {
#ifdef MICRON_HOPPER
  MICRON_DYNAMIC_SHARED(memory);
  const ForwardShared<T> shared(memory, p.chunks);
  const int head_index = blockIdx.x / p.blocks, first_slot = blockIdx.x % p.blocks * FORWARD_ROWS;
  const int batch = head_index / p.shape.heads, head = head_index % p.shape.heads;
  const int thread = threadIdx.x, warp = thread / 32;
  if (thread == 0) {
    for (int i = 0; i < FORWARD_STAGES; ++i) {
      cuda::barrier_init(&shared.full[i], 1);
      cuda::barrier_init(&shared.empty[i], 8);  // warps that consume
    }
    cuda::barrier_init_fence();
  }
  if (thread < FORWARD_ROWS) shared.position[thread] = p.shape.position(batch, first_slot + thread);
  __syncthreads();
  if (warp < 8) {
    load_block(shared.query, p.query, shared.position, FORWARD_ROWS, p.chunks, batch, head, thread, 256);
    for (int r = warp * 16; r < warp * 16 + 16; ++r) {
      const int n = shared.position[r];
      if (n < 0) continue;
      const float product = row_product(p.query.row(batch, head, n), p.key.row(batch, head, n), p.query.width);
      if (thread % 32 == 0) shared.diagonal[r] = product * p.shape.scale_log2;
    }
    cuda::async_proxy_fence();
  }
  __syncthreads();
  if (warp < 8) {
    attend(p, shared, first_slot, batch, head, head_index);
  } else if (thread % 32 == 0) {
    stream_keys(p, shared, batch, head);
  }
#endif
}

}  // namespace micron::diagonal_attention
