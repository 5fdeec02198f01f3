// The instructions of Hopper (sm_90a) that the kernels use, one function each: barriers in shared memory, bulk tensor
// copies, and matrix products of a warpgroup. Names and semantics are those of the PTX instruction set manual.
#pragma once

#include "launch.h"

#ifdef MICRON_EMULATED
#include "hopper_emulated.h"
#else
#include <cuda.h>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MICRON_HOPPER 1
#endif

namespace micron::cuda {

using TensorMap = CUtensorMap;

// A tensor (batch, heads, rows, columns) of 16-bit elements, read in boxes of `box_rows` x 64 elements that lie in
// shared memory in rows of 128 bytes with the 128-byte swizzle. What lies outside the tensor is read as 0.
inline TensorMap tensor_map(const void* data, const int64_t (&sizes)[4], const int64_t (&strides)[4], int box_rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
          "cudaGetDriverEntryPointByVersion");
    return found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : nullptr;
  }();
  STD_TORCH_CHECK(encode != nullptr, "the CUDA driver has no cuTensorMapEncodeTiled: it must be of CUDA 12 or later");
  cuuint64_t dimensions[4], bytes[3];
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(box_rows), 1, 1}, steps[4] = {1, 1, 1, 1};
  for (int i = 0; i < 4; ++i) dimensions[i] = static_cast<cuuint64_t>(sizes[3 - i]);
  for (int i = 0; i < 3; ++i) bytes[i] = static_cast<cuuint64_t>(strides[2 - i]) * 2;
  TensorMap map;
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, const_cast<void*>(data), dimensions, bytes,
                                 box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  STD_TORCH_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with ", static_cast<int>(result));
  return map;
}

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ inline void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Barriers that were just initialised, for the copy engine to see.
__device__ inline void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and lets the phase wait for so many bytes of bulk copies.
__device__ inline void barrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

__device__ inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// A box of the tensor at (batch, head, row, column), to `to` in shared memory.
__device__ inline void tensor_load(void* to, const TensorMap* map, uint64_t* barrier, int column, int row, int head,
                                   int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row), "r"(head), "r"(batch)
      : "memory");
}

// 16 bytes to global memory in one instruction: of its own the compiler may store them word by word.
__device__ inline void store_vector(void* to, uint4 x) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}

