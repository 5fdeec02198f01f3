// Tiles of scores for Hopper: 128 rows, which stay in shared memory, against keys that a producer streams through a
// ring of stages there. What becomes of a tile is the business of forward.cuh and score_gradients.cuh.
//
// A stage holds 128 keys and 64 columns (16 KB), the rows as many for each chunk of columns: at 512 columns 128 KB of
// rows and six stages fill an SM. Up to 128 columns, four stages let two blocks of threads share one, and the
// exponentials of one hide behind the products of the other. Blocks stay: the producer fetches the next rows while the
// last are finished.
#pragma once

#include "device.cuh"

namespace micron::diagonal_attention {

constexpr int TILE_ROWS = 128, TILE_KEYS = 128;
constexpr int TILE_THREADS = 256 + 32;  // two groups of 64 rows each, a warpgroup each, and the producer
constexpr int BOX_BYTES = 128 * 128;    // that one copy brings: 128 rows of a chunk of columns

template <int STAGES>
constexpr bool SHARES_SM = STAGES == 4;
inline int stages_of(int chunks) { return chunks <= 2 ? 4 : 6; }

template <class T>
struct Product {
  TensorMap query_map, key_map;
  Shape shape;
  Rows<T> query;  // gathered, row by row, where there are `rows`
  int chunks;     // of 64 columns
  int works;      // that blocks take in turn
};

// 128 rows of one head. Those of fewer rows come last: they fill the gaps when the last of the others run.
struct Work {
  int head_index, batch, head, first_row;  // head_index counts heads through all batch entries

  static __device__ Work of(int index, int heads, int count, int heads_of_batch, int first_head = 0) {
    const int whole = count / TILE_ROWS;
    const bool is_whole = index < heads * whole;
    const int head = first_head + (is_whole ? index / whole : index - heads * whole);
    return {head, head / heads_of_batch, head % heads_of_batch, (is_whole ? index % whole : whole) * TILE_ROWS};
  }
};

inline size_t tile_shared_bytes(int chunks) {
  return static_cast<size_t>(chunks) * BOX_BYTES + stages_of(chunks) * (BOX_BYTES + 16) + 8 + TILE_ROWS * 8;
}

#ifdef MICRON_HOPPER

// The next stage, and how often the ring has been gone round, modulo 2.
template <int STAGES>
struct Ring {
  int stage = 0;
  uint32_t round = 0;

  __device__ void next() {
    if (++stage == STAGES) stage = 0, round ^= 1;
  }
};

template <int STAGES>
struct TileShared {
  unsigned char *query, *stages;
  uint64_t *full, *empty, *query_free;
  float* factor;  // of a row; for those who finish
  int* position;

  __device__ TileShared(unsigned char* memory, int chunks) {
    query = memory;
    stages = query + chunks * BOX_BYTES;
    full = reinterpret_cast<uint64_t*>(stages + STAGES * BOX_BYTES);
    empty = full + STAGES;
    query_free = empty + STAGES;
    factor = reinterpret_cast<float*>(query_free + 1);
    position = reinterpret_cast<int*>(factor + TILE_ROWS);
  }

  __device__ unsigned char* stage(const Ring<STAGES>& ring) const { return stages + ring.stage * BOX_BYTES; }
};

// All threads, first of all.
template <int STAGES>
__device__ void make_barriers(const TileShared<STAGES>& shared) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; ++i) {
      cuda::barrier_init(&shared.full[i], 1);
      cuda::barrier_init(&shared.empty[i], 8);  // warps that consume
    }
    cuda::barrier_init(shared.query_free, 8);
    cuda::barrier_init_fence();
  }
  __syncthreads();
}

// The consumers: the positions of their rows, and the rows themselves where they are gathered.
template <class T, int STAGES>
__device__ void prepare_rows(const Product<T>& p, const TileShared<STAGES>& shared, const Work& work) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / 4;
  __syncwarp();  // the last ones are read no more
  if (lane < 16) shared.position[warp * 16 + lane] = p.shape.position(work.batch, work.first_row + warp * 16 + lane);
  __syncwarp();
  if (p.shape.rows == nullptr) return;
  cuda::named_barrier(1 + group, 128);
  load_block(shared.query + group * 64 * 128, p.query, shared.position + group * 64, 64, BOX_BYTES, p.chunks,
             work.batch, work.head, threadIdx.x % 128, 128);
  cuda::async_proxy_fence();
  cuda::named_barrier(1 + group, 128);
}

