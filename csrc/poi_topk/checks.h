// From tensors to the arguments of the kernels of any device. What the indices hold is for each device to guard.
#pragma once

#include "../tensor.h"
#include "kernel.h"

namespace micron::poi_topk {

inline Scores scores_of(const Tensor& scores, int64_t batch, int64_t length) {
  check_shape("scores", scores, {batch, length});
  return {scores.data_ptr(), floating_dtype_of("scores", scores), scores.stride(0), scores.stride(1)};
}

inline TopK topk_arguments(const Tensor& scores, int64_t k, const OptionalTensor& mask, const Tensor& indices) {
  TopK p;
  p.batch = scores.size(0), p.length = scores.size(1), p.k = k;
  STD_TORCH_CHECK(p.length < INT32_MAX, "N must be below 2^31");
  p.scores = scores_of(scores, p.batch, p.length);
  p.mask = mask ? data_of<bool>(*mask) : nullptr;
  p.indices = data_of<int64_t>(indices);
  return p;
}

// (B, k), to be filled.
inline Tensor new_indices(const Tensor& scores, int64_t k) {
  STD_TORCH_CHECK(scores.dim() == 2, "scores must be (B, N)");
  STD_TORCH_CHECK(k >= 0 && k <= scores.size(1), "k must lie in [0, N]");
  return new_tensor(scores, ScalarType::Long, {scores.size(0), k});
}

// All but the memory of tokens and results.
inline Gather gather_of(const Tensor& indices, const Tensor& scores, bool weighted, bool in_place, const Tensor& like) {
  STD_TORCH_CHECK(like.dim() == 3, "tokens must be (B, N, D)");
  Gather p;
  p.dtype = floating_dtype_of("tokens", like);
  p.batch = like.size(0), p.length = scores.size(1), p.width = like.size(2), p.in_place = in_place;
  STD_TORCH_CHECK(indices.dim() == 2, "indices must be (B, k)");
  p.k = indices.size(1);
  p.indices = contiguous_data<const int64_t>("indices", indices, ScalarType::Long, {p.batch, p.k});
  const Scores factors = scores_of(scores, p.batch, p.length);
  if (weighted) p.scores = factors;
  return p;
}

// `tokens` has contiguous rows.
inline Gather gather_arguments(const Tensor& tokens, const Tensor& scores, const Tensor& indices, bool weighted,
                               bool in_place) {
  Gather p = gather_of(indices, scores, weighted, in_place, tokens);
  check_shape("tokens", tokens, {p.batch, p.length, p.width});
  p.tokens = tokens.data_ptr(), p.stride_b = tokens.stride(0), p.stride_n = tokens.stride(1);
  return p;
}

inline Tensor new_kept(const Gather& p, const Tensor& tokens) {
  return new_tensor(tokens, tokens.scalar_type(), {p.batch, p.in_place ? p.length : p.k, p.width});
}

// `grad` and `tokens` have contiguous rows; tokens are read where the scores are factors.
inline GatherBackward backward_arguments(const Tensor& grad, const Tensor& tokens, const Tensor& scores,
                                         const Tensor& indices, bool weighted, bool in_place) {
  GatherBackward p{gather_of(indices, scores, weighted, in_place, grad)};
  check_shape("grad", grad, {p.batch, in_place ? p.length : p.k, p.width});
  p.grad = grad.data_ptr(), p.grad_stride_b = grad.stride(0), p.grad_stride_n = grad.stride(1);
  check_shape("tokens", tokens, {p.batch, p.length, p.width});
  STD_TORCH_CHECK(tokens.scalar_type() == grad.scalar_type(), "tokens has the wrong dtype");
  p.tokens = weighted ? tokens.data_ptr() : nullptr, p.stride_b = tokens.stride(0), p.stride_n = tokens.stride(1);
  return p;
}

}  // namespace micron::poi_topk
