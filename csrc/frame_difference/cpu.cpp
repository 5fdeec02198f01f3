// From tensors to the kernels of this CPU.
#include "../tensor.h"
#include "kernel.h"

namespace micron::frame_difference {
namespace {

// `x` (B, C, H, W) or (B, T, C, H, W) as planes of contiguous rows.
Images images(const char* name, const Tensor& x, bool channels_last) {
  const int64_t c = x.dim() - 3, channels = x.size(c), width = x.size(c + 2);
  if (channels_last) {
    STD_TORCH_CHECK((channels == 1 || x.stride(c) == 1) && (width == 1 || x.stride(c + 2) == channels), name,
                    ": rows of pixels must be contiguous");
  } else {
    check_unit_stride(name, x);
  }
  return {x.data_ptr(), x.stride(0), c == 2 ? x.stride(1) : 0, channels_last ? 0 : x.stride(c), x.stride(c + 1)};
}

Problem problem(const Tensor& frames, const Tensor& reference, int64_t patch_size, bool squared,
                const Tensor& factors, bool channels_last) {
  STD_TORCH_CHECK(frames.dim() == 4 || frames.dim() == 5, "frames must be (B, C, H, W) or (B, T, C, H, W)");
  const int64_t c = frames.dim() - 3, batch = frames.size(0);
  const int64_t channels = frames.size(c), height = frames.size(c + 1), width = frames.size(c + 2);
  check_shape("reference", reference, {batch, channels, height, width});
  STD_TORCH_CHECK(reference.scalar_type() == frames.scalar_type(), "reference has the wrong dtype");
  STD_TORCH_CHECK(patch_size > 0 && height % patch_size == 0 && width % patch_size == 0, "patch_size must divide");
  Problem p;
  p.dtype = dtype_of("frames", frames);
  p.squared = squared;
  p.batch = batch, p.time = c == 2 ? frames.size(1) : 1, p.height = height, p.patch_height = patch_size;
  p.planes = channels_last ? 1 : channels;
  p.channels = channels_last ? channels : 1;
  p.columns = width * p.channels, p.patch_columns = patch_size * p.channels;
  p.frames = images("frames", frames, channels_last);
  p.reference = images("reference", reference, channels_last);
  p.factors = contiguous_data<const float>("factors", factors, ScalarType::Float, {channels});
  return p;
}

// (B, N) or (B, T, N).
Tensor new_result(const Tensor& frames, const Problem& p) {
  const int64_t patches = p.strips() * p.patches_across();
  return frames.dim() == 4 ? new_tensor(frames, ScalarType::Float, {p.batch, patches})
                           : new_tensor(frames, ScalarType::Float, {p.batch, p.time, patches});
}

// A gradient of `x`, contiguous, to be filled.
Tensor new_gradient(const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  return x.dim() == 4 ? new_tensor(x, dtype, {x.size(0), x.size(1), x.size(2), x.size(3)})
                      : new_tensor(x, dtype, {x.size(0), x.size(1), x.size(2), x.size(3), x.size(4)});
}

Backward backward_arguments(const Tensor& grad, const Tensor& frames, const Tensor& reference, int64_t patch_size,
                            bool squared, const Tensor& factors, const Tensor& d_frames, const Tensor& d_reference) {
  Backward b{problem(frames, reference, patch_size, squared, factors, false)};
  STD_TORCH_CHECK(b.dtype != Dtype::uint8, "uint8 frames have no gradient");
  const int64_t patches = b.strips() * b.patches_across();
  b.grad = frames.dim() == 4
               ? contiguous_data<const float>("grad", grad, ScalarType::Float, {b.batch, patches})
               : contiguous_data<const float>("grad", grad, ScalarType::Float, {b.batch, b.time, patches});
  b.d_frames = images("d_frames", d_frames, false);
  b.d_reference = images("d_reference", d_reference, false);
  return b;
}

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
                                    int64_t patch_size, bool squared, const Tensor& factors) {
  const Tensor d_frames = new_gradient(frames), d_reference = new_gradient(reference);
  const Backward b =
      backward_arguments(grad, frames, reference, patch_size, squared, factors, d_frames, d_reference);
  if (b.batch * b.height * b.columns > 0) run(b);  // without frames, the gradient of the reference is still 0
  return {d_frames, d_reference};
}

}  // namespace
}  // namespace micron::frame_difference

STABLE_TORCH_LIBRARY_IMPL(micron_native, CPU, m) {
  m.impl("frame_difference", TORCH_BOX(&micron::frame_difference::forward));
  m.impl("frame_difference_backward", TORCH_BOX(&micron::frame_difference::backward));
}
