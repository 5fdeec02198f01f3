// Patch-of-Interest top-k on CPU: the arguments of the kernels, free of torch.
#pragma once

#include "../cpu/common.h"
#include "../cpu/instruction_set.h"

namespace micron::poi_topk {

struct Scores {
  const void* data = nullptr;  // (B, N)
  Dtype dtype;
  int64_t stride_b, stride_n;
};

struct TopK {
  int64_t batch, length, k;
  Scores scores;
  bool* mask;        // (B, N), contiguous, or null
  int64_t* indices;  // (B, k), contiguous
};

// The kept tokens, in their own places among zeros (mask_tokens) or side by side (select_tokens).
struct Gather {
  Dtype dtype;  // of tokens and out
  int64_t batch, length, k, width;
  const void* tokens;  // (B, N, D); elements of a token contiguous
  int64_t stride_b, stride_n;
  Scores scores;           // factors, if there is data
  const int64_t* indices;  // (B, k), ascending
  bool in_place;
  void* out;  // (B, N, D) if in_place, else (B, k, D); contiguous
};

struct GatherBackward : Gather {
  const void* grad;  // of the shape of out; elements of a token contiguous
  int64_t grad_stride_b, grad_stride_n;
  void* d_tokens;   // (B, N, D), contiguous
  float* d_scores;  // (B, N), contiguous, or null
};

#define MICRON_DECLARE(set)               \
  namespace set {                         \
  void topk(const TopK&);                 \
  void gather(const Gather&);             \
  void backward(const GatherBackward&);   \
  }
MICRON_FOR_EACH_INSTRUCTION_SET(MICRON_DECLARE)
#undef MICRON_DECLARE

}  // namespace micron::poi_topk
