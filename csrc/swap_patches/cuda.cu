// Patch swapping on CUDA. Formulas: micron_kernels/swap_patches/reference.py.
//
// A thread takes the same pixels of every channel: it looks up `swap` once, and has several loads under way. As many
// pixels make a vector as fill 16 bytes of the wider side, which is then read and written in full sectors.
#include "../cuda/vector.h"
#include "checks.h"

namespace micron::swap_patches {
namespace {

using namespace micron::cuda;

constexpr int CHANNELS = 4;  // under way at a time

// Which pixels a thread has: those from `column` on, of row `y` of image b.
struct Place {
  int64_t b;
  int y, column;
  bool inside;
  bool swapped;
};

template <int V>
__device__ Place place_of(const Problem& p, int across, int down) {
  unsigned block = blockIdx.x;
  const int column = static_cast<int>((block % across * blockDim.x + threadIdx.x) * V);
  block /= across;
  const int row = static_cast<int>(block % down * blockDim.y + threadIdx.y);
  block /= down;
  const int width = static_cast<int>(p.width), patch_size = static_cast<int>(p.patch_size);
  const int strips = static_cast<int>(p.height) / patch_size, patches = width / patch_size;
  const int64_t b = block / strips;
  const int strip = static_cast<int>(block % strips);
  const bool inside = row < patch_size && column < width;
  const bool swapped = inside && p.swap[(b * strips + strip) * patches + column / patch_size];
  return {b, strip * patch_size + row, column, inside, swapped};
}

template <class T>
__device__ const T* pixels(const Image& image, const Place& at) {
  return static_cast<const T*>(image.data) + at.b * image.stride_b + at.y * image.stride_y +
         at.column * image.stride_x;
}

// Where the first channel of these pixels is in a contiguous image.
__device__ int64_t offset(const Problem& p, const Place& at) {
  return (at.b * p.channels * p.height + at.y) * p.width + at.column;
}

// Calls write(offset of a channel, factor · pixels + shift) for every channel.
template <class To, class From, int V, class Write>
__device__ void convert(const Problem& p, const From* from, int64_t stride_c, const Write& write) {
  for (int64_t first = 0; first < p.channels; first += CHANNELS) {
    Vector<From, V> pixels[CHANNELS];
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      if (first + i < p.channels) pixels[i] = load<V>(from + (first + i) * stride_c);
    }
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      const int64_t c = first + i;
      if (c >= p.channels) break;
      const float factor = p.factor[c], shift = p.shift == nullptr ? 0.0f : p.shift[c];
      Vector<To, V> result;
#pragma unroll
      for (int e = 0; e < V; ++e) result.set(e, fmaf(factor, pixels[i][e], shift));
      write(c * p.height * p.width, result);
    }
  }
}

template <class From, class To, int V>
__global__ void __launch_bounds__(BLOCK_THREADS, 4) forward_kernel(const Forward p, int across, int down) {
  const Place at = place_of<V>(p, across, down);
  if (!at.inside) return;
  const From* from = at.swapped ? pixels<From>(p.other, at) : pixels<From>(p.frame, at);
  To* to = static_cast<To*>(p.out) + offset(p, at);
  convert<To, From, V>(p, from, at.swapped ? p.other.stride_c : p.frame.stride_c,
                       [&](int64_t channel, const Vector<To, V>& x) { store<V>(to + channel, x); });
}

template <class From, class To, int V>
__global__ void __launch_bounds__(BLOCK_THREADS, 4) backward_kernel(const Backward p, int across, int down) {
  const Place at = place_of<V>(p, across, down);
  if (!at.inside) return;
  To* taken = static_cast<To*>(at.swapped ? p.d_other : p.d_frame) + offset(p, at);
  To* left = static_cast<To*>(at.swapped ? p.d_frame : p.d_other) + offset(p, at);
  convert<To, From, V>(p, pixels<From>(p.grad, at), p.grad.stride_c, [&](int64_t channel, const Vector<To, V>& x) {
    store<V>(taken + channel, x);
    store<V>(left + channel, zeros<V, To>());
  });
}

// Pixels of an image or a contiguous result can be moved V at a time: no vector crosses a patch.
bool fits(const Tensor& x, int64_t patch_size, int vector) {
  const bool contiguous_rows = x.size(3) <= 1 || x.stride(3) == 1;
  const int64_t bytes = vector * static_cast<int64_t>(x.element_size());
  return patch_size % vector == 0 && contiguous_rows && is_aligned(x, {0, 1, 2}, bytes);
}

template <class From, class To>
constexpr int VECTOR = 16 / static_cast<int>(sizeof(From) > sizeof(To) ? sizeof(From) : sizeof(To));

template <class P>
void launch(const Device& device, void (*kernel)(P, int, int), const P& p, int vector) {
  STD_TORCH_CHECK(p.height < INT32_MAX / 2 && p.width < INT32_MAX / 2, "an image has too many rows or columns");
  const Tiles tiles(p.width / vector, p.patch_size);
  const unsigned grid = grid_of(p.batch * p.strips() * tiles.across * tiles.down);
  device.launch(kernel, dim3(grid), tiles.block, 0, p, tiles.across, tiles.down);
}

Tensor forward(const Tensor& frame, const Tensor& other, const Tensor& swap, int64_t patch_size, const Tensor& factor,
               const Tensor& shift, ScalarType dtype) {
  const Tensor out = new_image(frame, dtype);
  const Forward f = forward_arguments(frame, other, swap, patch_size, factor, shift, out);
  if (empty(f)) return out;
  const Device device(frame);
  with_image(f.from, [&](auto from) {
    with_floating(f.to, [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      constexpr int V = VECTOR<From, To>;
      const bool fast = fits(frame, patch_size, V) && fits(other, patch_size, V) && fits(out, patch_size, V);
      launch(device, fast ? forward_kernel<From, To, V> : forward_kernel<From, To, 1>, f, fast ? V : 1);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& swap, int64_t patch_size, const Tensor& factor,
                                    ScalarType dtype) {
  const Tensor d_frame = new_image(grad, dtype), d_other = new_image(grad, dtype);
  const Backward b = backward_arguments(grad, swap, patch_size, factor, d_frame, d_other);
  const std::tuple<Tensor, Tensor> results{d_frame, d_other};
  if (empty(b)) return results;
  const Device device(grad);
  with_floating(b.from, [&](auto from) {
    with_floating(b.to, [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      constexpr int V = VECTOR<From, To>;
      const bool fast = fits(grad, patch_size, V) && fits(d_frame, patch_size, V) && fits(d_other, patch_size, V);
      launch(device, fast ? backward_kernel<From, To, V> : backward_kernel<From, To, 1>, b, fast ? V : 1);
    });
  });
  return results;
}

}  // namespace
}  // namespace micron::swap_patches

MICRON_CUDA_OPERATORS(m) {
  m.impl("swap_patches", TORCH_BOX(&micron::swap_patches::forward));
  m.impl("swap_patches_backward", TORCH_BOX(&micron::swap_patches::backward));
}
