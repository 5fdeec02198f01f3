#include "common.h"

#include <cstdlib>
#include <new>

#include <torch/csrc/stable/ops.h>

namespace micron {

void parallel_for(int64_t count, int64_t grain, ParallelBody body, void* context) {
  torch::stable::parallel_for(0, count, grain, [=](int64_t begin, int64_t end) { body(context, begin, end); });
}

int64_t thread_count() { return torch::stable::get_num_threads(); }

Workspace::Workspace(size_t bytes)
    : memory_(static_cast<char*>(std::aligned_alloc(64, (bytes + 127) & ~static_cast<size_t>(63)))), next_(memory_) {
  if (memory_ == nullptr) throw std::bad_alloc();
}

Workspace::~Workspace() { std::free(memory_); }

}  // namespace micron
