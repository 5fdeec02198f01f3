// Checks on the tensors that reach a kernel. Python has worded errors for users; these guard the memory.
#pragma once

#include <initializer_list>
#include <optional>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "cpu/common.h"

namespace micron {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline Dtype dtype_of(const char* name, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Dtype::float32;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    case ScalarType::Half:
      return Dtype::float16;
    case ScalarType::Byte:
      return Dtype::uint8;
    default:
      STD_TORCH_CHECK(false, name, ": this dtype has no native kernel");
  }
}

inline void check_shape(const char* name, const Tensor& x, std::initializer_list<int64_t> shape) {
  bool equal = x.dim() == static_cast<int64_t>(shape.size());
  int64_t i = 0;
  for (int64_t size : shape) equal = equal && x.size(i++) == size;
  STD_TORCH_CHECK(equal, name, " has the wrong shape");
}

// `x` is contiguous, of this shape and dtype: its data.
template <class T>
T* contiguous_data(const char* name, const Tensor& x, ScalarType dtype, std::initializer_list<int64_t> shape) {
  check_shape(name, x, shape);
  STD_TORCH_CHECK(x.scalar_type() == dtype, name, " has the wrong dtype");
  STD_TORCH_CHECK(x.is_contiguous(), name, " must be contiguous");
  return static_cast<T*>(x.data_ptr());
}

template <class T>
T* contiguous_data(const char* name, const OptionalTensor& x, ScalarType dtype, std::initializer_list<int64_t> shape) {
  return x ? contiguous_data<T>(name, *x, dtype, shape) : nullptr;
}

// The same for a tensor in the memory of the CPU that a kernel fills.
template <class T>
T* output_data(const char* name, const Tensor& x, ScalarType dtype, std::initializer_list<int64_t> shape) {
  T* data = contiguous_data<T>(name, x, dtype, shape);
  const size_t size = dtype == ScalarType::Float ? 4 : dtype == ScalarType::Long ? 8 : 2;
  advise_huge_pages(const_cast<void*>(static_cast<const void*>(data)), static_cast<size_t>(x.numel()) * size);
  return data;
}

template <class T>
T* output_data(const char* name, const OptionalTensor& x, ScalarType dtype, std::initializer_list<int64_t> shape) {
  return x ? output_data<T>(name, *x, dtype, shape) : nullptr;
}

inline void check_unit_stride(const char* name, const Tensor& x) {
  const int64_t last = x.dim() - 1;
  const bool unit = x.numel() == 0 || x.size(last) <= 1 || x.stride(last) == 1;  // of nothing, any stride is right
  STD_TORCH_CHECK(unit, name, ": its last dimension must be contiguous");
}

}  // namespace micron
