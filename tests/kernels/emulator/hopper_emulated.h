// csrc/cuda/hopper.h for the emulator. Copies and products happen as late as the program allows: when it waits for
// them; tensor copies of every other block at once. One that is not waited for, or whose place is not free yet, gives
// wrong numbers here too.
#pragma once

#include <deque>

namespace micron::cuda {

#define MICRON_HOPPER 1

struct alignas(64) TensorMap {
  const uint16_t* data;
  int64_t sizes[4], strides[4];
  int box_rows;
};

inline TensorMap tensor_map(const void* data, const int64_t (&sizes)[4], const int64_t (&strides)[4], int box_rows) {
  if (emulator::is_planted("alignment")) data = static_cast<const uint16_t*>(data) + 1;
  TensorMap map{static_cast<const uint16_t*>(data), {}, {}, box_rows};
  if (reinterpret_cast<uintptr_t>(data) % 16 != 0) emulator::fail("tensor map: data must be aligned to 16 bytes");
  for (int i = 0; i < 4; ++i) {
    map.sizes[i] = sizes[i], map.strides[i] = strides[i];
    if (i < 3 && strides[i] * 2 % 16 != 0) emulator::fail("tensor map: strides must be multiples of 16 bytes");
  }
  return map;
}

inline unsigned char* shared_memory() { return emulator::grid().shared; }

// Shared memory as wgmma sees it: what ordinary stores write there comes in with the next proxy fence, of any thread.
// A kernel without one multiplies NaN.
struct AsyncView {
  std::vector<unsigned char> bytes;
  uint64_t block = 0;
  bool fenced = false;
};
inline AsyncView& async_view() {
  static AsyncView view;
  emulator::Grid& grid = emulator::grid();
  if (view.block != grid.number) {
    view.bytes.assign(grid.shared_bytes, 0xff);
    view.block = grid.number, view.fenced = false;
  }
  if (std::exchange(view.fenced, false)) std::memcpy(view.bytes.data(), grid.shared, view.bytes.size());
  return view;
}
inline void async_proxy_fence() {
  if (!emulator::is_planted("proxy_fence")) async_view().fenced = true;
}
inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - shared_memory());
}
inline int swizzle_128(int address) { return address ^ (address >> 7 & 7) << 4; }

// What a thread has issued and not waited for.
struct Issued {
  uint64_t block = 0;
  std::vector<std::function<void()>> copies, products;     // products of no group yet
  std::deque<std::vector<std::function<void()>>> groups;
};
inline Issued& issued() {
  static Issued of_thread[1024];
  Issued& mine = of_thread[emulator::current().linear];
  if (mine.block != emulator::grid().number) mine = Issued{emulator::grid().number};
  return mine;
}

// Tensor copies by the barrier that they complete on.
inline std::map<uint64_t*, std::vector<std::function<void()>>>& tensor_copies() {
  static std::map<uint64_t*, std::vector<std::function<void()>>> copies;
  static uint64_t block = 0;
  if (block != emulator::grid().number) copies.clear(), block = emulator::grid().number;
  return copies;
}

struct SharedBarrier {
  uint64_t expected : 12;
  int64_t pending : 13;
  int64_t bytes : 30;
  uint64_t phase : 1;
  void settle() {
    if (pending == 0 && bytes == 0) phase ^= 1, pending = static_cast<int64_t>(expected);
  }
};
static_assert(sizeof(SharedBarrier) == 8);
inline SharedBarrier& shared_barrier(uint64_t* p) { return *reinterpret_cast<SharedBarrier*>(p); }

inline void barrier_init(uint64_t* p, int arrivals) {
  SharedBarrier& b = shared_barrier(p);
  b.expected = static_cast<uint64_t>(arrivals), b.pending = arrivals, b.bytes = 0, b.phase = 0;
}
inline void barrier_init_fence() {}
inline void barrier_arrive_expect(uint64_t* p, uint32_t bytes) {
  SharedBarrier& b = shared_barrier(p);
  if (b.pending <= 0) emulator::fail("mbarrier: more arrivals than it was made for");
  b.bytes += bytes;
  --b.pending;
  b.settle();
}
inline void barrier_arrive(uint64_t* p) {
  barrier_arrive_expect(p, 0);
  emulator::let_others_run();  // whoever waits for it may do so before this thread goes on
}
inline void barrier_wait(uint64_t* p, uint32_t parity) {
  emulator::wait_until([&] {
    for (auto& copy : std::exchange(tensor_copies()[p], {})) copy();
    return shared_barrier(p).phase != parity;
  });
}

