// From tensors to the arguments of the kernels of any device.
#pragma once

#include "../tensor.h"
#include "kernel.h"

namespace micron::swap_patches {

inline Image image(const Tensor& x) { return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)}; }

inline Problem problem(const Tensor& like, const Tensor& swap, int64_t patch_size, const Tensor& factor,
                       const OptionalTensor& shift) {
  Problem p;
  p.batch = like.size(0), p.channels = like.size(1), p.height = like.size(2), p.width = like.size(3);
  STD_TORCH_CHECK(patch_size > 0 && p.height % patch_size == 0 && p.width % patch_size == 0, "patch_size must divide");
  p.patch_size = patch_size;
  p.swap = contiguous_data<const bool>("swap", swap, ScalarType::Bool, {p.batch, p.strips() * p.across()});
  p.factor = contiguous_data<const float>("factor", factor, ScalarType::Float, {p.channels});
  p.shift = contiguous_data<const float>("shift", shift, ScalarType::Float, {p.channels});
  return p;
}

inline bool empty(const Problem& p) { return p.batch * p.channels * p.height * p.width == 0; }

inline Dtype floating(const char* name, const Tensor& x) {
  const Dtype dtype = dtype_of(name, x);
  STD_TORCH_CHECK(dtype != Dtype::uint8, name, " must be floating");
  return dtype;
}

// Contiguous, to be filled.
inline Tensor new_image(const Tensor& like, ScalarType dtype) {
  STD_TORCH_CHECK(like.dim() == 4, "an image must be (B, C, H, W)");
  return new_tensor(like, dtype, {like.size(0), like.size(1), like.size(2), like.size(3)});
}

inline Forward forward_arguments(const Tensor& frame, const Tensor& other, const Tensor& swap, int64_t patch_size,
                                 const Tensor& factor, const Tensor& shift, const Tensor& out) {
  Forward f{problem(frame, swap, patch_size, factor, shift)};
  check_shape("other", other, {f.batch, f.channels, f.height, f.width});
  STD_TORCH_CHECK(other.scalar_type() == frame.scalar_type(), "other has the wrong dtype");
  f.from = dtype_of("frame", frame), f.to = floating("the result", out);
  f.frame = image(frame), f.other = image(other);
  f.out = out.data_ptr();
  return f;
}

inline Backward backward_arguments(const Tensor& grad, const Tensor& swap, int64_t patch_size, const Tensor& factor,
                                   const Tensor& d_frame, const Tensor& d_other) {
  Backward b{problem(grad, swap, patch_size, factor, std::nullopt)};
  b.from = floating("grad", grad), b.to = floating("a gradient", d_frame);
  b.grad = image(grad);
  b.d_frame = d_frame.data_ptr(), b.d_other = d_other.data_ptr();
  return b;
}

}  // namespace micron::swap_patches
