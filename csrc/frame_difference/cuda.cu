// Frame difference on CUDA. Formulas: micron_kernels/frame_difference/reference.py.
//
// Blocks of the forward pass own groups of whole patches of a strip (a row of patches) for up to MOMENTS frames, and
// read the reference once for these; the next block reads it again from the L2 cache. A thread adds up a column of
// vectors over the rows of the strip; the columns of a patch are added in shared memory.
#include <numeric>

#include "../cuda/vector.h"
#include "checks.h"

namespace micron::frame_difference {
namespace {

using namespace micron::cuda;

constexpr int MOMENTS = 4;  // frames that are under way at a time

// Terms that a thread adds up in a row, before their sum is added to the others': the error of a float sum grows with
// them, and a patch may have thousands of rows.
constexpr int SUMMED_ROWS = 128;

// How the work of a forward pass is split: blocks are batch × strips × groups × parts.
struct Split {
  int strips, groups, parts;
  int group_columns;  // of the patches of a block
  int slot_bits;      // 2^slot_bits neighbouring elements of a vector always lie in one patch
};

template <class T>
__device__ T* row_of(const Images& x, int64_t b, int64_t t, int plane, int y) {
  return static_cast<T*>(const_cast<void*>(x.data)) + b * x.stride_image + t * x.stride_time +
         plane * x.stride_plane + y * x.stride_row;
}

// Adds the differences of the vectors at `column` to `total`, over every blockDim.y-th of the rows [first_row, rows)
// of the strip, those of all planes in turn.
template <bool SQUARED, class T, int V, int TIME>
__device__ void add_rows(const Problem& p, int64_t b, int64_t t0, int strip, int column, int first_row, int rows,
                         float (&total)[TIME][V]) {
  constexpr int ROWS = TIME == 1 ? 4 : 1;  // so that enough loads are under way
  const int height = static_cast<int>(p.patch_height);
  for (int first = first_row + static_cast<int>(threadIdx.y); first < rows; first += ROWS * blockDim.y) {
    Vector<T, V> r[ROWS], x[ROWS][TIME];
    float factor[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      const int row = first + i * static_cast<int>(blockDim.y), plane = row / height;
      const int y = strip * height + row % height;
      const bool inside = row < rows;
      r[i] = inside ? load_again<V>(row_of<const T>(p.reference, b, 0, plane, y) + column) : zeros<V, T>();
      factor[i] = inside && p.channels == 1 ? p.factors[plane] : 1.0f;
#pragma unroll
      for (int t = 0; t < TIME; ++t) {
        x[i][t] = r[i];
        if (inside && t0 + t < p.time) x[i][t] = load<V>(row_of<const T>(p.frames, b, t0 + t, plane, y) + column);
      }
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
#pragma unroll
      for (int t = 0; t < TIME; ++t) {
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const float d = x[i][t][e] - r[i][e];
          total[t][e] = fmaf(factor[i], SQUARED ? d * d : fabsf(d), total[t][e]);
        }
      }
    }
  }
}

template <bool SQUARED, class T, int V, int TIME>
__global__ void __launch_bounds__(BLOCK_THREADS, 2) forward_kernel(const Forward p, const Split s) {
  MICRON_DYNAMIC_SHARED(memory);
  float* const sums = reinterpret_cast<float*>(memory);  // [TIME, blockDim.y, slots]: of slots, row by row of threads
  const int slots = static_cast<int>(blockDim.x * V) >> s.slot_bits;
  const int threads = static_cast<int>(blockDim.x * blockDim.y);
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const int patch_columns = static_cast<int>(p.patch_columns), across = static_cast<int>(p.columns) / patch_columns;
  const float size = static_cast<float>(p.planes * p.patch_height * p.patch_columns);

  int64_t block = blockIdx.x;
  const int64_t t0 = block % s.parts * TIME;
  block /= s.parts;
  const int64_t begin = block % s.groups * s.group_columns;
  block /= s.groups;
  const int strip = static_cast<int>(block % s.strips);
  const int64_t b = block / s.strips;
  const int end = static_cast<int>(min(begin + s.group_columns, p.columns));

  const int rows = static_cast<int>(p.planes * p.patch_height);
  const int pass_rows = SUMMED_ROWS * static_cast<int>(blockDim.y);
  for (int64_t chunk = begin; chunk < end; chunk += blockDim.x * V) {
    for (int first_row = 0; first_row == 0 || first_row < rows; first_row += pass_rows) {  // without rows, of nothing
      const int64_t column = chunk + threadIdx.x * V;
      if (column < end) {
        float total[TIME][V] = {};
        const int last_row = min(first_row + pass_rows, rows);
        add_rows<SQUARED, T, V, TIME>(p, b, t0, strip, static_cast<int>(column), first_row, last_row, total);
        if (p.channels > 1) {
          int channel = static_cast<int>(column) % static_cast<int>(p.channels);
#pragma unroll
          for (int e = 0; e < V; ++e) {
            const float factor = p.factors[channel];
            channel = channel + 1 == p.channels ? 0 : channel + 1;
#pragma unroll
            for (int t = 0; t < TIME; ++t) total[t][e] *= factor;
          }
        }
#pragma unroll
        for (int t = 0; t < TIME; ++t) {
#pragma unroll
          for (int width = 1, bit = 0; width < V; width *= 2, ++bit) {
            if (bit >= s.slot_bits) break;
#pragma unroll
            for (int e = 0; e < V; e += 2 * width) total[t][e] += total[t][e + width];
          }
          float* row = sums + (t * static_cast<int>(blockDim.y) + static_cast<int>(threadIdx.y)) * slots;
#pragma unroll
          for (int e = 0; e < V; ++e) {
            const int element = static_cast<int>(threadIdx.x) * V + e;
            if ((e & ((1 << s.slot_bits) - 1)) == 0) row[element >> s.slot_bits] = total[t][e];
          }
        }
      }
      __syncthreads();
      const int chunk_end = static_cast<int>(min(chunk + blockDim.x * V, static_cast<int64_t>(end)));
      const int first = static_cast<int>(chunk) / patch_columns;
      const int patches = (chunk_end - 1) / patch_columns + 1 - first;
      for (int i = thread; i < TIME * patches; i += threads) {
        const int t = i / patches, patch = first + i % patches;
        if (t0 + t >= p.time) break;
        const int from = max(patch * patch_columns, static_cast<int>(chunk));
        const int to = static_cast<int>(min(static_cast<int64_t>(patch + 1) * patch_columns,
                                            static_cast<int64_t>(chunk_end)));
        float sum = 0.0f;
        for (int y = 0; y < static_cast<int>(blockDim.y); ++y) {
          const float* row = sums + (t * static_cast<int>(blockDim.y) + y) * slots;
          const int first_slot = (from - static_cast<int>(chunk)) >> s.slot_bits;
          const int last_slot = (to - static_cast<int>(chunk)) >> s.slot_bits;
          for (int slot = first_slot; slot < last_slot; ++slot) sum += row[slot];
        }
        float* out = p.out + ((b * p.time + t0 + t) * s.strips + strip) * across + patch;
        const bool begins = first_row == 0 && from == patch * patch_columns;  // a patch may go on in the next pass
        *out = (begins ? 0.0f : *out) + sum / size;
      }
      __syncthreads();
    }
  }
}

// The sign of d with NaN staying NaN, or 2d.
template <bool SQUARED>
__device__ float derivative(float d) {
  if (SQUARED) return d + d;
  return d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : d;
}

template <bool SQUARED, class T, int V>
__global__ void __launch_bounds__(BLOCK_THREADS, 2)
    backward_kernel(const Backward p, int strips, int across, int down) {
  unsigned block = blockIdx.x;
  const int64_t column = static_cast<int64_t>(block % across * blockDim.x + threadIdx.x) * V;
  block /= across;
  const int row = static_cast<int>(block % down * blockDim.y + threadIdx.y);
  block /= down;
  const int strip = static_cast<int>(block % strips);
  const int64_t b = block / strips;
  const int height = static_cast<int>(p.patch_height);
  if (column >= p.columns || row >= static_cast<int>(p.planes) * height) return;
  const int plane = row / height, y = strip * height + row % height;

  const int patch_columns = static_cast<int>(p.patch_columns);
  const int64_t patches = static_cast<int>(p.columns) / patch_columns, patch = static_cast<int>(column) / patch_columns;
  const int channels = static_cast<int>(p.channels);
  float factor[V];
  unsigned starts = 1;  // elements from which another gradient holds
#pragma unroll
  for (int e = 0; e < V; ++e) {
    const int element = static_cast<int>(column) + e;
    factor[e] = p.factors[channels == 1 ? plane : element % channels] /
                static_cast<float>(p.planes * p.patch_height * p.patch_columns);
    if (element % patch_columns == 0) starts |= 1u << e;
  }

  const Vector<T, V> r = load<V>(row_of<const T>(p.reference, b, 0, plane, y) + column);
  float sums[V] = {};
  for (int64_t t0 = 0; t0 < p.time; t0 += MOMENTS) {
    Vector<T, V> x[MOMENTS];
#pragma unroll
    for (int t = 0; t < MOMENTS; ++t) {
      if (t0 + t < p.time) x[t] = load<V>(row_of<const T>(p.frames, b, t0 + t, plane, y) + column);
    }
#pragma unroll
    for (int t = 0; t < MOMENTS; ++t) {
      if (t0 + t >= p.time) break;
      const float* grad = p.grad + ((b * p.time + t0 + t) * strips + strip) * patches + patch;
      float g = 0.0f;
      Vector<T, V> d_x;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        if (starts >> e & 1) g = *grad++;
        const float slope = g * factor[e] * derivative<SQUARED>(x[t][e] - r[e]);
        sums[e] -= slope;
        d_x.set(e, slope);
      }
      store<V>(row_of<T>(p.d_frames, b, t0 + t, plane, y) + column, d_x);
    }
  }
  Vector<T, V> d_r;
#pragma unroll
  for (int e = 0; e < V; ++e) d_r.set(e, sums[e]);
  store<V>(row_of<T>(p.d_reference, b, 0, plane, y) + column, d_r);
}

