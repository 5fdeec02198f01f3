"""Registration of frame difference with torch.library: one opaque operator forward, one backward."""

from __future__ import annotations

import torch

from .._extension import register
from .._implementation import Chooser, TritonModule, accumulate_dtype
from .._operator import Operator
from . import native
from . import reference as reference_implementation

_TRITON = TritonModule("frame_difference", torch.uint8, torch.float32, torch.bfloat16, torch.float16)
IMPLEMENTATIONS = register({"reference": reference_implementation, "triton": _TRITON}, native)
_choose = Chooser("frame_difference", IMPLEMENTATIONS)


def _forward(frames, reference, patch_size, norm, channel_scale, impl):
    implementation = _choose(impl, frames.device, (frames.dtype,))
    return implementation.forward(frames, reference, patch_size, norm, channel_scale)


def _forward_fake(frames, reference, patch_size, norm, channel_scale, impl):
    patches = (frames.shape[-2] // patch_size) * (frames.shape[-1] // patch_size)
    return frames.new_empty((*frames.shape[:-3], patches), dtype=accumulate_dtype(frames.dtype))


frame_difference = Operator(
    "frame_difference(Tensor frames, Tensor reference, SymInt patch_size, str norm, Tensor? channel_scale, "
    "str? impl) -> Tensor",
    _forward,
    _forward_fake,
)


def _backward(grad, frames, reference, patch_size, norm, channel_scale, impl):
    implementation = _choose(impl, frames.device, (frames.dtype,))
    return implementation.backward(grad, frames, reference, patch_size, norm, channel_scale)


def _backward_fake(grad, frames, reference, patch_size, norm, channel_scale, impl):
    return frames.new_empty(frames.shape), reference.new_empty(reference.shape)


#: Gradients of frames and reference, contiguous.
frame_difference_backward = Operator(
    "frame_difference_backward(Tensor grad, Tensor frames, Tensor reference, SymInt patch_size, str norm, "
    "Tensor? channel_scale, str? impl) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _gradients(saved, grads, wanted):
    return *frame_difference_backward(*grads, *saved), None, None, None, None


def _tangents(saved, tangents):
    return (reference_implementation.forward_tangent(*saved[:5], *tangents[:2]),)


frame_difference.derivatives(save=lambda args, results: args, gradients=_gradients, tangents=_tangents)


def _backward_gradients(saved, grads, wanted):
    grad, *inputs, impl = saved
    d_grad = None
    if wanted[0]:
        d_grad = reference_implementation.forward_tangent(*inputs, *grads).to(grad.dtype)
    d_frames, d_reference = _second_order(grad, inputs, grads, impl) if any(wanted[1:3]) else (None, None)
    return d_grad, d_frames, d_reference, None, None, None, None


def _backward_tangents(saved, tangents):
    grad, *inputs, impl = saved
    results = [_second_order(grad, inputs, tangents[1:3], impl)]
    if tangents[0] is not None:
        results.append(frame_difference_backward(tangents[0], *inputs, impl))
    return tuple(sum(x for x in column if x is not None) for column in zip(*results, strict=True))


def _second_order(grad, inputs, direction, impl):
    """The gradient is a constant for "l1", and for "l2" linear in frames − reference."""
    frames, reference, patch_size, norm, channel_scale = inputs
    if norm == "l1":
        return torch.zeros_like(frames), torch.zeros_like(reference)
    d_frames, d_reference = (
        torch.zeros_like(x) if dx is None else dx
        for x, dx in zip((frames, reference), direction, strict=True)
    )
    return frame_difference_backward(grad, d_frames, d_reference, patch_size, norm, channel_scale, impl)


frame_difference_backward.derivatives(
    save=lambda args, results: args, gradients=_backward_gradients, tangents=_backward_tangents, outputs=2
)
