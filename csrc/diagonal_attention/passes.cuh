// The two passes of the backward for Hopper, in memory that does not grow with N²: each makes the scores again and
// multiplies them at once. For rows that are gathered, masked ones, and lengths whose scores are not to be stored. The
// formulas, and f and c, are those of micron_kernels/diagonal_attention/triton_kernels.py.
//
// A block has 64 rows in shared memory and two stages of 64 others, whole rows of them: 210 KB at 512 columns. Two
// warpgroups hold the sums, at 512 columns 128 registers a thread of 232, which the producer's warpgroup leaves to them.
// Up to 128 columns the sums are 32 registers, and two blocks share an SM: one multiplies while the other has dS to make.
#pragma once

#include "row_gradients.cuh"

namespace micron::diagonal_attention {

constexpr int PASS_ROWS = 64, PASS_OTHERS = 64, PASS_STAGES = 2;
constexpr int PASS_THREADS = 256 + 128;  // two warpgroups that share the rows, and the producer
template <int CHUNKS>
constexpr int PASS_BLOCKS = CHUNKS <= 2 ? 2 : 1;  // that share an SM
constexpr int PASS_CHUNK_BYTES = 64 * 128;

// One of two passes. QUERIES: rows are slots, the others are keys, and the sums are dQ. Otherwise rows are keys, the
// others are slots, and the sums are dK. A row and an other that are one position meet on the diagonal.
template <class T>
struct Pass {
  TensorMap others_map;  // unused where others are gathered
  bool gathers;          // others by their positions, one by one: with rows, or with a mask
  Shape shape;
  Slots slots;
  Rows<T> query, key;
  const float *row_max, *f, *c;  // f and c by position for QUERIES, by slot otherwise
  T* sums;
  int blocks;  // of 64 rows a head
};

// Columns come in chunks of 64, of which each warpgroup sums CHUNKS / 2, or of one chunk what half of the others add.
inline size_t pass_shared_bytes(int chunks) {
  return static_cast<size_t>(1 + PASS_STAGES) * chunks * PASS_CHUNK_BYTES + 2 * PASS_CHUNK_BYTES +
         (1 + PASS_STAGES) * 64 * 16 + PASS_STAGES * 16;
}

#ifdef MICRON_HOPPER

// What a row or an other brings to dS.
struct Item {
  int position;  // -1 where there is none
  float maximum, f, c;
};

template <class T, int CHUNKS>
struct PassShared {
  static constexpr int TILE_BYTES = CHUNKS * PASS_CHUNK_BYTES;
  unsigned char *rows, *others, *d_scores;
  Item *row_items, *other_items;
  uint64_t *full, *empty;

  __device__ explicit PassShared(unsigned char* memory) {
    rows = memory;
    others = rows + TILE_BYTES;
    d_scores = others + PASS_STAGES * TILE_BYTES;
    row_items = reinterpret_cast<Item*>(d_scores + 2 * PASS_CHUNK_BYTES);
    other_items = row_items + 64;
    full = reinterpret_cast<uint64_t*>(other_items + PASS_STAGES * 64);
    empty = full + PASS_STAGES;
  }
};

template <bool QUERIES, class T>
__device__ Item slot_item(const Pass<T>& p, int batch, int head_index, int slot) {
  const int n = p.shape.position(batch, slot);
  if (n < 0) return {-1, 0, 0, 0};
  const int64_t at = int64_t{head_index} * p.shape.computed + slot;
  const int64_t by = QUERIES ? int64_t{head_index} * p.shape.length + n : at;
  return {n, p.row_max[at], p.f[by], p.c[by]};
}

template <class T>
__device__ Item key_item(const Pass<T>& p, int batch, int key) {
  return {p.shape.visible(batch, key) ? key : -1, 0, 0, 0};
}

template <bool QUERIES, class T, int CHUNKS>
__device__ void stream_others(const Pass<T>& p, const PassShared<T, CHUNKS>& shared, int batch, int head,
                              int head_index) {
  const int count = QUERIES ? p.shape.length : p.shape.computed, thread = threadIdx.x - 256;
  const Rows<T>& from = QUERIES ? p.key : p.query;
  for (int first = 0, tile = 0; first < count; first += PASS_OTHERS, ++tile) {
    const int stage = tile % PASS_STAGES, round = tile / PASS_STAGES;
    if (round > 0) cuda::barrier_wait(&shared.empty[stage], (round - 1) & 1);
    Item* items = shared.other_items + stage * PASS_OTHERS;
    if (thread < PASS_OTHERS) {
      items[thread] =
          QUERIES ? key_item(p, batch, first + thread) : slot_item<QUERIES>(p, batch, head_index, first + thread);
    }
    unsigned char* to = shared.others + stage * PassShared<T, CHUNKS>::TILE_BYTES;
    if (p.gathers) {
      cuda::named_barrier(2, 128);
      for (int i = thread; i < PASS_OTHERS * CHUNKS * 8; i += 128) {
        const int row = i / (CHUNKS * 8), vector = i % (CHUNKS * 8), n = items[row].position;
        const bool there = n >= 0 && vector * 8 < from.width;
        const T* source = there ? from.row(batch, head, n) + vector * 8 : from.data;
        cuda::copy_async(to + vector / 8 * PASS_CHUNK_BYTES + cuda::swizzled(row, vector % 8 * 16), source, there);
      }
      cuda::copy_async_wait();
      cuda::async_proxy_fence();
    } else if (thread == 0) {
      cuda::barrier_arrive_expect(&shared.full[stage], PassShared<T, CHUNKS>::TILE_BYTES);
      for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        cuda::tensor_load(to + chunk * PASS_CHUNK_BYTES, &p.others_map, &shared.full[stage], chunk * CHUNK, first, head,
                          batch);
      }
    }
    cuda::barrier_arrive(&shared.full[stage]);
  }
}

