// Scores for Hopper: 128 rows, which stay in shared memory, against keys that a producer streams through a ring of
// stages there. What becomes of them is the business of forward.cuh and score_gradients.cuh.
//
// A stage holds 128 keys and 64 columns (16 KB), the rows as many for each chunk of columns: at 512 columns 128 KB of
// rows and six stages fill an SM. Up to 128 columns, four stages let two blocks of threads share one. Blocks stay: the
// producer fetches the next rows while the last are finished.
//
// Each of two groups of 64 rows holds the scores of one part of the keys and, as the tensor cores make them, those of
// the next. A part is a tile (two times 64 registers; a thread has 168, since of nine warps three are on one scheduler),
// or half a tile where two blocks share an SM (two times 32 of 96).
#pragma once

#include <type_traits>

#include "device.cuh"

namespace micron::diagonal_attention {

constexpr int TILE_ROWS = 128, TILE_KEYS = 128;
constexpr int TILE_THREADS = 256 + 32;  // two groups of 64 rows each, a warpgroup each, and the producer
constexpr int BOX_BYTES = 128 * 128;    // that one copy brings: 128 rows of a chunk of columns

// CHUNKS of columns: 1, 2, or up to 8.
template <int CHUNKS>
constexpr bool SHARES_SM = CHUNKS <= 2;
template <int CHUNKS>
constexpr int STAGES = SHARES_SM<CHUNKS> ? 4 : 6;

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

template <int CHUNKS>
size_t tile_shared_bytes(int chunks) {
  return static_cast<size_t>(chunks) * BOX_BYTES + STAGES<CHUNKS> * (BOX_BYTES + 16) + 8 + TILE_ROWS * 8;
}

#ifdef MICRON_HOPPER

// The next stage, and how often the ring has been gone round, modulo 2.
template <int CHUNKS>
struct Ring {
  int stage = 0;
  uint32_t round = 0;

  __device__ void next(int count = 1) {  // of which STAGES is a multiple
    stage += count;
    if (stage == STAGES<CHUNKS>) stage = 0, round ^= 1;
  }
};

template <int CHUNKS>
struct TileShared {
  unsigned char *query, *stages;
  uint64_t *full, *empty, *query_free;
  float* factor;  // of a row; for those who finish
  int* position;

  __device__ TileShared(unsigned char* memory, int chunks) {
    query = memory;
    stages = query + chunks * BOX_BYTES;
    full = reinterpret_cast<uint64_t*>(stages + STAGES<CHUNKS> * BOX_BYTES);
    empty = full + STAGES<CHUNKS>;
    query_free = empty + STAGES<CHUNKS>;
    factor = reinterpret_cast<float*>(query_free + 1);
    position = reinterpret_cast<int*>(factor + TILE_ROWS);
  }

  __device__ unsigned char* stage(const Ring<CHUNKS>& ring) const { return stages + ring.stage * BOX_BYTES; }
};

// All threads, first of all.
template <int CHUNKS>
__device__ void make_barriers(const TileShared<CHUNKS>& shared) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES<CHUNKS>; ++i) {
      cuda::barrier_init(&shared.full[i], 1);
      cuda::barrier_init(&shared.empty[i], 8);  // warps that consume
    }
    cuda::barrier_init(shared.query_free, 8);
    cuda::barrier_init_fence();
  }
  __syncthreads();
}

// The consumers: the positions of their rows, and the rows themselves where they are gathered.
template <class T, int CHUNKS>
__device__ void prepare_rows(const Product<T>& p, const TileShared<CHUNKS>& shared, const Work& work) {
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
template <int CHUNKS>
__device__ void stream_box(const TileShared<CHUNKS>& shared, Ring<CHUNKS>& ring, const TensorMap* map, int chunk,
                           int row, int head, int batch, int more_bytes = 0) {
  cuda::barrier_wait(&shared.empty[ring.stage], ring.round ^ 1);
  cuda::barrier_arrive_expect(&shared.full[ring.stage], BOX_BYTES + more_bytes);
  cuda::tensor_load(shared.stage(ring), map, &shared.full[ring.stage], chunk * CHUNK, row, head, batch);
}

// The producer: the keys of some tiles, and with those of the first tile the rows, chunk by chunk. `count`: of the
// works that this block has had.
template <class T, int CHUNKS>
__device__ void stream_keys(const Product<T>& p, const TileShared<CHUNKS>& shared, Ring<CHUNKS>& ring,
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

// The group of 128 threads: 0 and 1 consume, 2 is the producer. By a shuffle, which tells the compiler that a warp has
// one value: where the threads of a warp might part, it waits for every product.
__device__ inline int group_of_thread() { return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 128), 0); }

