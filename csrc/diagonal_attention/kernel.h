// Diagonal attention on CPU: the arguments of the kernels, free of torch.
#pragma once

#include "../cpu/common.h"
#include "../cpu/instruction_set.h"

namespace micron::diagonal_attention {

// (B, H, N, width); a row of `width` elements is contiguous, the other strides are free.
struct Tokens {
  const void* data = nullptr;
  int64_t stride_b = 0, stride_h = 0, stride_n = 0;
  int64_t width = 0;
};

struct Problem {
  Dtype dtype;
  int64_t batch, heads, length, computed;  // computed = K with rows, N without
  float scale;
  Tokens query, key, value;
  const float* row_weight = nullptr;  // (B, H, N) by strides, or null
  int64_t weight_stride_b = 0, weight_stride_h = 0, weight_stride_n = 0;
  const int64_t* rows = nullptr;      // (B, K), contiguous, or null
  const bool* key_mask = nullptr;     // (B, N), contiguous, or null
};

struct Forward : Problem {
  void* out;         // (B, H, K, Ev) of dtype
  float* weights;    // (B, H, K)
  float* row_max;    // (B, H, K): max_j s_ij, 0 where every score is −inf
  float* row_sum;    // (B, H, K): Σ_j exp(s_ij − max), 1 where every score is −inf
  float* exponentials = nullptr;  // (B, H, K, N): exp(s_ij − max), or null
};

struct Backward : Problem {
  Tokens grad_out;                      // (B, H, K, Ev); data may be null
  const float* grad_weights = nullptr;  // (B, H, K), contiguous, or null
  const float *weights, *row_max, *row_sum;  // (B, H, K), contiguous: of the forward
  const float* exponentials = nullptr;       // (B, H, K, N), contiguous, or null: then the scores are made again
  // Contiguous fp32; null where nobody wants it. With rows, those of query, value and weight must hold zeros:
  // gradients are added up.
  float* d_query = nullptr;   // (B, H, N, E)
  float* d_key = nullptr;     // (B, H, N, E)
  float* d_value = nullptr;   // (B, H, N, Ev)
  float* d_weight = nullptr;  // (B, H, N)
};

#define MICRON_DECLARE(set)           \
  namespace set {                     \
  void forward(const Forward&);       \
  void backward(const Backward&);     \
  }
MICRON_FOR_EACH_INSTRUCTION_SET(MICRON_DECLARE)
#ifdef MICRON_X86
MICRON_DECLARE(avx512_bf16)  // for bf16 only: S by vdpbf16ps
#endif
#undef MICRON_DECLARE

}  // namespace micron::diagonal_attention
