// Patch-of-Interest top-k on CUDA. Formulas: micron_kernels/poi_topk/reference.py.
#include "../cuda/vector.h"
#include "checks.h"

namespace micron::poi_topk {
namespace {

using namespace micron::cuda;

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int DIGIT_BITS = 8, DIGITS = 1 << DIGIT_BITS;
constexpr int MAX_WARPS = 16;               // of a block that selects
constexpr int64_t MAX_SHARED = 88 * 1024;   // for the keys of a row: every GPU since compute capability 8.0 has it

__device__ float score(const Scores& scores, int64_t b, int64_t n) {
  const int64_t i = b * scores.stride_b + n * scores.stride_n;
  switch (scores.dtype) {
    case Dtype::bfloat16:
      return to_float(static_cast<const __nv_bfloat16*>(scores.data)[i]);
    case Dtype::float16:
      return to_float(static_cast<const __half*>(scores.data)[i]);
    default:
      return static_cast<const float*>(scores.data)[i];
  }
}

// Unsigned integers in the order of the scores: −0 equals 0, NaN comes below −inf.
__device__ unsigned order(float score) {
  const float x = score + 0.0f;
  const unsigned bits = __float_as_uint(x);
  return x != x ? 0u : bits >> 31 ? ~bits : bits | 0x80000000u;
}

struct Digit {
  int value;
  int wanted;  // among the keys with this digit
};

// The digit of the wanted-th highest key, given how many keys have each; by one warp.
__device__ Digit find_digit(const int* counts, int wanted) {
  constexpr int EACH = DIGITS / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32, highest = DIGITS - 1 - lane * EACH;
  int own = 0;
  for (int i = 0; i < EACH; ++i) own += counts[highest - i];
  int up_to_here = own;
  for (int distance = 1; distance < 32; distance *= 2) {
    const int above = __shfl_up_sync(ALL_LANES, up_to_here, distance);
    if (lane >= distance) up_to_here += above;
  }
  const int lane_of_digit = __ffs(static_cast<int>(__ballot_sync(ALL_LANES, up_to_here >= wanted))) - 1;
  Digit digit{highest, wanted - (up_to_here - own)};
  if (lane == lane_of_digit) {
    while (digit.wanted > counts[digit.value]) digit.wanted -= counts[digit.value--];
  }
  return {__shfl_sync(ALL_LANES, digit.value, lane_of_digit), __shfl_sync(ALL_LANES, digit.wanted, lane_of_digit)};
}

// One row a block: radix select of the k-th highest key, then the kept positions in ascending order.
__global__ void __launch_bounds__(MAX_WARPS * 32) topk_kernel(const TopK p, const bool keys_are_kept) {
  MICRON_DYNAMIC_SHARED(memory);
  unsigned* const keys = reinterpret_cast<unsigned*>(memory);  // [N], if they fit
  __shared__ int counts[DIGITS];
  __shared__ Digit digit;
  __shared__ int above_of[MAX_WARPS], ties_of[MAX_WARPS];
  const int64_t b = blockIdx.x;
  const int length = static_cast<int>(p.length), threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, warps = threads / 32;

  if (keys_are_kept) {  // each thread goes on to read the keys that it has written
    for (int n = thread; n < length; n += threads) keys[n] = order(score(p.scores, b, n));
  }
  const auto key = [&](int64_t n) { return keys_are_kept ? keys[n] : order(score(p.scores, b, n)); };

  unsigned bound = 0, known = 0;  // the digits found so far, and which bits these are
  int wanted = static_cast<int>(p.k);
  for (int shift = 32 - DIGIT_BITS; wanted > 0 && shift >= 0; shift -= DIGIT_BITS) {
    for (int i = thread; i < DIGITS; i += threads) counts[i] = 0;
    __syncthreads();
    for (int64_t n = thread; n < length; n += threads) {
      const unsigned x = key(n);
      if ((x & known) == bound) atomicAdd(&counts[x >> shift & (DIGITS - 1)], 1);
    }
    __syncthreads();
    if (warp == 0) {
      const Digit found = find_digit(counts, wanted);
      if (thread == 0) digit = found;
    }
    __syncthreads();
    bound |= static_cast<unsigned>(digit.value) << shift;
    known |= static_cast<unsigned>(DIGITS - 1) << shift;
    wanted = digit.wanted;
  }

  // Kept are the keys above the bound and the first `wanted` of those at it.
  const unsigned earlier_lanes = (1u << thread % 32) - 1;
  int above_before = 0, ties_before = 0;  // in the pieces before this one
  for (int64_t piece = 0; piece < length; piece += threads) {
    const int64_t n = piece + thread;
    const unsigned x = n < length ? key(n) : 0;
    const bool above = n < length && p.k > 0 && x > bound, tie = n < length && p.k > 0 && x == bound;
    const unsigned all_above = __ballot_sync(ALL_LANES, above), all_ties = __ballot_sync(ALL_LANES, tie);
    if (thread % 32 == 0) above_of[warp] = __popc(all_above), ties_of[warp] = __popc(all_ties);
    __syncthreads();
    int rank_above = above_before + __popc(all_above & earlier_lanes);
    int rank_tie = ties_before + __popc(all_ties & earlier_lanes);
    for (int w = 0; w < warps; ++w) {
      if (w < warp) rank_above += above_of[w], rank_tie += ties_of[w];
      above_before += above_of[w], ties_before += ties_of[w];
    }
    const bool keep = above || (tie && rank_tie < wanted);
    if (keep) p.indices[b * p.k + rank_above + min(rank_tie, wanted)] = n;
    if (p.mask != nullptr && n < length) p.mask[b * p.length + n] = keep;
    __syncthreads();
  }
}

constexpr int GATHER_WARPS = 8, GATHER_ROWS = 32;  // of a block that moves tokens

// Tokens on their way between (B, N, D) and (B, k, D), or within (B, N, D) with zeros for those not kept.
struct Move {
  int64_t batch, length, k, width;
  const int64_t* indices;
  Scores scores;  // factors, if there is data
  const void* from;
  int64_t stride_b, stride_n;
  bool from_all, to_all;  // there are N rows rather than k
  void* to;
  const void* tokens;  // of which d_scores is the product with `from`
  int64_t tokens_stride_b, tokens_stride_n;
  float* d_scores;  // or null

