// The native operators, for every device. They allocate their results; what those look like, ops.py tells compilers.
#pragma once

#include <torch/csrc/stable/library.h>

namespace micron {

template <class Library>
void define_operators(Library& m) {
  m.def(
      "diagonal_attention(Tensor query, Tensor key, Tensor value, float scale, Tensor? row_weight, Tensor? rows, "
      "Tensor? key_mask, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor?)");
  // first_slot and slot_order: on CUDA, which slots of `rows` are one position.
  m.def(
      "diagonal_attention_backward(Tensor? grad_out, Tensor? grad_weights, Tensor query, Tensor key, Tensor value, "
      "float scale, Tensor? row_weight, Tensor? rows, Tensor? key_mask, Tensor weights, Tensor row_max, "
      "Tensor row_sum, Tensor? exponentials, Tensor? first_slot, Tensor? slot_order, bool wants_query, bool wants_key, "
      "bool wants_value, bool wants_weight) -> (Tensor?, Tensor?, Tensor?, Tensor?)");
  m.def(
      "frame_difference(Tensor frames, Tensor reference, int patch_size, bool squared, Tensor factors, "
      "bool channels_last) -> Tensor");
  m.def(
      "frame_difference_backward(Tensor grad, Tensor frames, Tensor reference, int patch_size, bool squared, "
      "Tensor factors) -> (Tensor, Tensor)");
  m.def("topk_mask(Tensor scores, int k) -> (Tensor, Tensor)");
  m.def("keep_tokens(Tensor tokens, Tensor scores, int k, bool weighted, bool in_place) -> (Tensor, Tensor)");
  m.def(
      "keep_tokens_backward(Tensor grad, Tensor tokens, Tensor scores, Tensor indices, bool weighted, bool in_place) "
      "-> (Tensor, Tensor?)");
  m.def(
      "swap_patches(Tensor frame, Tensor other, Tensor swap, int patch_size, Tensor factor, Tensor shift, "
      "ScalarType dtype) -> Tensor");
  m.def(
      "swap_patches_backward(Tensor grad, Tensor swap, int patch_size, Tensor factor, ScalarType dtype) "
      "-> (Tensor, Tensor)");
}

}  // namespace micron
