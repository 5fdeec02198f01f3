// From tensors to the kernels of this CPU.
#include "checks.h"

namespace micron::frame_difference {
namespace {

void run(const Forward& arguments) { MICRON_DISPATCH(forward, arguments); }
void run(const Backward& arguments) { MICRON_DISPATCH(backward, arguments); }

void forward(const Tensor& frames, const Tensor& reference, int64_t patch_size, bool squared, const Tensor& factors,
             bool channels_last, const Tensor& out) {
  const Forward f = forward_arguments(frames, reference, patch_size, squared, factors, channels_last, out);
  if (f.batch * f.time * f.height * f.columns > 0) run(f);
}

void backward(const Tensor& grad, const Tensor& frames, const Tensor& reference, int64_t patch_size, bool squared,
              const Tensor& factors, bool channels_last, const Tensor& d_frames, const Tensor& d_reference) {
  const Backward b = backward_arguments(grad, frames, reference, patch_size, squared, factors, channels_last,
                                        d_frames, d_reference);
  if (b.batch * b.height * b.columns > 0) run(b);  // without frames, the gradient of the reference is still 0
}

}  // namespace
}  // namespace micron::frame_difference

STABLE_TORCH_LIBRARY_IMPL(micron_native, CPU, m) {
  m.impl("frame_difference", TORCH_BOX(&micron::frame_difference::forward));
  m.impl("frame_difference_backward", TORCH_BOX(&micron::frame_difference::backward));
}