  int64_t rows;         // of `to`
  int64_t blocks;       // that share them
};

// How many of the ascending indices lie below n; by one warp.
__device__ int64_t count_below(const int64_t* indices, int64_t k, int64_t n) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int64_t low = 0, high = k;
  while (low < high) {
    const int64_t step = (high - low + 31) / 32, i = low + lane * step;
    const int below = __popc(__ballot_sync(ALL_LANES, i < high && indices[i] < n));
    if (below == 0) break;
    high = min(high, low + below * step);
    low += (below - 1) * step + 1;
  }
  return low;
}

template <class T, int V>
__device__ void write_zeros(const Move& p, T* to) {
  for (int64_t i = threadIdx.x % 32 * V; i < p.width; i += 32 * V) store<V>(to + i, zeros<V, T>());
}

// to = from (· factor); returns what this lane has of token · from.
template <class T, int V>
__device__ float write_row(const Move& p, const T* from, const T* token, float factor, T* to) {
  float dot = 0.0f;
#pragma unroll 4
  for (int64_t i = threadIdx.x % 32 * V; i < p.width; i += 32 * V) {
    const Vector<T, V> x = load<V>(from + i);
    if (token != nullptr) {
      const Vector<T, V> other = load<V>(token + i);
#pragma unroll
      for (int e = 0; e < V; ++e) dot = fmaf(x[e], other[e], dot);
    }
    Vector<T, V> y = x;
    if (p.scores.data != nullptr) {
#pragma unroll
      for (int e = 0; e < V; ++e) y.set(e, x[e] * factor);
    }
    store<V>(to + i, y);
  }
  return dot;
}

// GATHER_ROWS rows of `to` a block, one a warp at a time.
template <class T, int V>
__global__ void __launch_bounds__(GATHER_WARPS * 32) move_kernel(const Move p) {
  __shared__ int64_t kept[GATHER_ROWS];  // which of the k kept tokens a row is, or -1
  const int64_t b = blockIdx.x / p.blocks, first = blockIdx.x % p.blocks * GATHER_ROWS;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int64_t* indices = p.indices + b * p.k;

  if (thread < GATHER_ROWS) kept[thread] = p.to_all || first + thread >= p.k ? -1 : first + thread;
  __syncthreads();
  if (p.to_all && thread < 32) {
    const int64_t j = count_below(indices, p.k, first) + lane;
    const int64_t row = j < p.k ? indices[j] - first : -1;
    if (row >= 0 && row < GATHER_ROWS) kept[row] = j;
  }
  __syncthreads();

  for (int i = thread / 32; i < GATHER_ROWS && first + i < p.rows; i += GATHER_WARPS) {
    T* to = static_cast<T*>(p.to) + (b * p.rows + first + i) * p.width;
    const int64_t j = kept[i], n = p.to_all ? first + i : j < 0 ? -1 : indices[j];
    if (j < 0 || n < 0 || n >= p.length) {
      write_zeros<T, V>(p, to);
      if (p.d_scores != nullptr && lane == 0) p.d_scores[b * p.length + first + i] = 0.0f;
      continue;
    }
    const T* from = static_cast<const T*>(p.from) + b * p.stride_b + (p.from_all ? n : j) * p.stride_n;
    const T* token = nullptr;
    if (p.d_scores != nullptr) {
      token = static_cast<const T*>(p.tokens) + b * p.tokens_stride_b + n * p.tokens_stride_n;
    }
    const float factor = p.scores.data == nullptr ? 1.0f : score(p.scores, b, n);
    float dot = write_row<T, V>(p, from, token, factor, to);
    if (p.d_scores != nullptr) {
      for (int distance = 16; distance > 0; distance /= 2) dot += __shfl_xor_sync(ALL_LANES, dot, distance);
      if (lane == 0) p.d_scores[b * p.length + n] = dot;
    }
  }
}
static_assert(GATHER_ROWS == 32, "one warp finds the kept among the rows of a block");

template <class T>
constexpr int VECTOR = 16 / static_cast<int>(sizeof(T));

bool fits(const OptionalTensor& x, int vector) {
  return !x || (x->size(2) % vector == 0 && is_aligned(*x, {0, 1}, vector * static_cast<int64_t>(x->element_size())));
}

void launch(Move& p, Dtype dtype, const Tensor& from, const Tensor& to, const OptionalTensor& tokens) {
  p.rows = p.to_all ? p.length : p.k, p.blocks = ceil_div(p.rows, GATHER_ROWS);
  if (p.batch * p.rows == 0 || (p.width == 0 && p.d_scores == nullptr)) return;
  const Device device(to);
  with_floating(dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int V = VECTOR<T>;
    const bool fast = fits(from, V) && fits(to, V) && fits(tokens, V);
    device.launch(fast ? move_kernel<T, V> : move_kernel<T, 1>, dim3(grid_of(p.batch * p.blocks)),
                  dim3(GATHER_WARPS * 32), 0, p);
  });
}