// A warp is done with what this barrier guards.
__device__ inline void arrive_warp(uint64_t* barrier) {
  if (threadIdx.x % 32 == 0) cuda::barrier_arrive(barrier);
}

// What a thread of the 256 that consume holds of a part: score i is of row `row() + 8 * (i / 2 % 2)` and of column
// `column(i)`.
struct Holder {
  static __device__ int row() { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4; }
  static __device__ int column(int i) { return i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2; }
};

// Which of KEYS keys from `first_key` on may be attended to, bit by bit. Score i is of one that may be where `sees(i)`.
template <int KEYS>
struct Visible {
  unsigned words[KEYS / 32];

  __device__ Visible(const Shape& shape, int batch, int first_key) {
#pragma unroll
    for (int i = 0; i < KEYS / 32; ++i) {
      const bool visible = shape.visible(batch, first_key + 32 * i + static_cast<int>(threadIdx.x % 32));
      words[i] = __ballot_sync(0xffffffffu, visible) >> threadIdx.x % 4 * 2;
    }
  }
  __device__ bool sees(int i) const { return words[i / 16] >> (i / 4 % 4 * 8 + i % 2) & 1; }
};

// The unscaled scores of a group's 64 rows, part after part of the keys. While one part is worked on, the first
// products of the next are under way, so that the tensor cores do not wait for its exponentials.
template <class T, int CHUNKS>
class Parts {
 public:
  __device__ Parts(const Product<T>& p, const TileShared<CHUNKS>& shared, Ring<CHUNKS>& ring)
      : p_(p), shared_(shared), ring_(ring), group_(group_of_thread()) {}

  // Calls body(scores, first key) for each part of the tiles; scores of keys beyond the last one are anything.
  template <class Body>
  __device__ void for_each(int first_tile, int last_tile, Body body) {
    const int last_key = min(last_tile * TILE_KEYS, p_.shape.length), rest = last_key % TILE_KEYS;
    const int few = !SHARES_SM<CHUNKS> && rest <= 64 ? rest : 0, end = last_key - few;
    int key = first_tile * TILE_KEYS;
    if (key < end) {
      float even[KEYS / 2], odd[KEYS / 2];
      start<KEYS, false>(even);
      while (advance<false>(even, odd, key, end, body) && advance<true>(odd, even, key, end, body)) continue;
    }
    if (few > 32) finish<64>(key, body);
    else if (few > 0) finish<32>(key, body);
  }

  // Lets the keys of the tiles pass, where a group has no rows.
  __device__ void skip(int first_tile, int last_tile) {
    for (int stage = 0; stage < (last_tile - first_tile) * chunks(); ++stage) {
      cuda::barrier_wait(&shared_.full[ring_.stage], ring_.round);
      arrive_warp(&shared_.empty[ring_.stage]);
      ring_.next();
    }
  }

 private:
  static constexpr int KEYS = SHARES_SM<CHUNKS> ? TILE_KEYS / 2 : TILE_KEYS;  // of a part
  static constexpr int AHEAD = CHUNKS == 1 ? 1 : 2;  // chunks; where there are no more than two, all of them

  __device__ int chunks() const { return SHARES_SM<CHUNKS> ? CHUNKS : p_.chunks; }

  // One part, whose first products are under way, to its end, after the start of the next. False where there is none.
  // Its `scores` are then those that the next but one is started in. SECOND: the second half of a tile.
  template <bool SECOND, class Body>
  __device__ bool advance(float (&scores)[KEYS / 2], float (&next)[KEYS / 2], int& key, int last_key, Body& body) {
    const int first_key = key;
    go_on<KEYS>(scores);
    key += KEYS;
    const bool is_last = key >= last_key, ends_tile = SHARES_SM<CHUNKS> && (SECOND || is_last);
    if (ends_tile) ring_.next(CHUNKS);
    if (is_last) {  // apart: where branches met, the compiler would wait for every product
      cuda::wgmma_wait<0>(scores);
      release_part(ends_tile, 0);
      body(scores, first_key);
      return false;
    }
    start<KEYS, !SECOND>(next);
    cuda::wgmma_wait<1>(scores);
    release_part(ends_tile, SHARES_SM<CHUNKS> ? 0 : AHEAD);
    body(scores, first_key);
    return true;
  }

