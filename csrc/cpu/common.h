// What kernels compiled for one instruction set share with the rest: plain types only. A kernel.cpp includes
// nothing from torch and no C++ library template: the linker keeps one copy of an inline function, and it may
// be the copy that was compiled for a CPU that this machine is not.
#pragma once

#include <cstddef>
#include <cstdint>

namespace micron {

enum class Dtype { float32, bfloat16, float16, uint8 };

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// Runs body(context, begin, end) over disjoint ranges that cover [0, count), on torch's threads.
using ParallelBody = void (*)(void* context, int64_t begin, int64_t end);
void parallel_for(int64_t count, int64_t grain, ParallelBody body, void* context);
int64_t thread_count();

// Asks for huge pages under a large result, as NumPy does under its arrays: memory fresh from the system costs a
// fault a page, which is more than the kernels here spend on a page.
void advise_huge_pages(void* data, size_t bytes);

// The most scratch that was held at a time since the last call, all threads together: for the benchmark.
int64_t take_scratch_peak();

// What a Workspace must hold, by the calls that will be made of it.
class Measure {
 public:
  template <class T>
  T* take(int64_t count) {
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + 63) & ~static_cast<size_t>(63);
    return nullptr;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

// Scratch memory, aligned to a cache line; throws std::bad_alloc.
class Workspace {
 public:
  explicit Workspace(size_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // The next `count` elements of T.
  template <class T>
  T* take(int64_t count) {
    char* result = next_;
    next_ += (static_cast<size_t>(count) * sizeof(T) + 63) & ~static_cast<size_t>(63);
    return reinterpret_cast<T*>(result);
  }

 private:
  size_t bytes_;
  char* memory_;
  char* next_;
};

}  // namespace micron
