// From tensors to the kernels of this CPU.
#include "checks.h"

namespace micron::frame_difference {
namespace {

void run(const Forward& arguments) { MICRON_DISPATCH(forward, arguments); }
void run(const Backward& arguments) { MICRON_DISPATCH(backward, arguments); }

Tensor forward(const Tensor& frames, const Tensor& reference, int64_t patch_size, bool squared, const Tensor& factors,
               bool channels_last) {
  Forward f{problem(frames, reference, patch_size, squared, factors, channels_last)};
  const Tensor out = new_result(frames, f);
  f.out = data_of<float>(out);
  if (f.batch * f.time * f.height * f.columns > 0) run(f);
  return out;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& frames, const Tensor& reference,
                                    int64_t patch_size, bool squared, const Tensor& factors, bool channels_last) {
  const Tensor d_frames = new_gradient(frames, channels_last), d_reference = new_gradient(reference, channels_last);
  const Backward b = backward_arguments(grad, frames, reference, patch_size, squared, factors, channels_last,
                                        d_frames, d_reference);
  if (b.batch * b.height * b.columns > 0) run(b);  // without frames, the gradient of the reference is still 0
  return {d_frames, d_reference};
}

}  // namespace
}  // namespace micron::frame_difference

STABLE_TORCH_LIBRARY_IMPL(micron_native, CPU, m) {
  m.impl("frame_difference", TORCH_BOX(&micron::frame_difference::forward));
  m.impl("frame_difference_backward", TORCH_BOX(&micron::frame_difference::backward));
}
