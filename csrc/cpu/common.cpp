#include "common.h"

#include <atomic>
#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <torch/csrc/stable/ops.h>

namespace micron {

void parallel_for(int64_t count, int64_t grain, ParallelBody body, void* context) {
  torch::stable::parallel_for(0, count, grain, [=](int64_t begin, int64_t end) { body(context, begin, end); });
}

int64_t thread_count() { return torch::stable::get_num_threads(); }

void advise_huge_pages(void* data, size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t PAGE = 4096, WORTH_IT = 16 << 20;
  if (bytes < WORTH_IT) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + PAGE - 1) / PAGE * PAGE;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / PAGE * PAGE;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // refused or not, the kernel goes on
#endif
}

namespace {
std::atomic<int64_t> scratch_held{0}, scratch_peak{0};
}

int64_t take_scratch_peak() { return scratch_peak.exchange(scratch_held.load()); }

Workspace::Workspace(size_t bytes)
    : bytes_((bytes + 127) & ~static_cast<size_t>(63)),
      memory_(static_cast<char*>(std::aligned_alloc(64, bytes_))),
      next_(memory_) {
  if (memory_ == nullptr) throw std::bad_alloc();
  const int64_t held = scratch_held += static_cast<int64_t>(bytes_);
  int64_t peak = scratch_peak.load();
  while (held > peak && !scratch_peak.compare_exchange_weak(peak, held)) {
  }
}

Workspace::~Workspace() {
  scratch_held -= static_cast<int64_t>(bytes_);
  std::free(memory_);
}

}  // namespace micron
