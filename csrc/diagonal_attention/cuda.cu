// From tensors to the kernels for Hopper.
#include "forward.cuh"
#include "passes.cuh"
#include "range.cuh"
#include "row_gradients.cuh"
#include "score_gradients.cuh"

namespace micron::diagonal_attention {
namespace {

// Calls body(T{}) with the element type of x.
template <class Body>
void of_dtype(const Tensor& x, Body body) {
  if (x.scalar_type() == ScalarType::BFloat16) return body(__nv_bfloat16{});
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Half, "the CUDA kernels take bf16 and fp16");
  body(__half{});
}

template <class T>
Rows<T> rows_of(const char* name, const Tensor& x, const Tensor& like, int64_t length) {
  STD_TORCH_CHECK(x.scalar_type() == like.scalar_type(), name, " has the wrong dtype");
  check_shape(name, x, {like.size(0), like.size(1), length, x.size(3)});
  check_unit_stride(name, x);
  return {static_cast<const T*>(x.data_ptr()), x.stride(0), x.stride(1), x.stride(2), static_cast<int>(x.size(3))};
}

int64_t padded(int64_t size) { return std::max<int64_t>(8, (size + 7) / 8 * 8); }

// `x` with rows that start at multiples of 16 bytes and no stride of 0: itself, or a copy, wider if need be.
Tensor aligned(const Tensor& x) {
  const int64_t batch = x.size(0), heads = x.size(1), length = x.size(2), width = x.size(3), row = padded(width);
  bool fits = width == row && x.stride(3) == 1 && reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0;
  for (int64_t i = 0; i < 3; ++i) fits = fits && x.stride(i) > 0 && x.stride(i) % 8 == 0;
  if (fits) return x;
  Tensor wide = new_tensor(x, x.scalar_type(), {batch, heads, length, row});
  if (row != width) torch::stable::zero_(wide);
  Tensor part = with_strides(wide, {batch, heads, length, width}, {heads * length * row, length * row, row, 1});
  torch::stable::copy_(part, x);
  return wide;
}

// Without the columns that were added to align rows.
Tensor of_width(const Tensor& x, int64_t width) {
  if (x.size(3) == width) return x;
  return torch::stable::contiguous(
      with_strides(x, {x.size(0), x.size(1), x.size(2), width}, {x.stride(0), x.stride(1), x.stride(2), 1}));
}

// Rows that are read 16 bytes at a time.
template <class T>
Rows<T> aligned_rows(const char* name, const Tensor& x, const Tensor& like, int64_t length) {
  bool aligned = reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0 && x.size(3) % 8 == 0;
  for (int64_t i = 0; i < 3; ++i) aligned = aligned && x.stride(i) % 8 == 0;
  STD_TORCH_CHECK(aligned && x.size(3) > 0, name, ": rows must be aligned to 16 bytes");
  return rows_of<T>(name, x, like, length);
}

template <class T>
TensorMap map_of(const Tensor& x, int box_rows) {
  return cuda::tensor_map(x.data_ptr(), {x.size(0), x.size(1), x.size(2), x.size(3)},
                          {x.stride(0), x.stride(1), x.stride(2), 1}, box_rows);
}

Shape shape_of(const Tensor& query, double scale, const OptionalTensor& rows, const OptionalTensor& key_mask) {
  STD_TORCH_CHECK(query.dim() == 4, "queries and values must be (B, H, N, width)");
  const int64_t batch = query.size(0), heads = query.size(1), length = query.size(2);
  const int64_t computed = rows ? rows->size(1) : length;
  STD_TORCH_CHECK(batch * heads * ((std::max(length, computed) + 63) / 64) < INT32_MAX, "more blocks than a grid has");
  Shape shape;
  shape.batch = static_cast<int>(batch), shape.heads = static_cast<int>(heads);
  shape.length = static_cast<int>(length), shape.computed = static_cast<int>(computed);
  shape.scale = static_cast<float>(scale);
  shape.scale_log2 = static_cast<float>(scale * 1.4426950408889634);
  shape.rows = contiguous_data<const int64_t>("rows", rows, ScalarType::Long, {batch, computed});
  shape.key_mask = contiguous_data<const bool>("key_mask", key_mask, ScalarType::Bool, {batch, length});
  return shape;
}

template <class Kernel>
void set_weight(Kernel& p, const Shape& shape, const OptionalTensor& row_weight) {
  p.row_weight = nullptr, p.weight_b = p.weight_h = p.weight_n = 0;
  if (!row_weight) return;
  const bool per_head = row_weight->dim() == 3;
  per_head ? check_shape("row_weight", *row_weight, {shape.batch, shape.heads, shape.length})
           : check_shape("row_weight", *row_weight, {shape.batch, shape.length});
  STD_TORCH_CHECK(row_weight->scalar_type() == ScalarType::Float, "row_weight must be fp32");
  p.row_weight = static_cast<const float*>(row_weight->data_ptr());
  p.weight_b = row_weight->stride(0), p.weight_h = per_head ? row_weight->stride(1) : 0;
  p.weight_n = row_weight->stride(row_weight->dim() - 1);
}

// fp32 statistics, one a slot or one a position of each head.
template <class T = float>
T* statistics(const char* name, const Tensor& x, const Shape& shape, int count) {
  return contiguous_data<T>(name, x, ScalarType::Float, {shape.batch, shape.heads, count});
}

Slots slots_of(const OptionalTensor& first, const OptionalTensor& order, const Shape& shape) {
  STD_TORCH_CHECK(first.has_value() == order.has_value(), "first_slot and slot_order go together");
  return {contiguous_data<const int64_t>("first_slot", first, ScalarType::Long, {shape.batch, shape.length + 1}),
          contiguous_data<const int64_t>("slot_order", order, ScalarType::Long, {shape.batch, shape.computed})};
}

int chunks_of(const Tensor& x) { return static_cast<int>((x.size(3) + CHUNK - 1) / CHUNK); }

template <class T>
Product<T> product_of(const Tensor& query, const Tensor& key, const Shape& shape) {
  check_shape("key", key, {query.size(0), query.size(1), query.size(2), query.size(3)});
  STD_TORCH_CHECK(query.size(3) <= 512, "query: rows must be of at most 512 columns");
  Product<T> p;
  p.shape = shape;
  p.query = aligned_rows<T>("query", query, query, shape.length);
  aligned_rows<T>("key", key, query, shape.length);
  p.query_map = map_of<T>(query, TILE_ROWS), p.key_map = map_of<T>(key, TILE_KEYS);
  p.chunks = chunks_of(query);
  return p;
}

// Of kernel(chunks, of as many at most as a constant), as many blocks as the GPU holds at a time, which take the works
// in turn.
template <class Kernel, class Parameters>
void launch_tiles(const cuda::Device& device, Kernel kernel_of, const Parameters& p) {
  const auto launch = [&](auto most) {
    constexpr int CHUNKS = decltype(most)::value;
    const int blocks = std::min(p.product.works, device.multiprocessors() * (SHARES_SM<CHUNKS> ? 2 : 1));
    device.launch(kernel_of(most), dim3(static_cast<unsigned>(blocks)), dim3(TILE_THREADS),
                  tile_shared_bytes<CHUNKS>(p.product.chunks), p);
  };
  if (p.product.chunks == 1) launch(std::integral_constant<int, 1>());
  else if (p.product.chunks == 2) launch(std::integral_constant<int, 2>());
  else launch(std::integral_constant<int, 8>());
}

std::tuple<Tensor, Tensor, Tensor, Tensor, OptionalTensor> forward(
    const Tensor& any_query, const Tensor& any_key, const Tensor& any_value, double scale,
    const OptionalTensor& any_row_weight, const OptionalTensor& any_rows, const OptionalTensor& any_key_mask,
    bool keep) {
  STD_TORCH_CHECK(!keep, "exponentials are kept on a CPU alone");
  STD_TORCH_CHECK(any_query.dim() == 4 && any_key.dim() == 4 && any_value.dim() == 4,
                  "query, key and value must be (B, H, N, width)");
  const Tensor query = aligned(any_query), key = aligned(any_key), value = aligned(any_value);
  const OptionalTensor row_weight = as_fp32(any_row_weight), rows = made_contiguous(any_rows);
  const OptionalTensor key_mask = made_contiguous(any_key_mask);
  const Shape shape = shape_of(query, scale, rows, key_mask);
  const auto f32 = ScalarType::Float;
  const Tensor out =
      new_tensor(query, query.scalar_type(), {shape.batch, shape.heads, shape.computed, value.size(3)});
  const Tensor weights = new_tensor(query, f32, {shape.batch, shape.heads, shape.computed});
  const Tensor row_max = new_tensor(query, f32, {shape.batch, shape.heads, shape.computed});
  const Tensor row_sum = new_tensor(query, f32, {shape.batch, shape.heads, shape.computed});
  const auto results = [&] {
    return std::tuple<Tensor, Tensor, Tensor, Tensor, OptionalTensor>{of_width(out, any_value.size(3)), weights,
                                                                      row_max, row_sum, std::nullopt};
  };
  if (int64_t{shape.batch} * shape.heads * shape.computed == 0) return results();
  const cuda::Device device(query);
  of_dtype(query, [&](auto zero) {
    using T = decltype(zero);
    Forward<T> p;
    p.product = product_of<T>(query, key, shape);
    p.value = aligned_rows<T>("value", value, query, shape.length);
    p.value_map = map_of<T>(value, TILE_ROWS);
    set_weight(p, shape, row_weight);
    p.out = data_of<T>(out);
    p.weights = data_of<float>(weights), p.row_max = data_of<float>(row_max), p.row_sum = data_of<float>(row_sum);
    p.product.works = shape.batch * shape.heads * ((shape.computed + TILE_ROWS - 1) / TILE_ROWS);
    launch_tiles(device, [](auto most) { return forward_kernel<T, decltype(most)::value>; }, p);
  });
  return results();
}

void row_gradients(const cuda::Device& device, const OptionalTensor& grad_out, const OptionalTensor& grad_weights,
                   const Tensor& value, const OptionalTensor& row_weight, const OptionalTensor& key_mask,
                   const Tensor& weights, const Tensor& row_sum, const OptionalTensor& first_slot,
                   const OptionalTensor& slot_order, const Tensor& slot_f, const Tensor& slot_c,
                   const Tensor& position_f, const Tensor& position_c, const Tensor& d_value,
                   const OptionalTensor& d_weight) {
  Shape shape = shape_of(value, 1, std::nullopt, key_mask);
  if (slot_order) shape.computed = static_cast<int>(slot_order->size(1));
  const int64_t count = int64_t{shape.batch} * shape.heads * shape.length;
  of_dtype(value, [&](auto zero) {
    using T = decltype(zero);
    RowGradients<T> p;
    p.shape = shape;
    p.slots = slots_of(first_slot, slot_order, shape);
    p.value = aligned_rows<T>("value", value, value, shape.length);
    if (grad_out) {
      p.grad_out = aligned_rows<T>("grad_out", *grad_out, value, shape.computed);
      STD_TORCH_CHECK(p.grad_out.width == p.value.width, "grad_out has the wrong width");
    }
    p.grad_weights = grad_weights ? statistics("grad_weights", *grad_weights, shape, shape.computed) : nullptr;
    set_weight(p, shape, row_weight);
    p.weights = statistics("weights", weights, shape, shape.computed);
    p.row_sum = statistics("row_sum", row_sum, shape, shape.computed);
    p.slot_f = statistics("slot_f", slot_f, shape, shape.computed);
    p.slot_c = statistics("slot_c", slot_c, shape, shape.computed);
    p.position_f = statistics("position_f", position_f, shape, shape.length);
    p.position_c = statistics("position_c", position_c, shape, shape.length);
    p.d_value = contiguous_data<T>("d_value", d_value, value.scalar_type(),
                                   {shape.batch, shape.heads, shape.length, value.size(3)});
    p.d_weight = d_weight ? statistics("d_weight", *d_weight, shape, shape.length) : nullptr;
    device.launch(row_gradients_kernel<T>, dim3(static_cast<unsigned>((count + 7) / 8)), dim3(256), 0, p);
  });
}

// dS of `heads` heads from first_head on into rows of `row` elements.
void score_gradients(const cuda::Device& device, const Tensor& query, const Tensor& key, double scale,
                     const Tensor& row_max, const Tensor& f, const Tensor& c, int64_t first_head, int64_t heads,
                     int64_t row, const Tensor& d_scores) {
  const Shape shape = shape_of(query, scale, std::nullopt, std::nullopt);
  of_dtype(query, [&](auto zero) {
    using T = decltype(zero);
    ScoreGradients<T> p;
    p.product = product_of<T>(query, key, shape);
    p.row_max = statistics("row_max", row_max, shape, shape.length);
    p.f = statistics("f", f, shape, shape.length), p.c = statistics("c", c, shape, shape.length);
    p.d_scores = data_of<T>(d_scores);
    p.row = static_cast<int>(row), p.heads = static_cast<int>(heads), p.first_head = static_cast<int>(first_head);
    const int works = p.heads * ((shape.length + TILE_ROWS - 1) / TILE_ROWS);
    const int tiles = (shape.length + TILE_KEYS - 1) / TILE_KEYS, wanted = 4 * device.multiprocessors();
    p.splits = std::min(tiles, (wanted + works - 1) / works);  // so that blocks have much the same to do
    p.product.works = works * p.splits;
    launch_tiles(device, [](auto most) { return score_gradients_kernel<T, decltype(most)::value>; }, p);
  });
}

template <bool QUERIES>
void pass(const cuda::Device& device, const Tensor& query, const Tensor& key, double scale, const OptionalTensor& rows,
          const OptionalTensor& key_mask, const Tensor& row_max, const OptionalTensor& first_slot,
          const OptionalTensor& slot_order, const Tensor& f, const Tensor& c, const Tensor& sums) {
  const Shape shape = shape_of(query, scale, rows, key_mask);
  const int count = QUERIES ? shape.computed : shape.length;
  if (count == 0) return;
  of_dtype(query, [&](auto zero) {
    using T = decltype(zero);
    Pass<T> p{};
    p.shape = shape;
    if (QUERIES) p.slots = slots_of(first_slot, slot_order, shape);
    p.query = aligned_rows<T>("query", query, query, shape.length);
    p.key = aligned_rows<T>("key", key, query, shape.length);
    STD_TORCH_CHECK(p.query.width == p.key.width && p.key.width <= 512, "rows must be of at most 512 columns");
    p.row_max = statistics("row_max", row_max, shape, shape.computed);
    p.f = statistics("f", f, shape, QUERIES ? shape.length : shape.computed);
    p.c = statistics("c", c, shape, QUERIES ? shape.length : shape.computed);
    p.sums = contiguous_data<T>("sums", sums, query.scalar_type(),
                                {shape.batch, shape.heads, shape.length, query.size(3)});
    p.gathers = key_mask.has_value() || (!QUERIES && rows.has_value());
    if (!p.gathers) p.others_map = map_of<T>(QUERIES ? key : query, PASS_OTHERS);
    p.blocks = (count + PASS_ROWS - 1) / PASS_ROWS;
    const dim3 grid(static_cast<unsigned>(shape.batch * shape.heads * p.blocks)), block(PASS_THREADS);
    const int chunks = chunks_of(query);
    if (chunks == 1) {
      device.launch(pass_kernel<QUERIES, T, 1>, grid, block, pass_shared_bytes(1), p);
    } else if (chunks == 2) {
      device.launch(pass_kernel<QUERIES, T, 2>, grid, block, pass_shared_bytes(2), p);
    } else if (chunks <= 4) {
      device.launch(pass_kernel<QUERIES, T, 4>, grid, block, pass_shared_bytes(4), p);
    } else {
      device.launch(pass_kernel<QUERIES, T, 8>, grid, block, pass_shared_bytes(8), p);
    }
  });
}

// Matrices of all heads in a row, (B·H, N, E); a copy only where no one step leads from each to the next.
Tensor by_head(const Tensor& x) {
  const int64_t batch = x.size(0), heads = x.size(1);
  const bool even = batch == 1 || heads == 1 || x.stride(0) == heads * x.stride(1);
  const Tensor y = even ? x : torch::stable::contiguous(x);
  return with_strides(y, {batch * heads, y.size(2), y.size(3)},
                      {heads == 1 ? y.stride(0) : y.stride(1), y.stride(2), y.stride(3)});
}

// `count` of the matrices of x from `first` on.
Tensor some(const Tensor& x, int64_t first, int64_t count) {
  return with_strides(x, {count, x.size(1), x.size(2)}, {x.stride(0), x.stride(1), x.stride(2)}, first * x.stride(0));
}

// dQ = scale · dS K and dK = scale · dSᵀ Q by torch's products of matrices, of `most` heads at a time at most.
void gradients_by_scores(const cuda::Device& device, const Tensor& query, const Tensor& key, double scale,
                         const Tensor& row_max, const Tensor& f, const Tensor& c, int64_t most,
                         const OptionalTensor& d_query, const OptionalTensor& d_key) {
  if (!d_query && !d_key) return;
  const int64_t heads = query.size(0) * query.size(1), length = query.size(2), row = padded(length);
  const int64_t parts = (heads + most - 1) / most, at_a_time = (heads + parts - 1) / parts;
  const Tensor scratch = new_tensor(query, query.scalar_type(), {at_a_time, length, row});
  const Tensor queries = by_head(query), keys = by_head(key);
  for (int64_t first = 0; first < heads; first += at_a_time) {
    const int64_t count = std::min(at_a_time, heads - first);
    score_gradients(device, query, key, scale, row_max, f, c, first, count, row, scratch);
    const auto multiply = [&](const OptionalTensor& result, std::initializer_list<int64_t> strides, const Tensor& by) {
      if (!result) return;
      const Tensor d_scores = with_strides(scratch, {count, length, length}, strides);
      device.batched_product(some(by_head(*result), first, count), d_scores, some(by, first, count), scale);
    };
    multiply(d_query, {length * row, row, 1}, keys);
    multiply(d_key, {length * row, 1, row}, queries);
  }
}

// The range of fp16 for f and c, and dQ and dK out of it; for bf16, which has the range of fp32, nothing.
class Range {
 public:
  Range(const cuda::Device& device, const Tensor& query, std::initializer_list<Tensor> statistics)
      : device_(device), is_needed_(query.scalar_type() == ScalarType::Half) {
    if (!is_needed_) return;
    largest_ = new_tensor(query, ScalarType::Float, {1});
    torch::stable::zero_(*largest_);
    for (const Tensor& x : statistics) launch(largest_kernel, data_of<const float>(x), x.numel());
    for (const Tensor& x : statistics) launch(to_range_kernel, data_of<float>(x), x.numel());
  }

