// From tensors to the kernels of this CPU.
#include "checks.h"

namespace micron::swap_patches {
namespace {

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
