// From tensors to the kernels of this CPU.
#include "checks.h"

namespace micron::swap_patches {
namespace {

void run(const Forward& arguments) { MICRON_DISPATCH(forward, arguments); }
void run(const Backward& arguments) { MICRON_DISPATCH(backward, arguments); }

void forward(const Tensor& frame, const Tensor& other, const Tensor& swap, int64_t patch_size, const Tensor& factor,
             const Tensor& shift, const Tensor& out) {
  Forward f = forward_arguments(frame, other, swap, patch_size, factor, shift, out);
  f.out = output_data<void>("out", out, out.scalar_type(), {f.batch, f.channels, f.height, f.width});
  if (!empty(f)) run(f);
}

void backward(const Tensor& grad, const Tensor& swap, int64_t patch_size, const Tensor& factor, const Tensor& d_frame,
              const Tensor& d_other) {
  Backward b = backward_arguments(grad, swap, patch_size, factor, d_frame, d_other);
  const auto dtype = d_frame.scalar_type();
  b.d_frame = output_data<void>("d_frame", d_frame, dtype, {b.batch, b.channels, b.height, b.width});
  b.d_other = output_data<void>("d_other", d_other, dtype, {b.batch, b.channels, b.height, b.width});
  if (!empty(b)) run(b);
}

}  // namespace
}  // namespace micron::swap_patches

STABLE_TORCH_LIBRARY_IMPL(micron_native, CPU, m) {
  m.impl("swap_patches", TORCH_BOX(&micron::swap_patches::forward));
  m.impl("swap_patches_backward", TORCH_BOX(&micron::swap_patches::backward));
}