inline void tensor_load(void* to, const TensorMap* map, uint64_t* barrier, int column, int row, int head, int batch) {
  const int start = static_cast<int>(shared_address(to));
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0) emulator::fail("tensor map: must be aligned to 64 bytes");
  if (start % 1024 != 0) emulator::fail("tensor load: shared memory must be aligned to 1024 bytes");
  const auto copy = [=] {
    unsigned char* const view = async_view().bytes.data();
    for (int r = 0; r < map->box_rows; ++r) {
      for (int c = 0; c < 64; ++c) {
        const bool inside = row + r < map->sizes[2] && column + c < map->sizes[3];
        const uint16_t value = inside ? map->data[batch * map->strides[0] + head * map->strides[1] +
                                                  (row + r) * map->strides[2] + column + c]
                                      : uint16_t{0};
        const int at = swizzle_128(start + r * 128 + c * 2);
        std::memcpy(shared_memory() + at, &value, 2);
        std::memcpy(view + at, &value, 2);
      }
    }
    SharedBarrier& b = shared_barrier(barrier);
    b.bytes -= map->box_rows * 128;
    b.settle();
  };
  if (emulator::grid().number % 2 == 0) copy();
  else tensor_copies()[barrier].push_back(copy);
}

inline void store_vector(void* to, uint4 x) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) emulator::fail("store: not aligned to 16 bytes");
  std::memcpy(to, &x, 16);
}

inline void copy_async(void* to, const void* from, bool there) {
  issued().copies.push_back([=] {
    if (there) std::memcpy(to, from, 16);
    else std::memset(to, 0, 16);
  });
}
inline void copy_async_wait() {
  for (auto& copy : std::exchange(issued().copies, {})) copy();
}
inline void named_barrier(int number, int threads) {
  emulator::wait_at(emulator::grid().named[number], threads);
}
// Registers change hands among the threads of a block: who asks for more waits until others have given them up.
template <int COUNT, int BLOCKS>
int& registers_of_thread() {
  static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256);
  int& mine = emulator::current().registers;
  const int warps = static_cast<int>(emulator::grid().block.x + 31) / 32;
  const int of_a_scheduler = (warps * BLOCKS + 3) / 4;  // what __launch_bounds__ lets the compiler have
  if (mine == 0) mine = std::min(255, 512 / of_a_scheduler / 8 * 8);
  return mine;
}
template <int COUNT, int BLOCKS>
void registers_down() {
  int& mine = registers_of_thread<COUNT, BLOCKS>();
  if (COUNT > mine) emulator::fail("setmaxnreg.dec: to more registers than the thread has");
  if (emulator::is_planted("registers_down")) return;
  emulator::grid().free_registers += mine - COUNT;
  mine = COUNT;
}
template <int COUNT, int BLOCKS>
void registers_up() {
  int& mine = registers_of_thread<COUNT, BLOCKS>();
  if (COUNT < mine) emulator::fail("setmaxnreg.inc: to fewer registers than the thread has");
  emulator::wait_until([&] { return emulator::grid().free_registers >= COUNT - mine; });
  emulator::grid().free_registers -= COUNT - mine;
  mine = COUNT;
}
inline void wgmma_fence() {}
inline void wgmma_commit() { issued().groups.push_back(std::exchange(issued().products, {})); }
template <int PENDING>
void wgmma_wait() {
  auto& groups = issued().groups;
  for (; groups.size() > PENDING; groups.pop_front()) {
    for (auto& product : groups.front()) product();
  }
  __syncwarp();  // .aligned: a warp waits as one
}

template <int PENDING, int COUNT>
void wgmma_wait(float (&)[COUNT]) {
  wgmma_wait<PENDING>();
}

template <class T, int N, bool B_ROWS, bool FROM_ZERO = false>
struct Wgmma {
  static float at(const unsigned char* memory, int address) {
    T value;
    std::memcpy(&value, memory + swizzle_128(address), 2);
    return static_cast<float>(value);
  }
  static void run(float (&d)[N / 2], uint64_t a, uint64_t b) {
    if (a >> 62 != 1 || b >> 62 != 1) emulator::fail("wgmma: not the 128-byte swizzle");
    const int thread = emulator::current().linear % 128, lane = thread % 32;
    float* const sums = d;
    issued().products.push_back([=] {
      const unsigned char* const memory = async_view().bytes.data();
      const int start_a = static_cast<int>(a & 0x3fff) << 4, group_a = static_cast<int>(a >> 32 & 0x3fff) << 4;
      const int start_b = static_cast<int>(b & 0x3fff) << 4, group_b = static_cast<int>(b >> 32 & 0x3fff) << 4;
      const int step_b = static_cast<int>(b >> 16 & 0x3fff) << 4;
      for (int i = 0; i < N / 2; ++i) {
        const int row = thread / 32 * 16 + lane / 4 + 8 * (i / 2 % 2), column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        float sum = 0;
        for (int k = 0; k < 16; ++k) {
          const float x = at(memory, start_a + row / 8 * group_a + row % 8 * 128 + k * 2);
          const int at_b = B_ROWS ? start_b + column / 64 * step_b + k / 8 * group_b + k % 8 * 128 + column % 64 * 2
                                  : start_b + column / 8 * group_b + column % 8 * 128 + k * 2;
          const float y = at(memory, at_b);
          sum += x * y;
        }
        sums[i] = FROM_ZERO ? sum : sums[i] + sum;
      }
    });
  }
};

}  // namespace micron::cuda
