"""Registration of patch swapping with torch.library: one opaque operator forward, one backward."""

from __future__ import annotations

import torch

from .._extension import register
from .._implementation import Chooser, TritonModule
from .._operator import Operator
from . import native, reference

_TRITON = TritonModule("swap_patches", torch.uint8, torch.float32, torch.bfloat16, torch.float16)
IMPLEMENTATIONS = register({"reference": reference, "triton": _TRITON}, native)
_choose = Chooser("swap_patches", IMPLEMENTATIONS)


def _forward(frame, other, swap, patch_size, mean, std, dtype, impl):
    implementation = _choose(impl, frame.device, frame.dtype, dtype)
    return implementation.forward(frame, other, swap, patch_size, mean, std, dtype)


def _forward_fake(frame, other, swap, patch_size, mean, std, dtype, impl):
    return frame.new_empty(frame.shape, dtype=dtype)


swap_patches = Operator(
    "swap_patches(Tensor frame, Tensor other, Tensor swap, SymInt patch_size, Tensor? mean, Tensor? std, "
    "ScalarType dtype, str? impl) -> Tensor",
    _forward,
    _forward_fake,
)


def _backward(grad, swap, patch_size, std, dtype, impl):
    return _choose(impl, grad.device, grad.dtype, dtype).backward(grad, swap, patch_size, std, dtype)


def _backward_fake(grad, swap, patch_size, std, dtype, impl):
    return grad.new_empty(grad.shape, dtype=dtype), grad.new_empty(grad.shape, dtype=dtype)


#: Gradients of frame and other, contiguous, in ``dtype``.
swap_patches_backward = Operator(
    "swap_patches_backward(Tensor grad, Tensor swap, SymInt patch_size, Tensor? std, ScalarType dtype, str? impl) "
    "-> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _save(args, results):
    frame, _, swap, patch_size, _, std, dtype, impl = args
    return (swap, std), (patch_size, frame.dtype, dtype, impl)


def _gradients(tensors, others, grads, wanted):
    swap, std = tensors
    patch_size, in_dtype, _, impl = others
    return *swap_patches_backward(*grads, swap, patch_size, std, in_dtype, impl), *(None,) * 6


def _swapped(frame, other, swap, patch_size, std, dtype, impl):
    """The operator without its mean: what is linear in frame and other, of which one may be None for zeros."""
    frame = torch.zeros_like(other) if frame is None else frame
    other = torch.zeros_like(frame) if other is None else other
    return swap_patches(frame, other, swap, patch_size, None, std, dtype, impl)


def _tangents(tensors, others, tangents):
    swap, std = tensors
    patch_size, _, dtype, impl = others
    return (_swapped(tangents[0], tangents[1], swap, patch_size, std, dtype, impl),)


swap_patches.derivatives(save=_save, gradients=_gradients, tangents=_tangents)


def _backward_save(args, results):
    grad, swap, patch_size, std, dtype, impl = args
    return (swap, std), (patch_size, grad.dtype, dtype, impl)


def _backward_gradients(tensors, others, grads, wanted):
    swap, std = tensors
    patch_size, grad_dtype, _, impl = others
    return _swapped(grads[0], grads[1], swap, patch_size, std, grad_dtype, impl), *(None,) * 5


def _backward_tangents(tensors, others, tangents):
    swap, std = tensors
    patch_size, _, dtype, impl = others
    return swap_patches_backward(tangents[0], swap, patch_size, std, dtype, impl)


swap_patches_backward.derivatives(
    save=_backward_save, gradients=_backward_gradients, tangents=_backward_tangents, outputs=2
)