// The producer: a box of 128 rows by 64 columns for the next stage, and the bytes that come with it.
template <int STAGES>
__device__ void stream_box(const TileShared<STAGES>& shared, Ring<STAGES>& ring, const TensorMap* map, int chunk,
                           int row, int head, int batch, int more_bytes = 0) {
  cuda::barrier_wait(&shared.empty[ring.stage], ring.round ^ 1);
  cuda::barrier_arrive_expect(&shared.full[ring.stage], BOX_BYTES + more_bytes);
  cuda::tensor_load(shared.stage(ring), map, &shared.full[ring.stage], chunk * CHUNK, row, head, batch);
}

// The producer: the keys of some tiles, and with those of the first tile the rows, chunk by chunk. `count`: of the
// works that this block has had.
template <class T, int STAGES>
__device__ void stream_keys(const Product<T>& p, const TileShared<STAGES>& shared, Ring<STAGES>& ring,
                            const Work& work, int first_tile, int last_tile, uint32_t count) {
  for (int tile = first_tile; tile < last_tile; ++tile) {
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
      const bool with_rows = tile == first_tile && p.shape.rows == nullptr;
      if (with_rows && chunk == 0) cuda::barrier_wait(shared.query_free, count & 1 ^ 1);
      stream_box(shared, ring, &p.key_map, chunk, tile * TILE_KEYS, work.head, work.batch, with_rows ? BOX_BYTES : 0);
      if (with_rows) {
        cuda::tensor_load(shared.query + chunk * BOX_BYTES, &p.query_map, &shared.full[ring.stage], chunk * CHUNK,
                          work.first_row, work.head, work.batch);
      }
      ring.next();
    }
  }
}

// A warp is done with what this barrier guards.
__device__ inline void arrive_warp(uint64_t* barrier) {
  if (threadIdx.x % 32 == 0) cuda::barrier_arrive(barrier);
}

// What a thread of the 256 that consume holds of a tile: score i is of row `row() + 8 * (i / 2 % 2)` and of column
// `column(i)`.
struct Holder {
  static __device__ int row() { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4; }
  static __device__ int column(int i) { return i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2; }
};

// Which of the 128 keys from `first_key` on may be attended to, bit by bit. Score i is of a key that may be where
// `sees(i)`.
struct Visible {
  unsigned words[4];

  __device__ Visible(const Shape& shape, int batch, int first_key) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool visible = shape.visible(batch, first_key + 32 * i + static_cast<int>(threadIdx.x % 32));
      words[i] = __ballot_sync(0xffffffffu, visible) >> threadIdx.x % 4 * 2;
    }
  }
  __device__ bool sees(int i) const { return words[i / 16] >> (i / 4 % 4 * 8 + i % 2) & 1; }
};

// Unscaled scores of this group's 64 rows and KEYS keys, over all chunks of columns.
template <int KEYS, class T, int STAGES>
__device__ void scores_of_tile(const Product<T>& p, const TileShared<STAGES>& shared, Ring<STAGES>& ring,
                               float (&scores)[KEYS / 2]) {
  const int group = threadIdx.x / 128;
#pragma unroll
  for (int i = 0; i < KEYS / 2; ++i) scores[i] = 0;
  int before = 0;
  for (int chunk = 0; chunk < p.chunks; ++chunk) {
    cuda::barrier_wait(&shared.full[ring.stage], ring.round);
    const unsigned char* q = shared.query + chunk * BOX_BYTES + group * 64 * 128;
    const unsigned char* k = shared.stage(ring);
    cuda::wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      cuda::Wgmma<T, KEYS, false>::run(scores, cuda::matrix_descriptor(q + i * 32),
                                       cuda::matrix_descriptor(k + i * 32));
    }
    cuda::wgmma_commit();
    if (chunk > 0) {  // the products of the chunk before are done
      cuda::wgmma_wait<1>();
      arrive_warp(&shared.empty[before]);
    }
    before = ring.stage;
    ring.next();
  }
  cuda::wgmma_wait(scores);
  arrive_warp(&shared.empty[before]);
}

// Calls body(constant of keys, tile) for each tile; the last takes no more keys than it needs.
template <int N>
struct Keys {
  static constexpr int count = N;
};
template <class Body>
__device__ void for_tiles(int length, int first_tile, int last_tile, Body body) {
  for (int tile = first_tile; tile < last_tile; ++tile) {
    const int rest = length - tile * TILE_KEYS;
    if (rest > 64) body(Keys<128>(), tile);
    else if (rest > 32) body(Keys<64>(), tile);
    else body(Keys<32>(), tile);
  }
}

#endif

}  // namespace micron::diagonal_attention
