"""Patch swapping in C++: ``csrc/swap_patches``. Same functions and signatures as ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from .._extension import constant, operators
from .._extension import why_not_on_cpu_alone as why_not  # noqa: F401 - asked before a call

DTYPES = (torch.uint8, torch.float32, torch.bfloat16, torch.float16)


def _factor(std: Tensor | None, channels: int, scale: float) -> Tensor:
    """scale / std, (C,), rounded to fp32 once."""
    return constant(scale, channels) if std is None else (scale / std.double()).float()


def _shift(mean: Tensor | None, std: Tensor | None, channels: int) -> Tensor:
    """-mean / std, (C,), rounded to fp32 once."""
    if mean is None:
        return constant(0.0, channels)
    return (-mean.double() if std is None else mean.double() * (-1.0 / std.double())).float()


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
    factor = _factor(std, channels, 1 / 255 if frame.dtype == torch.uint8 else 1.0)
    shift = _shift(mean, std, channels)
    return operators.swap_patches(frame, other, swap.contiguous(), patch_size, factor, shift, dtype)


def backward(
    grad: Tensor, swap: Tensor, patch_size: int, std: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(d_frame, d_other), contiguous, in ``dtype``."""
    factor = _factor(std, grad.shape[1], 1.0)
    return operators.swap_patches_backward(grad, swap.contiguous(), patch_size, factor, dtype)