  // The last part, of a tile that takes no more products than it needs.
  template <int FEW, class Body>
  __device__ void finish(int key, Body& body) {
    float scores[FEW / 2];
    start<FEW, false>(scores);
    go_on<FEW>(scores);
    cuda::wgmma_wait<0>(scores);
    release_part(false, 0);
    body(scores, key);
  }

  // The products of the first chunks of columns: one group, which no branch divides, or the compiler would make it two
  // and a wait for all but the last wait for the first of them. Where a tile is taken by halves, the ring goes on when
  // it ends.
  template <int N, bool SECOND>
  __device__ void start(float (&scores)[N / 2]) {
    constexpr bool HALF = SHARES_SM<CHUNKS>;
    int stage[AHEAD];
    Ring<CHUNKS> ring = ring_;
#pragma unroll
    for (int chunk = 0; chunk < AHEAD; ++chunk) {
      stage[chunk] = ring.stage;
      if (!HALF || !SECOND) cuda::barrier_wait(&shared_.full[ring.stage], ring.round);
      ring.next();
    }
    if (!HALF) ring_ = ring;
    const int half = HALF && SECOND ? KEYS * 128 : 0;
    cuda::wgmma_fence();
    multiply<N, true>(scores, 0, stage[0], half);
#pragma unroll
    for (int chunk = 1; chunk < AHEAD; ++chunk) multiply<N, false>(scores, chunk, stage[chunk], half);
    cuda::wgmma_commit();
  }

  // Those of the other chunks. A stage is free when the products of the chunk after it have begun.
  template <int N>
  __device__ void go_on(float (&scores)[N / 2]) {
    if constexpr (!SHARES_SM<CHUNKS>) {
      for (int chunk = AHEAD; chunk < p_.chunks; ++chunk) {
        cuda::barrier_wait(&shared_.full[ring_.stage], ring_.round);
        cuda::wgmma_fence();
        multiply<N, false>(scores, chunk, ring_.stage, 0);
        cuda::wgmma_commit();
        ring_.next();
        cuda::wgmma_wait<1>();
        if (chunk == AHEAD) release(3);
        release(2);
      }
    }
  }

  template <int N, bool FROM_ZERO>
  __device__ void multiply(float (&scores)[N / 2], int chunk, int stage, int half) {
    const uint64_t q = cuda::matrix_descriptor(shared_.query + chunk * BOX_BYTES + group_ * 64 * 128);
    const uint64_t k = cuda::matrix_descriptor(shared_.stages + stage * BOX_BYTES + half);
    cuda::Wgmma<T, N, false, FROM_ZERO>::run(scores, q, k);
#pragma unroll
    for (int column = 16; column < CHUNK; column += 16) {
      cuda::Wgmma<T, N, false>::run(scores, cuda::to_the_right(q, column), cuda::to_the_right(k, column));
    }
  }

  // The stages that a part was the last to read, of those that lie `taken` before the next one.
  __device__ void release_part(bool ends_tile, int taken) {
    if constexpr (SHARES_SM<CHUNKS>) {
      if (!ends_tile) return;
#pragma unroll
      for (int before = CHUNKS; before > 0; --before) release(before);
    } else {
      if (p_.chunks == AHEAD) release(taken + 2);  // otherwise go_on did
      release(taken + 1);
    }
  }

  // The stage so many before the next one, to the producer.
  __device__ void release(int before) {
    const int stage = ring_.stage - before;
    arrive_warp(&shared_.empty[stage < 0 ? stage + STAGES<CHUNKS> : stage]);
  }

  const Product<T>& p_;
  const TileShared<CHUNKS>& shared_;
  Ring<CHUNKS>& ring_;
  int group_;
};

#endif

}  // namespace micron::diagonal_attention