// dS of 64 rows, of which this thread has two, and this warpgroup's half of the others, to shared memory.
template <bool QUERIES, class T, int CHUNKS>
__device__ void d_scores_of_tile(const Pass<T>& p, const PassShared<T, CHUNKS>& shared, const Item (&rows)[2],
                                 int stage, int buffer) {
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const unsigned char* others = shared.others + stage * PassShared<T, CHUNKS>::TILE_BYTES + group * 32 * 128;
  float scores[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) scores[i] = 0;
  cuda::wgmma_fence();
#pragma unroll
  for (int i = 0; i < CHUNKS * 4; ++i) {
    const int offset = i / 4 * PASS_CHUNK_BYTES + i % 4 * 32;
    cuda::Wgmma<T, 32, false>::run(scores, cuda::matrix_descriptor(shared.rows + offset),
                                   cuda::matrix_descriptor(others + offset));
  }
  cuda::wgmma_commit();
  cuda::wgmma_wait<0>(scores);

  unsigned char* to = shared.d_scores + buffer * PASS_CHUNK_BYTES;
  const Item* items = shared.other_items + stage * PASS_OTHERS;
#pragma unroll
  for (int i = 0; i < 16; i += 4) {
    const int column = group * 32 + i / 4 * 8 + lane % 4 * 2;
    const Item others_of_pair[2] = {items[column], items[column + 1]};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      T pair[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const Item& other = others_of_pair[j];
        const Item& slot = QUERIES ? rows[r] : other;
        float d = 0;
        if (other.position >= 0) d = -slot.f * exp2_of(fmaf(scores[i + 2 * r + j], p.shape.scale_log2, -slot.maximum));
        if (other.position >= 0 && rows[r].position == other.position) d = slot.c;
        pair[j] = static_cast<T>(d);
      }
      const int row = warp * 16 + lane / 4 + 8 * r;
      *reinterpret_cast<uint32_t*>(to + cuda::swizzled(row, column * 2)) = *reinterpret_cast<const uint32_t*>(pair);
    }
  }
  cuda::async_proxy_fence();
}

