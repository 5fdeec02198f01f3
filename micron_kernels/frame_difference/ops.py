"""Registration of frame difference with torch.library: one opaque operator forward, one backward."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from .._extension import register
from .._implementation import TritonModule, accumulate_dtype, autocast_off
from . import native
from . import reference as reference_implementation

_TRITON = TritonModule("frame_difference", torch.uint8, torch.float32, torch.bfloat16, torch.float16)
IMPLEMENTATIONS = register({"reference": reference_implementation, "triton": _TRITON}, native)


@torch.library.custom_op("micron_kernels::frame_difference", mutates_args=())
def frame_difference(
    frames: Tensor,
    reference: Tensor,
    patch_size: int,
    norm: str,
    channel_scale: Optional[Tensor],
    impl: str,
) -> Tensor:
    with autocast_off(frames):
        return IMPLEMENTATIONS[impl].forward(frames, reference, patch_size, norm, channel_scale)


@frame_difference.register_fake
def _(frames, reference, patch_size, norm, channel_scale, impl):
    patches = (frames.shape[-2] // patch_size) * (frames.shape[-1] // patch_size)
    return frames.new_empty((*frames.shape[:-3], patches), dtype=accumulate_dtype(frames.dtype))


@torch.library.custom_op("micron_kernels::frame_difference_backward", mutates_args=())
def frame_difference_backward(
    grad: Tensor,
    frames: Tensor,
    reference: Tensor,
    patch_size: int,
    norm: str,
    channel_scale: Optional[Tensor],
    impl: str,
) -> Tuple[Tensor, Tensor]:
    """Gradients of frames and reference, contiguous."""
    with autocast_off(frames):
        return IMPLEMENTATIONS[impl].backward(grad, frames, reference, patch_size, norm, channel_scale)


@frame_difference_backward.register_fake
def _(grad, frames, reference, patch_size, norm, channel_scale, impl):
    return frames.new_empty(frames.shape), reference.new_empty(reference.shape)


def _setup_context(ctx, inputs, output):
    frames, reference, patch_size, norm, channel_scale, impl = inputs
    ctx.save_for_backward(frames, reference, channel_scale)
    ctx.patch_size, ctx.norm, ctx.impl = patch_size, norm, impl


def _backward(ctx, grad):
    frames, reference, channel_scale = ctx.saved_tensors
    d_frames, d_reference = frame_difference_backward(
        grad, frames, reference, ctx.patch_size, ctx.norm, channel_scale, ctx.impl
    )
    return d_frames, d_reference, None, None, None, None


frame_difference.register_autograd(_backward, setup_context=_setup_context)