// Rows of `x` can be moved V elements at a time.
bool fits(const Problem& p, const Tensor& x, int vector) {
  const int64_t bytes = vector * static_cast<int64_t>(x.element_size());
  const int c = static_cast<int>(x.dim()) - 3;
  return p.columns % vector == 0 && is_aligned(x, {0, c - 1, c + 1}, bytes) &&
         (p.channels > 1 || is_aligned(x, {c}, bytes));
}

template <class T>
constexpr int VECTOR = 16 / static_cast<int>(sizeof(T));

void check_size(const Problem& p) {
  STD_TORCH_CHECK(p.columns < INT32_MAX / 2 && p.planes * p.patch_height < INT32_MAX / 2,
                  "frames have too many rows or columns");
}

template <bool SQUARED, class T, int V>
void launch_forward(const Device& device, const Forward& p) {
  const int64_t both = std::gcd<int64_t>(V, p.patch_columns);
  const int64_t unit = p.patch_columns / both;  // vectors of the fewest patches that fill whole vectors
  const int64_t vectors = p.columns / V, widest = BLOCK_THREADS / 2;
  const int64_t units = ceil_div(vectors, unit), most = unit < widest ? widest / unit : 1;
  const int64_t groups = ceil_div(units, most), group_vectors = ceil_div(units, groups) * unit;

  const bool alone = p.time == 1;
  const int time = alone ? 1 : MOMENTS, rows_at_once = alone ? 4 : 1;
  const Tiles tiles(group_vectors < vectors ? group_vectors : vectors,
                    ceil_div(p.planes * p.patch_height, rows_at_once));
  Split s;
  s.strips = static_cast<int>(p.strips()), s.groups = static_cast<int>(groups);
  s.parts = static_cast<int>(ceil_div(p.time, time));
  s.group_columns = static_cast<int>(group_vectors * V);
  s.slot_bits = 0;
  while ((2 << s.slot_bits) <= both) ++s.slot_bits;
  const dim3 block(tiles.block.x, tiles.block.y);
  const size_t shared = sizeof(float) * static_cast<size_t>(time) * (block.x * V >> s.slot_bits) * block.y;
  const auto kernel = alone ? forward_kernel<SQUARED, T, V, 1> : forward_kernel<SQUARED, T, V, MOMENTS>;
  device.launch(kernel, dim3(grid_of(p.batch * p.strips() * groups * s.parts)), block, shared, p, s);
}

