// From tensors to the kernels of this CPU.
#include "../tensor.h"
#include "kernel.h"

namespace micron::swap_patches {
namespace {

Image image(const Tensor& x) { return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)}; }

Problem problem(const Tensor& like, const Tensor& swap, int64_t patch_size, const Tensor& factor,
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

bool empty(const Problem& p) { return p.batch * p.channels * p.height * p.width == 0; }

// Contiguous, to be filled.
Tensor new_image(const Tensor& like, ScalarType dtype) {
  STD_TORCH_CHECK(like.dim() == 4, "an image must be (B, C, H, W)");
  return new_tensor(like, dtype, {like.size(0), like.size(1), like.size(2), like.size(3)});
}

Forward forward_arguments(const Tensor& frame, const Tensor& other, const Tensor& swap, int64_t patch_size,
                          const Tensor& factor, const Tensor& shift, const Tensor& out) {
  Forward f{problem(frame, swap, patch_size, factor, shift)};
  check_shape("other", other, {f.batch, f.channels, f.height, f.width});
  STD_TORCH_CHECK(other.scalar_type() == frame.scalar_type(), "other has the wrong dtype");
  f.from = dtype_of("frame", frame), f.to = floating_dtype_of("the result", out);
  f.frame = image(frame), f.other = image(other);
  f.out = out.data_ptr();
  return f;
}

Backward backward_arguments(const Tensor& grad, const Tensor& swap, int64_t patch_size, const Tensor& factor,
                            const Tensor& d_frame, const Tensor& d_other) {
  Backward b{problem(grad, swap, patch_size, factor, std::nullopt)};
  b.from = floating_dtype_of("grad", grad), b.to = floating_dtype_of("a gradient", d_frame);
  b.grad = image(grad);
  b.d_frame = d_frame.data_ptr(), b.d_other = d_other.data_ptr();
  return b;
}

void run(const Forward& arguments) { MICRON_DISPATCH(forward, arguments); }
void run(const Backward& arguments) { MICRON_DISPATCH(backward, arguments); }

Tensor forward(const Tensor& frame, const Tensor& other, const Tensor& swap, int64_t patch_size, const Tensor& factor,
        const Tensor& shift, ScalarType dtype) {
  const Tensor out = new_image(frame, dtype);
  const Forward f = forward_arguments(frame, other, swap, patch_size, factor, shift, out);
  if (!empty(f)) run(f);
  return out;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& swap, int64_t patch_size, const Tensor& factor,
                             ScalarType dtype) {
  const Tensor d_frame = new_image(grad, dtype), d_other = new_image(grad, dtype);
  const Backward b = backward_arguments(grad, swap, patch_size, factor, d_frame, d_other);
  if (!empty(b)) run(b);
  return {d_frame, d_other};
}

}  // namespace
}  // namespace micron::swap_patches

STABLE_TORCH_LIBRARY_IMPL(micron_native, CPU, m) {
  m.impl("swap_patches", TORCH_BOX(&micron::swap_patches::forward));
  m.impl("swap_patches_backward", TORCH_BOX(&micron::swap_patches::backward));
}
