// Compiled once for every instruction set. Formulas: micron_kernels/frame_difference/reference.py.
//
// The work is done strip by strip, a strip being one row of patches. Differences are added up column by column,
// with full registers whatever the patch size; the columns of a patch are added at the end of a plane, or of a piece
// of it. The strip of the reference stays in the cache while all T frames are compared with it.
#include "kernel.h"

#include "../cpu/vec.h"

namespace micron::frame_difference::MICRON_INSTRUCTION_SET {

using namespace ::micron::MICRON_INSTRUCTION_SET;

namespace {

template <class T>
MICRON_INLINE T* row_of(const Images& x, int64_t b, int64_t t, int64_t plane, int64_t y) {
  return static_cast<T*>(const_cast<void*>(x.data)) + b * x.stride_image + t * x.stride_time +
         plane * x.stride_plane + y * x.stride_row;
}

// Asks for the same plane of the next strip: a strip is walked column by column, which no prefetcher foresees.
template <class T>
MICRON_INLINE void prefetch_next_strip(const Problem& p, const Images& x, int64_t b, int64_t t, int64_t plane,
                                       int64_t index) {
  if (index + 1 == p.strips()) return;
  for (int64_t y = 0; y < p.patch_height; ++y) {
    const T* row = row_of<const T>(x, b, t, plane, (index + 1) * p.patch_height + y);
    for (int64_t i = 0; i < p.columns; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(row + i);
  }
}

// What a column of a plane is added up in, over at most ROWS rows. The error of a float sum grows with the terms that
// follow each other; 2¹⁶ squares of 255 are what 32 bits hold. All that comes after, over patches that may have
// millions of pixels, is added up in double.
template <class T>
struct Column {
  using type = float;
  static constexpr int64_t ROWS = 64;
};
template <>
struct Column<uint8_t> {
  using type = uint32_t;
  static constexpr int64_t ROWS = 1 << 16;
};

template <bool SQUARED, class T>
MICRON_INLINE void add_row(int64_t columns, const T* x, const T* r, float* sums) {
  map(
      columns, sums,
      [](vfloat a, vfloat b, vfloat sum) {
        const vfloat d = a - b;
        return SQUARED ? fma(d, d, sum) : sum + abs(d);
      },
      x, r, sums);
}

template <bool SQUARED>
MICRON_INLINE void add_row(int64_t columns, const uint8_t* __restrict x, const uint8_t* __restrict r,
                           uint32_t* __restrict sums) {
  for (int64_t i = 0; i < columns; ++i) {
    const int32_t d = static_cast<int32_t>(x[i]) - r[i];
    sums[i] += static_cast<uint32_t>(SQUARED ? d * d : d < 0 ? -d : d);
  }
}

// Adds the columns of each patch, times their factors, to `patches`.
template <class C>
MICRON_INLINE void add_patches(const Problem& p, int64_t plane, const C* sums, double* patches) {
  for (int64_t patch = 0; patch < p.patches_across(); ++patch, sums += p.patch_columns) {
    if (p.channels == 1) {
      double total = 0;
      for (int64_t i = 0; i < p.patch_columns; ++i) total += sums[i];
      patches[patch] += total * p.factors[plane];
    } else {
      for (int64_t channel = 0; channel < p.channels; ++channel) {
        double total = 0;
        for (int64_t i = channel; i < p.patch_columns; i += p.channels) total += sums[i];
        patches[patch] += total * p.factors[channel];
      }
    }
  }
}

// The means of a strip of patches at time t.
MICRON_INLINE void store_means(const Forward& p, int64_t b, int64_t t, int64_t index, const double* patches) {
  float* out = p.out + ((b * p.time + t) * p.strips() + index) * p.patches_across();
  for (int64_t i = 0; i < p.patches_across(); ++i) out[i] = static_cast<float>(patches[i] / p.patch_size());
}

template <bool SQUARED, class T>
void strip(const Forward& p, int64_t b, int64_t index, typename Column<T>::type* sums, double* patches) {
  const int64_t top = index * p.patch_height, bottom = top + p.patch_height;
  for (int64_t t = 0; t < p.time; ++t) {
    zero(patches, p.patches_across());
    for (int64_t plane = 0; plane < p.planes; ++plane) {
      for (int64_t first = top, end; first < bottom; first = end) {
        end = first + Column<T>::ROWS < bottom ? first + Column<T>::ROWS : bottom;
        zero(sums, p.columns);
        for (int64_t y = first; y < end; ++y) {
          add_row<SQUARED>(p.columns, row_of<const T>(p.frames, b, t, plane, y),
                           row_of<const T>(p.reference, b, 0, plane, y), sums);
        }
        add_patches(p, plane, sums, patches);
      }
    }
    store_means(p, b, t, index, patches);
  }
}

#if defined(__AVX2__)
// Sums of |x − r| over groups of 8 columns by one instruction, where those groups do not cross patches.
#if defined(__AVX512BW__)
void add_rows_by_eights(const Problem& p, const uint8_t* x, const uint8_t* r, int64_t* sums) {
  for (int64_t i = 0; i < p.columns; i += 64) {
    const int64_t left = p.columns - i;
    const __mmask64 bytes = left < 64 ? (1ull << left) - 1 : ~0ull;
    const __mmask8 groups = static_cast<__mmask8>(left < 64 ? (1u << (left / 8)) - 1 : 0xff);
    __m512i total = _mm512_maskz_loadu_epi64(groups, sums + i / 8);
    for (int64_t y = 0; y < p.patch_height; ++y) {
      const __m512i a = _mm512_maskz_loadu_epi8(bytes, x + y * p.frames.stride_row + i);
      const __m512i b = _mm512_maskz_loadu_epi8(bytes, r + y * p.reference.stride_row + i);
      total = _mm512_add_epi64(total, _mm512_sad_epu8(a, b));
    }
    _mm512_mask_storeu_epi64(sums + i / 8, groups, total);
  }
}
#else
void add_rows_by_eights(const Problem& p, const uint8_t* x, const uint8_t* r, int64_t* sums) {
  int64_t i = 0;
  for (; i + 32 <= p.columns; i += 32) {
    __m256i total = load_bits<__m256i>(sums + i / 8);
    for (int64_t y = 0; y < p.patch_height; ++y) {
      const __m256i a = load_bits<__m256i>(x + y * p.frames.stride_row + i);
      const __m256i b = load_bits<__m256i>(r + y * p.reference.stride_row + i);
      total = _mm256_add_epi64(total, _mm256_sad_epu8(a, b));
    }
    store_bits(sums + i / 8, total);
  }
  for (; i < p.columns; i += 8) {
    __m128i total = _mm_loadl_epi64((const __m128i*)(sums + i / 8));
    for (int64_t y = 0; y < p.patch_height; ++y) {
      const __m128i a = _mm_loadl_epi64((const __m128i*)(x + y * p.frames.stride_row + i));
      const __m128i b = _mm_loadl_epi64((const __m128i*)(r + y * p.reference.stride_row + i));
      total = _mm_add_epi64(total, _mm_sad_epu8(a, b));
    }
    _mm_storel_epi64((__m128i*)(sums + i / 8), total);
  }
}
#endif

bool fits_eights(const Problem& p) {
  return p.dtype == Dtype::uint8 && !p.squared && p.channels == 1 && p.patch_columns % 8 == 0;
}

void strip_by_eights(const Forward& p, int64_t b, int64_t index, int64_t* sums, double* patches) {
  const int64_t across = p.patches_across(), top = index * p.patch_height, groups = p.patch_columns / 8;
  for (int64_t t = 0; t < p.time; ++t) {
    zero(patches, across);
    for (int64_t plane = 0; plane < p.planes; ++plane) {
      zero(sums, p.columns / 8);
      prefetch_next_strip<uint8_t>(p, p.frames, b, t, plane, index);
      if (t == 0) prefetch_next_strip<uint8_t>(p, p.reference, b, 0, plane, index);
      add_rows_by_eights(p, row_of<const uint8_t>(p.frames, b, t, plane, top),
                         row_of<const uint8_t>(p.reference, b, 0, plane, top), sums);
      for (int64_t i = 0; i < across; ++i) {
        int64_t total = 0;
        for (int64_t group = 0; group < groups; ++group) total += sums[i * groups + group];
        patches[i] += static_cast<double>(total) * p.factors[plane];
      }
    }
    store_means(p, b, t, index, patches);
  }
}
#endif

constexpr int64_t GRAIN_BYTES = 64 << 10;  // less is not worth another thread

int64_t grain(const Problem& p) {
  const int64_t bytes = (p.time + 1) * p.planes * p.patch_height * p.columns;
  return bytes >= GRAIN_BYTES ? 1 : GRAIN_BYTES / (bytes + 1);
}

template <bool SQUARED, class T>
void forward_of(const Forward& p) {
  parallel(p.batch * p.strips(), grain(p), [&](int64_t begin, int64_t end) {
    Workspace workspace(p.columns * sizeof(uint64_t) + p.patches_across() * sizeof(double) + 64);
    double* patches = workspace.take<double>(p.patches_across());
#if defined(__AVX2__)
    if (fits_eights(p)) {
      int64_t* sums = workspace.take<int64_t>(p.columns / 8);
      for (int64_t i = begin; i < end; ++i) strip_by_eights(p, i / p.strips(), i % p.strips(), sums, patches);
      return;
    }
#endif
    auto* sums = workspace.take<typename Column<T>::type>(p.columns);
    for (int64_t i = begin; i < end; ++i) strip<SQUARED, T>(p, i / p.strips(), i % p.strips(), sums, patches);
  });
}

// slope[x] = g · factor of every column of a strip of one plane, before the sign (l1) or d (l2).
void spread_gradient(const Backward& p, int64_t b, int64_t t, int64_t index, int64_t plane, float* slope) {
  const float* grad = p.grad + ((b * p.time + t) * p.strips() + index) * p.patches_across();
  for (int64_t patch = 0; patch < p.patches_across(); ++patch) {
    const float g = static_cast<float>(grad[patch] / p.patch_size());
    for (int64_t i = 0; i < p.patch_columns; ++i) {
      *slope++ = g * p.factors[plane];
    }
  }
}

// The sign of d with NaN staying NaN, or 2d.
template <bool SQUARED>
MICRON_INLINE vfloat derivative(vfloat d) {
  if (SQUARED) return d + d;
  const vfloat one = bits_as<vfloat>((bits_as<vint>(d) & INT32_MIN) | bits_as<vint>(broadcast(1.0f)));
  return select(d != 0.0f, one, vfloat{}) + select(d != d, d, vfloat{});
}

template <bool SQUARED, class T>
void strip_backward(const Backward& p, int64_t b, int64_t index, float* slopes, float* sums) {
  for (int64_t plane = 0; plane < p.planes; ++plane) {
    for (int64_t t = 0; t < p.time; ++t) spread_gradient(p, b, t, index, plane, slopes + t * p.columns);
    for (int64_t y = index * p.patch_height; y < (index + 1) * p.patch_height; ++y) {
      memset(sums, 0, static_cast<size_t>(p.columns) * sizeof(float));
      const T* reference = row_of<const T>(p.reference, b, 0, plane, y);
      for (int64_t t = 0; t < p.time; ++t) {
        const T* frame = row_of<const T>(p.frames, b, t, plane, y);
        const float* slope = slopes + t * p.columns;
        const auto d_frame = [](vfloat x, vfloat r, vfloat s) { return s * derivative<SQUARED>(x - r); };
        map(p.columns, row_of<T>(p.d_frames, b, t, plane, y), d_frame, frame, reference, slope);
        map(
            p.columns, sums, [&](vfloat x, vfloat r, vfloat s, vfloat sum) { return sum - d_frame(x, r, s); }, frame,
            reference, slope, static_cast<const float*>(sums));
      }
      map(p.columns, row_of<T>(p.d_reference, b, 0, plane, y), [](vfloat x) { return x; }, sums);
    }
  }
}

template <bool SQUARED, class T>
void backward_of(const Backward& p) {
  parallel(p.batch * p.strips(), grain(p), [&](int64_t begin, int64_t end) {
    Workspace workspace((p.time + 1) * p.columns * sizeof(float) + 64);
    float* slopes = workspace.take<float>(p.time * p.columns);
    float* sums = workspace.take<float>(p.columns);
    for (int64_t i = begin; i < end; ++i) {
      strip_backward<SQUARED, T>(p, i / p.strips(), i % p.strips(), slopes, sums);
    }
  });
}

}  // namespace

void forward(const Forward& p) {
  switch (p.dtype) {
    case Dtype::float32:
      return p.squared ? forward_of<true, float>(p) : forward_of<false, float>(p);
    case Dtype::bfloat16:
      return p.squared ? forward_of<true, bfloat16>(p) : forward_of<false, bfloat16>(p);
    case Dtype::float16:
      return p.squared ? forward_of<true, float16>(p) : forward_of<false, float16>(p);
    case Dtype::uint8:
      return p.squared ? forward_of<true, uint8_t>(p) : forward_of<false, uint8_t>(p);
  }
}

void backward(const Backward& p) {
  switch (p.dtype) {
    case Dtype::float32:
      return p.squared ? backward_of<true, float>(p) : backward_of<false, float>(p);
    case Dtype::bfloat16:
      return p.squared ? backward_of<true, bfloat16>(p) : backward_of<false, bfloat16>(p);
    case Dtype::float16:
      return p.squared ? backward_of<true, float16>(p) : backward_of<false, float16>(p);
    case Dtype::uint8:
      return;
  }
}

}  // namespace micron::frame_difference::MICRON_INSTRUCTION_SET
