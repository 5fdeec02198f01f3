// What the backward needs of each row: f, c, dV and dw. The formulas are those of
// micron_kernels/diagonal_attention/triton_kernels.py.
#pragma once

#include "device.cuh"

namespace micron::diagonal_attention {

// The slots of position n are order[first[n]] to order[first[n + 1] - 1]; without `rows` it is slot n.
struct Slots {
  const int64_t *first = nullptr, *order = nullptr;
};

template <class T>
struct RowGradients {
  Shape shape;
  Slots slots;
  Rows<T> grad_out, value;  // grad_out.data may be null
  const float *grad_weights, *row_weight, *weights, *row_sum;
  int64_t weight_b, weight_h, weight_n;
  float *slot_f, *slot_c, *position_f, *position_c;
  T* d_value;
  float* d_weight;
};

// f and c of every slot, and of every position what its slots add up to: f, c, dV and dw. A warp a position.
template <class T>
__global__ void __launch_bounds__(256) row_gradients_kernel(const __grid_constant__ RowGradients<T> p) {
#ifdef MICRON_HOPPER  // the other kernels are for Hopper alone
  const Shape& shape = p.shape;
  const int64_t index = int64_t{blockIdx.x} * 8 + threadIdx.x / 32;
  if (index >= int64_t{shape.batch} * shape.heads * shape.length) return;
  const int n = static_cast<int>(index % shape.length), lane = threadIdx.x % 32;
  const int64_t head_index = index / shape.length;
  const int batch = static_cast<int>(head_index / shape.heads), head = static_cast<int>(head_index % shape.heads);
  const bool there = shape.visible(batch, n);
  const float weight = there && p.row_weight != nullptr
                           ? p.row_weight[batch * p.weight_b + head * p.weight_h + n * p.weight_n]
                           : 1.f;
  const T* value = p.value.row(batch, head, n);
  T* d_value = p.d_value + index * p.value.width;
  const int width = p.value.width, stride = 32 * 8;  // eight columns a lane at a time

  const int64_t* first = p.slots.first == nullptr ? nullptr : p.slots.first + int64_t{batch} * (shape.length + 1) + n;
  const int begin = first == nullptr ? n : static_cast<int>(first[0]);
  const int end = first == nullptr ? n + 1 : static_cast<int>(first[1]);
  const auto slot_at = [&](int i) {
    return first == nullptr ? int64_t{i} : p.slots.order[int64_t{batch} * shape.computed + i];
  };
  float sum_f = 0, sum_c = 0, sum_weight = 0;
  for (int i = begin; i < end; ++i) {
    const int64_t slot = slot_at(i), at = head_index * shape.computed + slot;
    float f = 0, c = 0;
    if (there) {
      const float pii = p.weights[at];
      float value_grad = 0;
      if (p.grad_out.data != nullptr) {
        const T* grad = p.grad_out.row(batch, head, static_cast<int>(slot));
        for (int e = lane * 8; e < width; e += stride) {
          const Eight<T> v = Eight<T>::load(value + e), g = Eight<T>::load(grad + e);
#pragma unroll
          for (int j = 0; j < 8; ++j) value_grad += v[j] * g[j];
        }
        value_grad = warp_sum(value_grad);
      }
      const float a = weight * value_grad + (p.grad_weights == nullptr ? 0.f : p.grad_weights[at]);
      const float g = pii * a;
      f = g / p.row_sum[at];
      c = pii * (a - g);  // g (1 - p), rounded less
      sum_weight += pii * value_grad;
    }
    if (lane == 0) p.slot_f[at] = f, p.slot_c[at] = c;
    sum_f += f, sum_c += c;
  }
  for (int e = lane * 8; e < width; e += stride) {
    float sum[8] = {};
    for (int i = begin; i < end && there && p.grad_out.data != nullptr; ++i) {
      const int64_t slot = slot_at(i);
      const float factor = weight * p.weights[head_index * shape.computed + slot];
      const Eight<T> g = Eight<T>::load(p.grad_out.row(batch, head, static_cast<int>(slot)) + e);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[j] += factor * g[j];
    }
    Eight<T>::of(sum).store(d_value + e);
  }
  if (lane == 0) {
    if (first != nullptr) p.position_f[index] = sum_f, p.position_c[index] = sum_c;
    if (p.d_weight != nullptr) p.d_weight[index] = sum_weight;
  }
#endif
}

}  // namespace micron::diagonal_attention