template <bool SQUARED, class T, int V>
void launch_backward(const Device& device, const Backward& p) {
  const Tiles tiles(p.columns / V, p.planes * p.patch_height);
  const unsigned grid = grid_of(p.batch * p.strips() * tiles.across * tiles.down);
  device.launch(backward_kernel<SQUARED, T, V>, dim3(grid), tiles.block, 0, p, static_cast<int>(p.strips()),
                tiles.across, tiles.down);
}

Tensor forward(const Tensor& frames, const Tensor& reference, int64_t patch_size, bool squared, const Tensor& factors,
               bool channels_last) {
  Forward f{problem(frames, reference, patch_size, squared, factors, channels_last)};
  const Tensor out = new_result(frames, f);
  f.out = data_of<float>(out);
  if (f.batch * f.time * f.height * f.columns == 0) return out;
  check_size(f);
  const Device device(frames);
  with_image(f.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int V = VECTOR<T>;
    const bool fast = fits(f, frames, V) && fits(f, reference, V);
    if (squared) return fast ? launch_forward<true, T, V>(device, f) : launch_forward<true, T, 1>(device, f);
    return fast ? launch_forward<false, T, V>(device, f) : launch_forward<false, T, 1>(device, f);
  });
  return out;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& frames, const Tensor& reference,
                                    int64_t patch_size, bool squared, const Tensor& factors, bool channels_last) {
  const Tensor d_frames = new_gradient(frames, channels_last), d_reference = new_gradient(reference, channels_last);
  const Backward b = backward_arguments(grad, frames, reference, patch_size, squared, factors, channels_last,
                                        d_frames, d_reference);
  const std::tuple<Tensor, Tensor> results{d_frames, d_reference};
  if (b.batch * b.planes * b.height * b.columns == 0) return results;  // without frames, the reference's is still 0
  check_size(b);
  const Device device(frames);
  with_floating(b.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int V = VECTOR<T>;
    const bool fast = fits(b, frames, V) && fits(b, reference, V) && fits(b, d_frames, V) && fits(b, d_reference, V);
    if (squared) return fast ? launch_backward<true, T, V>(device, b) : launch_backward<true, T, 1>(device, b);
    return fast ? launch_backward<false, T, V>(device, b) : launch_backward<false, T, 1>(device, b);
  });
  return results;
}

}  // namespace
}  // namespace micron::frame_difference

MICRON_CUDA_OPERATORS(m) {
  m.impl("frame_difference", TORCH_BOX(&micron::frame_difference::forward));
  m.impl("frame_difference_backward", TORCH_BOX(&micron::frame_difference::backward));
}
