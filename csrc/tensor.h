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

inline Dtype floating_dtype_of(const char* name, const Tensor& x) {
  const Dtype dtype = dtype_of(name, x);
  STD_TORCH_CHECK(dtype != Dtype::uint8, name, " must be floating");
  return dtype;
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

template <class T>
T* data_of(const Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

// A new contiguous tensor on the device of `like`, to be filled. By the shim of one operator: new_empty of
// torch/csrc/stable/ops.h looks it up by name at each call.
inline Tensor new_tensor(const Tensor& like, ScalarType dtype, std::initializer_list<int64_t> shape) {
  int32_t of_dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  int32_t device = 0, index = 0, layout = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(like.get(), &layout));
  AtenTensorHandle result = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_aten_new_empty(like.get(), shape.begin(),
                                                          static_cast<int64_t>(shape.size()), &of_dtype, &layout,
                                                          &device, index, nullptr, &result));
  const Tensor x(result);
  if (x.is_cpu()) advise_huge_pages(x.data_ptr(), static_cast<size_t>(x.numel()) * x.element_size());
  return x;
}

// The same memory, seen by other strides, from so many elements on.
inline Tensor with_strides(const Tensor& x, std::initializer_list<int64_t> shape,
                           std::initializer_list<int64_t> strides, int64_t offset = 0) {
  AtenTensorHandle result = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(x.get(), static_cast<int64_t>(shape.size()), shape.begin(),
                                                        strides.begin(), offset, &result));
  return Tensor(result);
}

inline OptionalTensor as_fp32(const OptionalTensor& x) {
  return x && x->scalar_type() != ScalarType::Float ? torch::stable::to(*x, ScalarType::Float) : x;
}

// `x` itself, or a copy.
inline Tensor made_contiguous(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }
inline OptionalTensor made_contiguous(const OptionalTensor& x) {
  return x ? OptionalTensor(made_contiguous(*x)) : x;
}

// `x` itself where elements of its last dimension lie side by side, otherwise a copy.
inline Tensor with_contiguous_rows(const Tensor& x) {
  const int64_t last = x.dim() - 1;
  return x.stride(last) == 1 || x.size(last) <= 1 || x.is_contiguous() ? x : torch::stable::contiguous(x);
}

inline void check_unit_stride(const char* name, const Tensor& x) {
  const int64_t last = x.dim() - 1;
  const bool unit = x.numel() == 0 || x.size(last) <= 1 || x.stride(last) == 1;  // of nothing, any stride is right
  STD_TORCH_CHECK(unit, name, ": its last dimension must be contiguous");
}

}  // namespace micron
