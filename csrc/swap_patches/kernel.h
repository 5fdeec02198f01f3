// Patch swapping on CPU: the arguments of the kernels, free of torch.
#pragma once

#include "../cpu/common.h"
#include "../cpu/instruction_set.h"

namespace micron::swap_patches {

struct Image {
  const void* data;  // (B, C, H, W)
  int64_t stride_b, stride_c, stride_y, stride_x;
};

struct Problem {
  int64_t batch, channels, height, width, patch_size;
  const bool* swap;     // (B, N), contiguous
  const float* factor;  // (C,): results are factor · x + shift
  const float* shift;   // (C,)

  int64_t across() const { return width / patch_size; }
  int64_t strips() const { return height / patch_size; }
};

struct Forward : Problem {
  Dtype from, to;
  Image frame, other;
  void* out;  // (B, C, H, W), contiguous
};

struct Backward : Problem {
  Dtype from, to;
  Image grad;
  void *d_frame, *d_other;  // (B, C, H, W), contiguous
};

MICRON_FOR_EACH_INSTRUCTION_SET(MICRON_DECLARE_BOTH_WAYS)

}  // namespace micron::swap_patches
