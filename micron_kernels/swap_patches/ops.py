"""Registration of patch swapping with torch.library: one opaque operator forward, one backward."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from .._extension import register
from .._implementation import TritonModule, autocast_off
from . import native, reference

_TRITON = TritonModule("swap_patches", torch.uint8, torch.float32, torch.bfloat16, torch.float16)
IMPLEMENTATIONS = register({"reference": reference, "triton": _TRITON}, native)


@torch.library.custom_op("micron_kernels::swap_patches", mutates_args=())
def swap_patches(
    frame: Tensor,
    other: Tensor,
    swap: Tensor,
    patch_size: int,
    mean: Optional[Tensor],
    std: Optional[Tensor],
    dtype: torch.dtype,
    impl: str,
) -> Tensor:
    with autocast_off(frame):
        return IMPLEMENTATIONS[impl].forward(frame, other, swap, patch_size, mean, std, dtype)


@swap_patches.register_fake
def _(frame, other, swap, patch_size, mean, std, dtype, impl):
    return frame.new_empty(frame.shape, dtype=dtype)


@torch.library.custom_op("micron_kernels::swap_patches_backward", mutates_args=())
def swap_patches_backward(
    grad: Tensor, swap: Tensor, patch_size: int, std: Optional[Tensor], dtype: torch.dtype, impl: str
) -> Tuple[Tensor, Tensor]:
    """Gradients of frame and other, contiguous, in ``dtype``."""
    with autocast_off(grad):
        return IMPLEMENTATIONS[impl].backward(grad, swap, patch_size, std, dtype)


@swap_patches_backward.register_fake
def _(grad, swap, patch_size, std, dtype, impl):
    return grad.new_empty(grad.shape, dtype=dtype), grad.new_empty(grad.shape, dtype=dtype)


def _setup_context(ctx, inputs, output):
    frame, _, swap, patch_size, _, std, _, impl = inputs
    ctx.save_for_backward(swap, std)
    ctx.patch_size, ctx.dtype, ctx.impl = patch_size, frame.dtype, impl


def _backward(ctx, grad):
    swap, std = ctx.saved_tensors
    d_frame, d_other = swap_patches_backward(grad, swap, ctx.patch_size, std, ctx.dtype, ctx.impl)
    return d_frame, d_other, None, None, None, None, None, None


swap_patches.register_autograd(_backward, setup_context=_setup_context)