Move move_of(const Gather& p) {
  Move m{};
  m.batch = p.batch, m.length = p.length, m.k = p.k, m.width = p.width;
  m.indices = p.indices, m.scores = p.scores;
  return m;
}

void find(const Tensor& scores, int64_t k, const OptionalTensor& mask, const Tensor& indices) {
  const TopK p = topk_arguments(scores, k, mask, indices);
  if (p.batch * p.length == 0) return;
  const Device device(scores);
  const int64_t keys_bytes = p.length * static_cast<int64_t>(sizeof(unsigned)), warps = ceil_div(p.length, 4 * 32);
  const bool keys_are_kept = keys_bytes <= MAX_SHARED;
  const dim3 block(32 * static_cast<unsigned>(warps < MAX_WARPS ? warps : MAX_WARPS));
  device.launch(topk_kernel, dim3(grid_of(p.batch)), block, static_cast<size_t>(keys_are_kept ? keys_bytes : 0), p,
                keys_are_kept);
}

std::tuple<Tensor, Tensor> topk_mask(const Tensor& scores, int64_t k) {
  const Tensor indices = new_indices(scores, k);
  const Tensor mask = new_tensor(scores, ScalarType::Bool, {scores.size(0), scores.size(1)});
  find(scores, k, mask, indices);
  return {mask, indices};
}

std::tuple<Tensor, Tensor> keep(const Tensor& any_tokens, const Tensor& scores, int64_t k, bool weighted,
                                bool in_place) {
  const Tensor indices = new_indices(scores, k), tokens = with_contiguous_rows(any_tokens);
  const Gather p = gather_arguments(tokens, scores, indices, weighted, in_place);
  const Tensor out = new_kept(p, tokens);
  find(scores, k, std::nullopt, indices);
  Move m = move_of(p);
  m.from = p.tokens, m.stride_b = p.stride_b, m.stride_n = p.stride_n, m.from_all = true;
  m.to = out.data_ptr(), m.to_all = in_place;
  launch(m, p.dtype, tokens, out, std::nullopt);
  return {out, indices};
}

std::tuple<Tensor, OptionalTensor> backward(const Tensor& any_grad, const Tensor& any_tokens, const Tensor& scores,
                                            const Tensor& indices, bool weighted, bool in_place) {
  const Tensor grad = with_contiguous_rows(any_grad);
  const Tensor tokens = weighted ? with_contiguous_rows(any_tokens) : any_tokens;
  const GatherBackward p = backward_arguments(grad, tokens, scores, indices, weighted, in_place);
  const Tensor d_tokens = new_tensor(grad, grad.scalar_type(), {p.batch, p.length, p.width});
  OptionalTensor d_scores;
  if (weighted) d_scores = new_tensor(grad, ScalarType::Float, {p.batch, p.length});
  Move m = move_of(p);
  m.from = p.grad, m.stride_b = p.grad_stride_b, m.stride_n = p.grad_stride_n, m.from_all = in_place;
  m.to = d_tokens.data_ptr(), m.to_all = true;
  m.tokens = p.tokens, m.tokens_stride_b = p.stride_b, m.tokens_stride_n = p.stride_n;
  m.d_scores = weighted ? data_of<float>(*d_scores) : nullptr;
  launch(m, p.dtype, grad, d_tokens, weighted ? OptionalTensor(tokens) : std::nullopt);
  return {d_tokens, d_scores};
}

}  // namespace
}  // namespace micron::poi_topk

MICRON_CUDA_OPERATORS(m) {
  m.impl("topk_mask", TORCH_BOX(&micron::poi_topk::topk_mask));
  m.impl("keep_tokens", TORCH_BOX(&micron::poi_topk::keep));
  m.impl("keep_tokens_backward", TORCH_BOX(&micron::poi_topk::backward));
}
