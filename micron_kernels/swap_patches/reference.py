"""Patch swapping in plain PyTorch: the specification.

y = ((other if swap else frame) − mean) / std
d_frame = 0 if swap else g / std          d_other = g / std if swap else 0
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._implementation import accumulate_dtype


def _per_pixel(swap: Tensor, frame_shape: torch.Size, patch_size: int) -> Tensor:
    """swap (B, N) as (B, 1, H, W)."""
    height, width = frame_shape[2:]
    grid = swap.reshape(len(swap), 1, height // patch_size, width // patch_size)
    return grid.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)


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
    compute = accumulate_dtype(frame.dtype)
    result = torch.where(_per_pixel(swap, frame.shape, patch_size), other, frame).to(compute)
    if frame.dtype == torch.uint8:
        result = result / 255
    if mean is not None:
        result = result - mean.to(compute)[:, None, None]
    if std is not None:
        result = result / std.to(compute)[:, None, None]
    return result.to(dtype, memory_format=torch.contiguous_format, copy=True)


def backward(
    grad: Tensor, swap: Tensor, patch_size: int, std: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(d_frame, d_other), contiguous, in ``dtype``."""
    grad = grad.to(torch.float64 if dtype == torch.float64 else accumulate_dtype(grad.dtype))
    if std is not None:
        grad = grad / std.to(grad.dtype)[:, None, None]
    grad = grad.to(dtype, memory_format=torch.contiguous_format)
    swapped = _per_pixel(swap, grad.shape, patch_size)
    return grad.masked_fill(swapped, 0), grad.masked_fill(~swapped, 0)
