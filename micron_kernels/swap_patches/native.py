"""Patch swapping in C++: ``csrc/swap_patches``. Same functions and signatures as ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from .._extension import operators
from .._extension import why_not as why_not

DTYPES = (torch.uint8, torch.float32, torch.bfloat16, torch.float16)


def _per_channel(x: Tensor | None, channels: int, default: float) -> Tensor:
    """(C,) in fp64: the two constants of a channel are rounded to fp32 once."""
    return torch.full((channels,), default, dtype=torch.float64) if x is None else x.double()


def forward(
    frame: Tensor,
    other: Tensor,
    swap: Tensor,
    patch_size: int,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """(B, C, H, W), contiguous."""
    channels = frame.shape[1]
    factor = 1 / _per_channel(std, channels, 1)
    shift = -_per_channel(mean, channels, 0) * factor
    if frame.dtype == torch.uint8:
        factor = factor / 255
    out = torch.empty(frame.shape, dtype=dtype)
    operators().swap_patches(frame, other, swap.contiguous(), patch_size, factor.float(), shift.float(), out)
    return out


def backward(
    grad: Tensor, swap: Tensor, patch_size: int, std: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(d_frame, d_other), contiguous, in ``dtype``."""
    factor = 1 / _per_channel(std, grad.shape[1], 1)
    d_frame, d_other = (torch.empty(grad.shape, dtype=dtype) for _ in range(2))
    operators().swap_patches_backward(grad, swap.contiguous(), patch_size, factor.float(), d_frame, d_other)
    return d_frame, d_other
