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

void topk(const Tensor& scores, int64_t k, const OptionalTensor& mask, const Tensor& indices) {
  const TopK p = topk_arguments(scores, k, mask, indices);
  if (p.batch * p.length > 0) run(p);
}

void gather(const Tensor& tokens, const OptionalTensor& scores, const Tensor& indices, bool in_place,
            const Tensor& out) {
  Gather p = gather_arguments(tokens, scores, indices, in_place, out);
  check_indices(p);
  p.out = output_data<void>("out", out, tokens.scalar_type(), {p.batch, in_place ? p.length : p.k, p.width});
  if (p.batch * p.width > 0) run(p);
}

void backward(const Tensor& grad, const OptionalTensor& tokens, const OptionalTensor& scores, const Tensor& indices,
              bool in_place, const Tensor& d_tokens, const OptionalTensor& d_scores) {
  GatherBackward p = backward_arguments(grad, tokens, scores, indices, in_place, d_tokens, d_scores);
  check_indices(p);
  p.d_tokens = output_data<void>("d_tokens", d_tokens, grad.scalar_type(), {p.batch, p.length, p.width});
  if (p.batch * p.length > 0) run(p);
}

}  // namespace
}  // namespace micron::poi_topk

STABLE_TORCH_LIBRARY_IMPL(micron_native, CPU, m) {
  m.impl("topk", TORCH_BOX(&micron::poi_topk::topk));
  m.impl("gather_tokens", TORCH_BOX(&micron::poi_topk::gather));
  m.impl("gather_tokens_backward", TORCH_BOX(&micron::poi_topk::backward));
}