// 16 bytes to shared memory, zeros unless `there`.
__device__ inline void copy_async(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0)
               : "memory");
}
__device__ inline void copy_async_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// What this thread has written to shared memory, for wgmma to see.
__device__ inline void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier of `threads` threads of the block, by number (0 is __syncthreads).
__device__ inline void named_barrier(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// The registers of each thread of this warpgroup from now on. So many BLOCKS share an SM by the kernel's
// __launch_bounds__, which tells the emulator with how many a thread starts.
template <int COUNT, int BLOCKS>
__device__ inline void registers_down() {
#ifdef MICRON_HOPPER
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}
template <int COUNT, int BLOCKS>
__device__ inline void registers_up() {
#ifdef MICRON_HOPPER
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// sums += A B over 16 columns of A: A is 64 x 16 and B 16 x N, both from shared memory. B_ROWS: B lies in memory in
// rows along N (otherwise along the 16). FROM_ZERO: sums = A B; to the compiler they are another variable then, which
// it need not bring to the registers of the last one. Each N has the operands of its own sums in the text.
template <class T, int N, bool B_ROWS, bool FROM_ZERO = false>
struct Wgmma;

#define MICRON_R4(how, i) how(d[i]), how(d[(i) + 1]), how(d[(i) + 2]), how(d[(i) + 3])
#define MICRON_R16(how, i) \
  MICRON_R4(how, i), MICRON_R4(how, (i) + 4), MICRON_R4(how, (i) + 8), MICRON_R4(how, (i) + 12)
#define MICRON_R32(how, i) MICRON_R16(how, i), MICRON_R16(how, (i) + 16)
#define MICRON_R64(how, i) MICRON_R32(how, i), MICRON_R32(how, (i) + 32)
#define MICRON_R128(how, i) MICRON_R64(how, i), MICRON_R64(how, (i) + 64)
template <int PENDING, int COUNT>
struct WgmmaWait;
#define MICRON_WAIT(SUMS)                                                                                              \
  template <int PENDING>                                                                                               \
  struct WgmmaWait<PENDING, SUMS> {                                                                                    \
    __device__ static void run(float (&d)[SUMS]) {                                                                     \
      asm volatile("wgmma.wait_group.sync.aligned %" #SUMS ";" : MICRON_R##SUMS("+f", 0) : "n"(PENDING) : "memory");   \
    }                                                                                                                  \
  };
MICRON_WAIT(16)
MICRON_WAIT(32)
MICRON_WAIT(64)
MICRON_WAIT(128)
// Waits as above; `sums` are of the products that are done, and no use of them can be moved above.
template <int PENDING, int COUNT>
__device__ inline void wgmma_wait(float (&sums)[COUNT]) {
  WgmmaWait<PENDING, COUNT>::run(sums);
}
#define MICRON_T16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define MICRON_T32 MICRON_T16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define MICRON_T64                                                                        \
  MICRON_T32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,"  \
             "%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define MICRON_T128                                                                                             \
  MICRON_T64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87," \
             "%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109," \
             "%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define MICRON_WGMMA(T, TYPE, N, SUMS, A, B, ROWS, FROM_ZERO, HOW, ADDS)                                              \
  template <bool B_ROWS>                                                                                              \
  struct Wgmma<T, N, B_ROWS, FROM_ZERO> {                                                                             \
    __device__ static void run(float (&d)[SUMS], uint64_t a, uint64_t b) {                                            \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" MICRON_T##SUMS "}, %" #A      \
                   ", %" #B ", " #ADDS ", 1, 1, 0, %" #ROWS ";"                                                       \
                   : MICRON_R##SUMS(HOW, 0)                                                                           \
                   : "l"(a), "l"(b), "n"(B_ROWS ? 1 : 0));                                                            \
    }                                                                                                                 \
  };
#define MICRON_WGMMA_FROM(T, TYPE, N, SUMS, A, B, ROWS)          \
  MICRON_WGMMA(T, TYPE, N, SUMS, A, B, ROWS, false, "+f", 1)     \
  MICRON_WGMMA(T, TYPE, N, SUMS, A, B, ROWS, true, "=f", 0)
#define MICRON_WGMMA_OF(T, TYPE)                     \
  MICRON_WGMMA_FROM(T, TYPE, 32, 16, 16, 17, 18)     \
  MICRON_WGMMA_FROM(T, TYPE, 64, 32, 32, 33, 34)     \
  MICRON_WGMMA_FROM(T, TYPE, 128, 64, 64, 65, 66)    \
  MICRON_WGMMA_FROM(T, TYPE, 256, 128, 128, 129, 130)
#ifdef MICRON_HOPPER
MICRON_WGMMA_OF(__nv_bfloat16, "bf16")
MICRON_WGMMA_OF(__half, "f16")
#endif

}  // namespace micron::cuda
#endif

namespace micron::cuda {

// How wgmma finds an operand in rows of 128 bytes with the 128-byte swizzle: groups of 8 rows, 1024 bytes each, lie one
// after the other; an operand with rows along N has `column_step` bytes from 64 of its columns to the next.
__device__ inline uint64_t matrix_descriptor(const void* p, uint32_t column_step = 16) {
  const uint64_t swizzle_128 = 1;
  return (shared_address(p) & 0x3ffff) >> 4 | static_cast<uint64_t>(column_step >> 4) << 16 |
         static_cast<uint64_t>(1024 >> 4) << 32 | swizzle_128 << 62;
}

// The same operand `columns` of 16 bits to the right, within 64; bits above the address stay.
__device__ inline uint64_t to_the_right(uint64_t descriptor, uint32_t columns) {
  return (descriptor & 0xffffffff00000000) | (static_cast<uint32_t>(descriptor) + (columns * 2 >> 4));
}

// Where byte `byte` of row `row` lies in such a block.
__device__ inline int swizzled(int row, int byte) { return row * 128 + (byte ^ (row & 7) << 4); }

}  // namespace micron::cuda
