// From tensors to the kernels of this CPU.
#include "checks.h"

namespace micron::poi_topk {
namespace {

void run(const TopK& arguments) { MICRON_DISPATCH(topk, arguments); }
void run(const Gather& arguments) { MICRON_DISPATCH(gather, arguments); }
void run(const GatherBackward& arguments) { MICRON_DISPATCH(backward, arguments); }

void check_indices(const Gather& p) {
  for (int64_t b = 0; b < p.batch; ++b) {
    int64_t previous = -1;
    for (int64_t j = 0; j < p.k; ++j) {
      const int64_t index = p.indices[b * p.k + j];
      STD_TORCH_CHECK(index > previous && index < p.length, "indices must ascend within [0, N)");
      previous = index;
    }
  }
}

void find(const Tensor& scores, int64_t k, const OptionalTensor& mask, const Tensor& indices) {
  const TopK p = topk_arguments(scores, k, mask, indices);
  if (p.batch * p.length > 0) run(p);
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
  Gather p = gather_arguments(tokens, scores, indices, weighted, in_place);
  const Tensor out = new_kept(p, tokens);
  p.out = data_of<void>(out);
  find(scores, k, std::nullopt, indices);
  if (p.batch * p.width > 0) run(p);
  return {out, indices};
}

std::tuple<Tensor, OptionalTensor> backward(const Tensor& any_grad, const Tensor& any_tokens, const Tensor& scores,
                                            const Tensor& indices, bool weighted, bool in_place) {
  const Tensor grad = with_contiguous_rows(any_grad);
  const Tensor tokens = weighted ? with_contiguous_rows(any_tokens) : any_tokens;
  GatherBackward p = backward_arguments(grad, tokens, scores, indices, weighted, in_place);
  check_indices(p);
  const Tensor d_tokens = new_tensor(grad, grad.scalar_type(), {p.batch, p.length, p.width});
  OptionalTensor d_scores;
  if (weighted) d_scores = new_tensor(grad, ScalarType::Float, {p.batch, p.length});
  p.d_tokens = data_of<void>(d_tokens), p.d_scores = weighted ? data_of<float>(*d_scores) : nullptr;
  if (p.batch * p.length > 0) run(p);
  return {d_tokens, d_scores};
}

}  // namespace
}  // namespace micron::poi_topk

STABLE_TORCH_LIBRARY_IMPL(micron_native, CPU, m) {
  m.impl("topk_mask", TORCH_BOX(&micron::poi_topk::topk_mask));
  m.impl("keep_tokens", TORCH_BOX(&micron::poi_topk::keep));
  m.impl("keep_tokens_backward", TORCH_BOX(&micron::poi_topk::backward));
}
