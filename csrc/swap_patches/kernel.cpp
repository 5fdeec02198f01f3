// Compiled once for every instruction set. Formulas: micron_kernels/swap_patches/reference.py.
//
// A strip is one row of patches. Neighbouring patches from the same frame form a run, and pixels are moved run by
// run, so that only the chosen ones are read. Registers may reach past the end of a run: the next run, written
// after it, puts that right.
#include "kernel.h"

#include "../cpu/vec.h"

namespace micron::swap_patches::MICRON_INSTRUCTION_SET {

using namespace ::micron::MICRON_INSTRUCTION_SET;

namespace {

struct Run {
  int64_t begin, end;
  bool swapped;
};

int64_t find_runs(const Problem& p, int64_t b, int64_t strip, Run* runs) {
  const bool* swap = p.swap + (b * p.strips() + strip) * p.across();
  int64_t count = 0;
  for (int64_t patch = 0; patch < p.across(); ++patch) {
    if (count == 0 || runs[count - 1].swapped != swap[patch]) {
      runs[count++] = {patch * p.patch_size, 0, swap[patch]};
    }
    runs[count - 1].end = (patch + 1) * p.patch_size;
  }
  return count;
}

template <class T>
MICRON_INLINE const T* row_of(const Image& image, int64_t b, int64_t c, int64_t y) {
  return static_cast<const T*>(image.data) + b * image.stride_b + c * image.stride_c + y * image.stride_y;
}

// to[x] = factor · from[x] + shift for x in the run; up to LANES − 1 more elements, but not past `width`.
template <class From, class To>
MICRON_INLINE void convert(const Run& run, int64_t width, const From* from, int64_t stride, float factor, float shift,
                           To* to) {
  const vfloat factors = broadcast(factor), shifts = broadcast(shift);
  int64_t x = run.begin;
  if (stride == 1) {
    for (; x < run.end && x + LANES <= width; x += LANES) store(to + x, fma(factors, load(from + x), shifts));
  }
  for (; x < run.end; ++x) from_float(fma(factor, to_float(from[x * stride]), shift), to + x);
}

template <class F>
void for_strips(const Problem& p, const F& f) {
  const int64_t pixels = p.channels * p.patch_size * p.width;
  parallel(p.batch * p.strips(), 1 + 32768 / (pixels + 1), [&](int64_t begin, int64_t end) {
    Workspace workspace(p.across() * sizeof(Run));
    Run* runs = workspace.take<Run>(p.across());
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / p.strips(), strip = i % p.strips(), count = find_runs(p, b, strip, runs);
      for (int64_t c = 0; c < p.channels; ++c) {
        for (int64_t y = strip * p.patch_size; y < (strip + 1) * p.patch_size; ++y) f(b, c, y, runs, count);
      }
    }
  });
}

template <class From, class To>
void forward_of(const Forward& p) {
  for_strips(p, [&](int64_t b, int64_t c, int64_t y, const Run* runs, int64_t count) {
    To* out = static_cast<To*>(p.out) + ((b * p.channels + c) * p.height + y) * p.width;
    const From* rows[2] = {row_of<From>(p.frame, b, c, y), row_of<From>(p.other, b, c, y)};
    const int64_t strides[2] = {p.frame.stride_x, p.other.stride_x};
    for (int64_t i = 0; i < count; ++i) {
      convert(runs[i], p.width, rows[runs[i].swapped], strides[runs[i].swapped], p.factor[c], p.shift[c], out);
    }
  });
}

template <class From, class To>
void backward_of(const Backward& p) {
  for_strips(p, [&](int64_t b, int64_t c, int64_t y, const Run* runs, int64_t count) {
    const int64_t offset = ((b * p.channels + c) * p.height + y) * p.width;
    To* results[2] = {static_cast<To*>(p.d_frame) + offset, static_cast<To*>(p.d_other) + offset};
    const From* grad = row_of<From>(p.grad, b, c, y);
    for (int64_t i = 0; i < count; ++i) {
      convert(runs[i], p.width, grad, p.grad.stride_x, p.factor[c], 0.0f, results[runs[i].swapped]);
      memset(static_cast<void*>(results[!runs[i].swapped] + runs[i].begin), 0,
             static_cast<size_t>(runs[i].end - runs[i].begin) * sizeof(To));
    }
  });
}

template <class From, class P, class F>
void with_to(const P& p, const F& f) {
  switch (p.to) {
    case Dtype::bfloat16:
      return f(From{}, bfloat16{});
    case Dtype::float16:
      return f(From{}, float16{});
    default:
      return f(From{}, float{});
  }
}

}  // namespace

void forward(const Forward& p) {
  const auto run = [&](auto from, auto to) { forward_of<decltype(from), decltype(to)>(p); };
  switch (p.from) {
    case Dtype::float32:
      return with_to<float>(p, run);
    case Dtype::bfloat16:
      return with_to<bfloat16>(p, run);
    case Dtype::float16:
      return with_to<float16>(p, run);
    case Dtype::uint8:
      return with_to<uint8_t>(p, run);
  }
}

void backward(const Backward& p) {
  const auto run = [&](auto from, auto to) { backward_of<decltype(from), decltype(to)>(p); };
  switch (p.from) {
    case Dtype::float32:
      return with_to<float>(p, run);
    case Dtype::bfloat16:
      return with_to<bfloat16>(p, run);
    case Dtype::float16:
      return with_to<float16>(p, run);
    case Dtype::uint8:
      return;
  }
}

}  // namespace micron::swap_patches::MICRON_INSTRUCTION_SET
