// Schemas of the native operators, and what was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include "cpu/common.h"
#include "cpu/instruction_set.h"

STABLE_TORCH_LIBRARY_FRAGMENT(micron_native, m) {
  m.def(
      "diagonal_attention(Tensor query, Tensor key, Tensor value, float scale, Tensor? row_weight, Tensor? rows, "
      "Tensor? key_mask, Tensor(a!) out, Tensor(b!) weights, Tensor(c!) row_max, "
      "Tensor(d!) row_sum) -> ()");
  m.def(
      "diagonal_attention_backward(Tensor? grad_out, Tensor? grad_weights, Tensor query, Tensor key, Tensor value, "
      "float scale, Tensor? row_weight, Tensor? rows, Tensor? key_mask, Tensor row_max, Tensor row_sum, Tensor(a!) d_query, "
      "Tensor(b!) d_key, Tensor(c!) d_value, Tensor(d!)? d_weight) -> ()");
  m.def(
      "frame_difference(Tensor frames, Tensor reference, int patch_size, bool squared, Tensor factors, "
      "bool channels_last, Tensor(a!) out) -> ()");
  m.def(
      "frame_difference_backward(Tensor grad, Tensor frames, Tensor reference, int patch_size, bool squared, "
      "Tensor factors, bool channels_last, Tensor(a!) d_frames, Tensor(b!) d_reference) -> ()");
  m.def("topk(Tensor scores, int k, Tensor(a!)? mask, Tensor(b!) indices) -> ()");
  m.def("gather_tokens(Tensor tokens, Tensor? scores, Tensor indices, bool in_place, Tensor(a!) out) -> ()");
  m.def(
      "gather_tokens_backward(Tensor grad, Tensor? tokens, Tensor? scores, Tensor indices, bool in_place, "
      "Tensor(a!) d_tokens, Tensor(b!)? d_scores) -> ()");
  m.def(
      "swap_patches(Tensor frame, Tensor other, Tensor swap, int patch_size, Tensor factor, Tensor shift, "
      "Tensor(a!) out) -> ()");
  m.def(
      "swap_patches_backward(Tensor grad, Tensor swap, int patch_size, Tensor factor, Tensor(a!) d_frame, "
      "Tensor(b!) d_other) -> ()");
}

#ifndef MICRON_BUILD_FLAGS
#define MICRON_BUILD_FLAGS "unknown"
#endif
#ifndef MICRON_CUDA_ARCHITECTURES
#define MICRON_CUDA_ARCHITECTURES ""
#endif
#ifndef MICRON_NO_CUDA_REASON
#define MICRON_NO_CUDA_REASON "not built"
#endif

PYBIND11_MODULE(_native, m) {
  m.attr("compiler") = __VERSION__;
  m.attr("flags") = MICRON_BUILD_FLAGS;
  m.attr("cuda_architectures") = MICRON_CUDA_ARCHITECTURES;
  m.attr("no_cuda_reason") = MICRON_NO_CUDA_REASON;
  m.def("instruction_set", [] { return micron::name_of(micron::instruction_set()); },
        "The instruction set in use.");
  m.def("supported_instruction_sets", &micron::supported_instruction_sets,
        "Those that were compiled and that this CPU has, slowest first.");
  m.def("take_scratch_peak", &micron::take_scratch_peak,
        "The most bytes of scratch that kernels held at a time since the last call.");
  m.def("set_instruction_set", &micron::set_instruction_set, "Use another of them from now on: for tests.");
}
