// From tensors to the arguments of the kernels of any device. What the indices hold is for each device to guard.
#pragma once

#include "../tensor.h"
#include "kernel.h"

namespace micron::poi_topk {

inline Dtype floating(const char* name, const Tensor& x) {
  const Dtype dtype = dtype_of(name, x);
  STD_TORCH_CHECK(dtype != Dtype::uint8, name, " must be floating");
  return dtype;
}

inline Scores scores_of(const Tensor& scores, int64_t batch, int64_t length) {
  check_shape("scores", scores, {batch, length});
  return {scores.data_ptr(), floating("scores", scores), scores.stride(0), scores.stride(1)};
}

inline TopK topk_arguments(const Tensor& scores, int64_t k, const OptionalTensor& mask, const Tensor& indices) {
  STD_TORCH_CHECK(scores.dim() == 2, "scores must be (B, N)");
  TopK p;
  p.batch = scores.size(0), p.length = scores.size(1), p.k = k;
  STD_TORCH_CHECK(k >= 0 && k <= p.length && p.length < INT32_MAX, "k must lie in [0, N], N below 2^31");
  p.scores = scores_of(scores, p.batch, p.length);
  p.mask = contiguous_data<bool>("mask", mask, ScalarType::Bool, {p.batch, p.length});
  p.indices = contiguous_data<int64_t>("indices", indices, ScalarType::Long, {p.batch, k});
  return p;
}

inline Gather gather_of(const Tensor& indices, const OptionalTensor& scores, bool in_place, int64_t batch,
                        int64_t length, int64_t width) {
  Gather p;
  p.batch = batch, p.length = length, p.width = width, p.in_place = in_place;
  STD_TORCH_CHECK(indices.dim() == 2, "indices must be (B, k)");
  p.k = indices.size(1);
  p.indices = contiguous_data<const int64_t>("indices", indices, ScalarType::Long, {batch, p.k});
  if (scores) p.scores = scores_of(*scores, batch, length);
  return p;
}

// All but the memory of the result.
inline Gather gather_arguments(const Tensor& tokens, const OptionalTensor& scores, const Tensor& indices,
                               bool in_place, const Tensor& out) {
  STD_TORCH_CHECK(tokens.dim() == 3, "tokens must be (B, N, D)");
  check_unit_stride("tokens", tokens);
  Gather p = gather_of(indices, scores, in_place, tokens.size(0), tokens.size(1), tokens.size(2));
  p.dtype = floating("tokens", tokens);
  p.tokens = tokens.data_ptr(), p.stride_b = tokens.stride(0), p.stride_n = tokens.stride(1);
  contiguous_data<void>("out", out, tokens.scalar_type(), {p.batch, in_place ? p.length : p.k, p.width});
  return p;
}

inline GatherBackward backward_arguments(const Tensor& grad, const OptionalTensor& tokens,
                                         const OptionalTensor& scores, const Tensor& indices, bool in_place,
                                         const Tensor& d_tokens, const OptionalTensor& d_scores) {
  STD_TORCH_CHECK(d_tokens.dim() == 3, "d_tokens must be (B, N, D)");
  const int64_t batch = d_tokens.size(0), length = d_tokens.size(1), width = d_tokens.size(2);
  GatherBackward p{gather_of(indices, scores, in_place, batch, length, width)};
  p.dtype = floating("grad", grad);
  check_shape("grad", grad, {batch, in_place ? length : p.k, width});
  check_unit_stride("grad", grad);
  p.grad = grad.data_ptr(), p.grad_stride_b = grad.stride(0), p.grad_stride_n = grad.stride(1);
  STD_TORCH_CHECK(!d_scores || tokens, "the gradient of scores needs the tokens");
  if (tokens) {
    check_shape("tokens", *tokens, {batch, length, width});
    STD_TORCH_CHECK(tokens->scalar_type() == grad.scalar_type(), "tokens has the wrong dtype");
    check_unit_stride("tokens", *tokens);
    p.tokens = tokens->data_ptr(), p.stride_b = tokens->stride(0), p.stride_n = tokens->stride(1);
  }
  contiguous_data<void>("d_tokens", d_tokens, grad.scalar_type(), {batch, length, width});
  p.d_scores = contiguous_data<float>("d_scores", d_scores, ScalarType::Float, {batch, length});
  return p;
}

}  // namespace micron::poi_topk