template <bool QUERIES, class T, int CHUNKS>
__device__ void sum_others(const Pass<T>& p, const PassShared<T, CHUNKS>& shared, int first_row, int batch,
                           int head_index) {
  constexpr bool BY_OTHERS = CHUNKS == 1;  // each warpgroup sums its half of the others, not of the columns
  constexpr int WIDTH = BY_OTHERS ? CHUNK : CHUNKS / 2 * CHUNK;  // columns of this warpgroup
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  float sums[WIDTH / 2];
#pragma unroll
  for (int i = 0; i < WIDTH / 2; ++i) sums[i] = 0;

  const int first = warp * 16 + lane / 4;
  const Item rows[2] = {shared.row_items[first], shared.row_items[first + 8]};
  const int count = QUERIES ? p.shape.length : p.shape.computed;
  const int tiles = (count + PASS_OTHERS - 1) / PASS_OTHERS;
  for (int tile = 0; tile < tiles; ++tile) {
    const int stage = tile % PASS_STAGES, buffer = tile % 2;
    cuda::barrier_wait(&shared.full[stage], tile / PASS_STAGES & 1);
    d_scores_of_tile<QUERIES>(p, shared, rows, stage, buffer);
    // What is read of d_scores is there, and the other buffer is read no more.
    if (BY_OTHERS) cuda::named_barrier(3 + group, 128);
    else cuda::named_barrier(1, 256);
    const unsigned char* others = shared.others + stage * PassShared<T, CHUNKS>::TILE_BYTES;
    cuda::wgmma_fence();
#pragma unroll
    for (int i = 0; i < (BY_OTHERS ? 2 : 4); ++i) {
      const int sixteenth = i + (BY_OTHERS ? group * 2 : 0);
      const uint64_t a = cuda::matrix_descriptor(shared.d_scores + buffer * PASS_CHUNK_BYTES + sixteenth * 32);
      const uint64_t b = cuda::matrix_descriptor(others + group * (CHUNKS / 2) * PASS_CHUNK_BYTES + sixteenth * 2048,
                                                 PASS_CHUNK_BYTES);
      cuda::Wgmma<T, WIDTH, true>::run(sums, a, b);
    }
    cuda::wgmma_commit();
    cuda::wgmma_wait<0>(sums);
    // A lane of each warp would do: the named barrier orders every read of other_items before it. But racecheck does
    // not follow an order through two barriers, and would report those reads and the producer's next write.
    cuda::barrier_arrive(&shared.empty[stage]);
  }

  if constexpr (BY_OTHERS) {  // what the second one has summed, to the first
    float(*halves)[128] = reinterpret_cast<float(*)[128]>(shared.d_scores);
    cuda::named_barrier(1, 256);  // d_scores is read no more
#pragma unroll
    for (int i = 0; i < WIDTH / 2; ++i) {
      if (group == 1) halves[i][threadIdx.x % 128] = sums[i];
    }
    cuda::named_barrier(1, 256);
    if (group == 1) return;
#pragma unroll
    for (int i = 0; i < WIDTH / 2; ++i) sums[i] += halves[i][threadIdx.x];
  }

  const int width = p.query.width;
#pragma unroll
  for (int i = 0; i < WIDTH / 2; i += 2) {
    const int row = warp * 16 + lane / 4 + 8 * (i / 2 % 2);
    const int column = (BY_OTHERS ? 0 : group * WIDTH) + i / 4 * 8 + lane % 4 * 2;
    const int n = QUERIES ? shared.row_items[row].position : first_row + row;
    if (column >= width || n < 0 || n >= p.shape.length) continue;
    const bool there = shared.row_items[row].position >= 0;  // scores of a masked key are 0, perhaps far above m
    if (QUERIES && p.slots.first != nullptr) {  // the first slot of a position writes for all of them
      const int64_t first = p.slots.first[int64_t{batch} * (p.shape.length + 1) + n];
      if (p.slots.order[int64_t{batch} * p.shape.computed + first] != first_row + row) continue;
    }
    T pair[2];
    pair[0] = static_cast<T>(there ? p.shape.scale * sums[i] : 0.f);
    pair[1] = static_cast<T>(there ? p.shape.scale * sums[i + 1] : 0.f);
    T* to = p.sums + (int64_t{head_index} * p.shape.length + n) * width + column;
    *reinterpret_cast<uint32_t*>(to) = *reinterpret_cast<const uint32_t*>(pair);
  }
}

#endif

template <bool QUERIES, class T, int CHUNKS>
__global__ void __launch_bounds__(PASS_THREADS, PASS_BLOCKS<CHUNKS>) pass_kernel(const __grid_constant__ Pass<T> p) {
#ifdef MICRON_HOPPER
  MICRON_DYNAMIC_SHARED(memory);
  const PassShared<T, CHUNKS> shared(memory);
  const int head_index = blockIdx.x / p.blocks, first_row = blockIdx.x % p.blocks * PASS_ROWS;
  const int batch = head_index / p.shape.heads, head = head_index % p.shape.heads;
  const int thread = threadIdx.x;
  if (thread == 0) {
    for (int i = 0; i < PASS_STAGES; ++i) {
      cuda::barrier_init(&shared.full[i], 128 + (p.gathers ? 0 : 1));
      cuda::barrier_init(&shared.empty[i], 256);  // threads that consume
    }
    cuda::barrier_init_fence();
  }
  int* positions = reinterpret_cast<int*>(shared.d_scores);  // until the first tile
  if (thread < PASS_ROWS) {
    const Item item =
        QUERIES ? slot_item<QUERIES>(p, batch, head_index, first_row + thread) : key_item(p, batch, first_row + thread);
    shared.row_items[thread] = item;
    positions[thread] = item.position;
  }
  __syncthreads();
  if (thread < 256) {
    load_block(shared.rows, QUERIES ? p.query : p.key, positions, PASS_ROWS, PASS_CHUNK_BYTES, CHUNKS,
               batch, head, thread, 256);
    cuda::async_proxy_fence();
  }
  __syncthreads();
  if (thread < 256) {
    cuda::registers_up<PASS_BLOCKS<CHUNKS> == 2 ? 96 : 232, PASS_BLOCKS<CHUNKS>>();
    sum_others<QUERIES>(p, shared, first_row, batch, head_index);
  } else {
    cuda::registers_down<40, PASS_BLOCKS<CHUNKS>>();
    stream_others<QUERIES>(p, shared, batch, head, head_index);
  }
#endif
}

}  // namespace micron::diagonal_attention
