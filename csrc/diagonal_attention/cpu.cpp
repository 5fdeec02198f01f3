// From tensors to the kernels of this CPU.
#include "../tensor.h"
#include "kernel.h"

namespace micron::diagonal_attention {
namespace {

Tokens tokens(const char* name, const Tensor& x, ScalarType dtype, int64_t batch, int64_t heads, int64_t length,
              int64_t width) {
  check_shape(name, x, {batch, heads, length, width});
  STD_TORCH_CHECK(x.scalar_type() == dtype, name, " has the wrong dtype");
  check_unit_stride(name, x);
  static const char nothing = 0;  // rows without elements have an address too: the kernels take null for masked
  if (width == 0) return {&nothing, 0, 0, 0, 0};
  return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2), width};
}

Problem problem(const Tensor& query, const Tensor& key, const Tensor& value, double scale,
                const OptionalTensor& row_weight, const OptionalTensor& rows, const OptionalTensor& key_mask) {
  STD_TORCH_CHECK(query.dim() == 4 && value.dim() == 4, "query and value must be (B, H, N, width)");
  const int64_t batch = query.size(0), heads = query.size(1), length = query.size(2), width = query.size(3);
  STD_TORCH_CHECK(length < INT32_MAX, "N must be below 2^31");
  const ScalarType dtype = query.scalar_type();
  Problem result;
  result.dtype = dtype_of("query", query);
  STD_TORCH_CHECK(result.dtype != Dtype::uint8, "query must be floating");
  result.batch = batch, result.heads = heads, result.length = length;
  result.computed = rows ? rows->size(1) : length;
  result.scale = static_cast<float>(scale);
  result.query = tokens("query", query, dtype, batch, heads, length, width);
  result.key = tokens("key", key, dtype, batch, heads, length, width);
  result.value = tokens("value", value, dtype, batch, heads, length, value.size(3));
  if (row_weight) {
    check_shape("row_weight", *row_weight, {batch, heads, length});
    STD_TORCH_CHECK(row_weight->scalar_type() == ScalarType::Float, "row_weight must be fp32");
    result.row_weight = static_cast<const float*>(row_weight->data_ptr());
    result.weight_stride_b = row_weight->stride(0);
    result.weight_stride_h = row_weight->stride(1);
    result.weight_stride_n = row_weight->stride(2);
  }
  result.rows = contiguous_data<const int64_t>("rows", rows, ScalarType::Long, {batch, result.computed});
  if (rows) {
    for (int64_t i = 0; i < batch * result.computed; ++i) {
      STD_TORCH_CHECK(result.rows[i] >= 0 && result.rows[i] < length, "rows holds a position outside [0, N)");
    }
  }
  result.key_mask = contiguous_data<const bool>("key_mask", key_mask, ScalarType::Bool, {batch, length});
  return result;
}

bool takes_bf16_pairs(const Problem& problem) {
#ifdef MICRON_X86
  return problem.dtype == Dtype::bfloat16 && instruction_set() == InstructionSet::avx512_bf16;
#else
  return false;
#endif
}

void run(const Forward& arguments) {
#ifdef MICRON_X86
  if (takes_bf16_pairs(arguments)) return avx512_bf16::forward(arguments);
#endif
  MICRON_DISPATCH(forward, arguments);
}

void run(const Backward& arguments) {
#ifdef MICRON_X86
  if (takes_bf16_pairs(arguments)) return avx512_bf16::backward(arguments);
#endif
  MICRON_DISPATCH(backward, arguments);
}

void forward(const Tensor& query, const Tensor& key, const Tensor& value, double scale,
             const OptionalTensor& row_weight, const OptionalTensor& rows, const OptionalTensor& key_mask,
             const Tensor& out, const Tensor& weights, const Tensor& row_max, const Tensor& row_sum,
             const OptionalTensor& exponentials) {
  Forward f{problem(query, key, value, scale, row_weight, rows, key_mask)};
  f.out = output_data<void>("out", out, query.scalar_type(), {f.batch, f.heads, f.computed, f.value.width});
  f.weights = contiguous_data<float>("weights", weights, ScalarType::Float, {f.batch, f.heads, f.computed});
  f.row_max = contiguous_data<float>("row_max", row_max, ScalarType::Float, {f.batch, f.heads, f.computed});
  f.row_sum = contiguous_data<float>("row_sum", row_sum, ScalarType::Float, {f.batch, f.heads, f.computed});
  const auto f32 = ScalarType::Float;
  f.exponentials = contiguous_data<float>("exponentials", exponentials, f32, {f.batch, f.heads, f.computed, f.length});
  if (f.batch * f.heads * f.computed > 0) run(f);
}

void backward(const OptionalTensor& grad_out, const OptionalTensor& grad_weights, const Tensor& query,
              const Tensor& key, const Tensor& value, double scale, const OptionalTensor& row_weight,
              const OptionalTensor& rows, const OptionalTensor& key_mask, const Tensor& weights, const Tensor& row_max,
              const Tensor& row_sum, const OptionalTensor& exponentials, const OptionalTensor& d_query,
              const OptionalTensor& d_key, const OptionalTensor& d_value, const OptionalTensor& d_weight) {
  Backward b{problem(query, key, value, scale, row_weight, rows, key_mask)};
  const auto f32 = ScalarType::Float;
  if (grad_out) {
    b.grad_out = tokens("grad_out", *grad_out, query.scalar_type(), b.batch, b.heads, b.computed, b.value.width);
  }
  b.grad_weights = contiguous_data<const float>("grad_weights", grad_weights, f32, {b.batch, b.heads, b.computed});
  b.weights = contiguous_data<const float>("weights", weights, f32, {b.batch, b.heads, b.computed});
  b.row_max = contiguous_data<const float>("row_max", row_max, f32, {b.batch, b.heads, b.computed});
  b.row_sum = contiguous_data<const float>("row_sum", row_sum, f32, {b.batch, b.heads, b.computed});
  b.exponentials =
      contiguous_data<const float>("exponentials", exponentials, f32, {b.batch, b.heads, b.computed, b.length});
  b.d_query = output_data<float>("d_query", d_query, f32, {b.batch, b.heads, b.length, b.query.width});
  b.d_key = output_data<float>("d_key", d_key, f32, {b.batch, b.heads, b.length, b.query.width});
  b.d_value = output_data<float>("d_value", d_value, f32, {b.batch, b.heads, b.length, b.value.width});
  b.d_weight = contiguous_data<float>("d_weight", d_weight, f32, {b.batch, b.heads, b.length});
  if (b.batch * b.heads * b.length > 0) run(b);
}

}  // namespace
}  // namespace micron::diagonal_attention

STABLE_TORCH_LIBRARY_IMPL(micron_native, CPU, m) {
  m.impl("diagonal_attention", TORCH_BOX(&micron::diagonal_attention::forward));
  m.impl("diagonal_attention_backward", TORCH_BOX(&micron::diagonal_attention::backward));
}
