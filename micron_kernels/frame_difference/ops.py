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
    implementation = _choose(impl, frames.device, frames.dtype)
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
    implementation = _choose(impl, frames.device, frames.dtype)
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


def _save(args, results):
    frames, reference, patch_size, norm, channel_scale, impl = args
    return (frames, reference, channel_scale), (patch_size, norm, impl)


def _gradients(tensors, others, grads, wanted):
    frames, reference, channel_scale = tensors
    patch_size, norm, impl = others
    gradients = frame_difference_backward(grads[0], frames, reference, patch_size, norm, channel_scale, impl)
    return *gradients, None, None, None, None


def _tangents(tensors, others, tangents):
    frames, reference, channel_scale = tensors
    patch_size, norm, _ = others
    return (
        reference_implementation.forward_tangent(
            frames, reference, patch_size, norm, channel_scale, *tangents[:2]
        ),
    )


frame_difference.derivatives(save=_save, gradients=_gradients, tangents=_tangents)


def _backward_save(args, results):
    grad, *inputs = args
    tensors, others = _save(inputs, results)
    return (grad, *tensors), others


def _backward_gradients(tensors, others, grads, wanted):
    grad, frames, reference, channel_scale = tensors
    patch_size, norm, _ = others
    d_grad = None
    if wanted[0]:
        d_grad = reference_implementation.forward_tangent(
            frames, reference, patch_size, norm, channel_scale, *grads
        ).to(grad.dtype)
    second = _second_order(tensors, others, *grads) if wanted[1] or wanted[2] else (None, None)
    return d_grad, *second, None, None, None, None


def _backward_tangents(tensors, others, tangents):
    _, frames, reference, channel_scale = tensors
    patch_size, norm, impl = others
    results = _second_order(tensors, others, *tangents[1:3])
    if tangents[0] is None:
        return results
    first = frame_difference_backward(tangents[0], frames, reference, patch_size, norm, channel_scale, impl)
    return tuple(x + y for x, y in zip(first, results, strict=True))


def _second_order(tensors, others, d_frames, d_reference):
    """The change of the gradient for that of the frames: it is a constant for "l1", and for "l2" linear in them."""
    grad, frames, reference, channel_scale = tensors
    patch_size, norm, impl = others
    if norm == "l1":
        return torch.zeros_like(frames), torch.zeros_like(reference)
    d_frames = torch.zeros_like(frames) if d_frames is None else d_frames
    d_reference = torch.zeros_like(reference) if d_reference is None else d_reference
    return frame_difference_backward(grad, d_frames, d_reference, patch_size, norm, channel_scale, impl)


frame_difference_backward.derivatives(
    save=_backward_save, gradients=_backward_gradients, tangents=_backward_tangents, outputs=2
)