  void leave(const OptionalTensor& x) const {
    if (is_needed_ && x) launch(from_range_kernel<__half>, data_of<__half>(*x), x->numel() / 8);
  }

 private:
  template <class Kernel, class Data>
  void launch(Kernel kernel, Data* data, int64_t count) const {
    if (count == 0) return;
    const int64_t blocks = std::min<int64_t>(RANGE_BLOCKS, (count + RANGE_THREADS - 1) / RANGE_THREADS);
    device_.launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(RANGE_THREADS), 0, data, count,
                   data_of<unsigned>(*largest_));
  }

  const cuda::Device& device_;
  bool is_needed_;
  OptionalTensor largest_;
};

std::tuple<OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor> backward(
    const OptionalTensor& any_grad_out, const OptionalTensor& any_grad_weights, const Tensor& any_query,
    const Tensor& any_key, const Tensor& any_value, double scale, const OptionalTensor& any_row_weight,
    const OptionalTensor& any_rows, const OptionalTensor& any_key_mask, const Tensor& any_weights,
    const Tensor& any_row_max, const Tensor& any_row_sum, const OptionalTensor& exponentials,
    const OptionalTensor& first_slot, const OptionalTensor& slot_order, bool wants_query, bool wants_key,
    bool wants_value, bool wants_weight) {
  STD_TORCH_CHECK(!exponentials, "exponentials are kept on a CPU alone");
  const Tensor query = aligned(any_query), key = aligned(any_key), value = aligned(any_value);
  const OptionalTensor row_weight = as_fp32(any_row_weight), rows = made_contiguous(any_rows);
  const OptionalTensor key_mask = made_contiguous(any_key_mask), grad_weights = made_contiguous(any_grad_weights);
  const Tensor weights = made_contiguous(any_weights), row_max = made_contiguous(any_row_max);
  const Tensor row_sum = made_contiguous(any_row_sum);
  OptionalTensor grad_out;
  if (any_grad_out) grad_out = aligned(*any_grad_out);
  const Shape shape = shape_of(query, scale, rows, key_mask);
  const int64_t batch = shape.batch, heads = shape.heads, length = shape.length, width = query.size(3);
  const auto f32 = ScalarType::Float;
  const Tensor slot_f = new_tensor(query, f32, {batch, heads, shape.computed});
  const Tensor slot_c = new_tensor(query, f32, {batch, heads, shape.computed});
  const Tensor position_f = rows ? new_tensor(query, f32, {batch, heads, length}) : slot_f;
  const Tensor position_c = rows ? new_tensor(query, f32, {batch, heads, length}) : slot_c;
  const Tensor d_value = new_tensor(value, value.scalar_type(), {batch, heads, length, value.size(3)});
  OptionalTensor d_query, d_key, d_weight;
  if (wants_query) d_query = new_tensor(query, query.scalar_type(), {batch, heads, length, width});
  if (wants_key) d_key = new_tensor(key, key.scalar_type(), {batch, heads, length, width});
  if (wants_weight) d_weight = new_tensor(query, f32, {batch, heads, length});
  if (batch * heads * length > 0) {
    const cuda::Device device(query);
    row_gradients(device, grad_out, grad_weights, value, row_weight, key_mask, weights, row_sum, first_slot,
                  slot_order, slot_f, slot_c, position_f, position_c, d_value, d_weight);
    const Range range = rows ? Range(device, query, {slot_f, slot_c, position_f, position_c})
                             : Range(device, query, {slot_f, slot_c});
    // Of so many heads dS takes no more memory than query and key.
    const int64_t most = 2 * query.numel() / (length * padded(length));
    if (!rows && !key_mask && most > 0) {
      gradients_by_scores(device, query, key, scale, row_max, slot_f, slot_c, most, d_query, d_key);
    } else {
      if (d_query) {
        if (rows || key_mask) torch::stable::zero_(*d_query);  // rows that are not computed, or masked, are not written
        pass<true>(device, query, key, scale, rows, key_mask, row_max, first_slot, slot_order, position_f, position_c,
                   *d_query);
      }
      if (d_key) {
        pass<false>(device, query, key, scale, rows, key_mask, row_max, std::nullopt, std::nullopt, slot_f, slot_c,
                    *d_key);
      }
    }
    range.leave(d_query), range.leave(d_key);
  }
  const auto narrowed = [](const OptionalTensor& x, int64_t to) {
    return x ? OptionalTensor(of_width(*x, to)) : OptionalTensor();
  };
  return {narrowed(d_query, any_query.size(3)), narrowed(d_key, any_query.size(3)),
          wants_value ? narrowed(d_value, any_value.size(3)) : OptionalTensor(), d_weight};
}

}  // namespace
}  // namespace micron::diagonal_attention

MICRON_CUDA_OPERATORS(m) {
  m.impl("diagonal_attention", TORCH_BOX(&micron::diagonal_attention::forward));
  m.impl("diagonal_attention_backward", TORCH_BOX(&micron::diagonal_attention::backward));
}
