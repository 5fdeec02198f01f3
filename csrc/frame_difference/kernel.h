// Frame difference on CPU: the arguments of the kernels, free of torch.
#pragma once

#include "../cpu/common.h"
#include "../cpu/instruction_set.h"

namespace micron::frame_difference {

// Images seen as planes of rows. NCHW memory: C planes, rows of W columns, patches of P columns. Channels-last
// memory: 1 plane, rows of W·C columns, patches of P·C columns.
struct Images {
  const void* data;
  int64_t stride_image, stride_time, stride_plane, stride_row;
};

struct Problem {
  Dtype dtype;
  bool squared;  // l2
  int64_t batch, time, planes, height, columns;
  int64_t patch_height, patch_columns;
  Images frames, reference;
  // What |d| (l1) or d² (l2) is multiplied by: one factor a plane, or one for each of `channels` interleaved
  // columns where there is a single plane of them. The 1/255 of uint8 is in them.
  const float* factors;
  int64_t channels;

  int64_t strips() const { return height / patch_height; }
  int64_t patches_across() const { return columns / patch_columns; }
  double patch_size() const { return static_cast<double>(planes * patch_height * patch_columns); }
};

struct Forward : Problem {
  float* out;  // (B, T, N)
};

struct Backward : Problem {
  const float* grad;       // (B, T, N)
  Images d_frames;         // of dtype, in planes too
  Images d_reference;
};

MICRON_FOR_EACH_INSTRUCTION_SET(MICRON_DECLARE_BOTH_WAYS)

}  // namespace micron::frame_difference
