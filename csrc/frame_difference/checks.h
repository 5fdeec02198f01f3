// From tensors to the arguments of the kernels of any device.
#pragma once

#include "../tensor.h"
#include "kernel.h"

namespace micron::frame_difference {

// `x` (B, T, C, H, W) as planes of contiguous rows.
inline Images images(const char* name, const Tensor& x, bool channels_last) {
  const int64_t channels = x.size(2), width = x.size(4);
  if (channels_last) {
    STD_TORCH_CHECK((channels == 1 || x.stride(2) == 1) && (width == 1 || x.stride(4) == channels), name,
                    ": rows of pixels must be contiguous");
  } else {
    check_unit_stride(name, x);
  }
  return {x.data_ptr(), x.stride(0), x.stride(1), channels_last ? 0 : x.stride(2), x.stride(3)};
}

inline Problem problem(const Tensor& frames, const Tensor& reference, int64_t patch_size, bool squared,
                       const Tensor& factors, bool channels_last) {
  STD_TORCH_CHECK(frames.dim() == 5, "frames must be (B, T, C, H, W)");
  const int64_t batch = frames.size(0), channels = frames.size(2), height = frames.size(3), width = frames.size(4);
  check_shape("reference", reference, {batch, 1, channels, height, width});
  STD_TORCH_CHECK(reference.scalar_type() == frames.scalar_type(), "reference has the wrong dtype");
  STD_TORCH_CHECK(patch_size > 0 && height % patch_size == 0 && width % patch_size == 0, "patch_size must divide");
  Problem p;
  p.dtype = dtype_of("frames", frames);
  p.squared = squared;
  p.batch = batch, p.time = frames.size(1), p.height = height, p.patch_height = patch_size;
  p.planes = channels_last ? 1 : channels;
  p.channels = channels_last ? channels : 1;
  p.columns = width * p.channels, p.patch_columns = patch_size * p.channels;
  p.frames = images("frames", frames, channels_last);
  p.reference = images("reference", reference, channels_last);
  p.factors = contiguous_data<const float>("factors", factors, ScalarType::Float, {channels});
  return p;
}

inline Forward forward_arguments(const Tensor& frames, const Tensor& reference, int64_t patch_size, bool squared,
                                 const Tensor& factors, bool channels_last, const Tensor& out) {
  Forward f{problem(frames, reference, patch_size, squared, factors, channels_last)};
  f.out = contiguous_data<float>("out", out, ScalarType::Float, {f.batch, f.time, f.strips() * f.patches_across()});
  return f;
}

inline Backward backward_arguments(const Tensor& grad, const Tensor& frames, const Tensor& reference,
                                   int64_t patch_size, bool squared, const Tensor& factors, bool channels_last,
                                   const Tensor& d_frames, const Tensor& d_reference) {
  Backward b{problem(frames, reference, patch_size, squared, factors, channels_last)};
  STD_TORCH_CHECK(b.dtype != Dtype::uint8, "uint8 frames have no gradient");
  b.grad = contiguous_data<const float>("grad", grad, ScalarType::Float,
                                        {b.batch, b.time, b.strips() * b.patches_across()});
  for (const Tensor* x : {&d_frames, &d_reference}) {
    STD_TORCH_CHECK(x->scalar_type() == frames.scalar_type(), "a gradient has the wrong dtype");
  }
  const int64_t channels = frames.size(2), width = frames.size(4);
  check_shape("d_frames", d_frames, {b.batch, b.time, channels, b.height, width});
  check_shape("d_reference", d_reference, {b.batch, 1, channels, b.height, width});
  b.d_frames = images("d_frames", d_frames, channels_last);
  b.d_reference = images("d_reference", d_reference, channels_last);
  return b;
}

}  // namespace micron::frame_difference
