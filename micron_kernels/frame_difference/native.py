"""Frame difference in C++: ``csrc/frame_difference``. Same functions and signatures as ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from .._extension import constant, operators, with_contiguous_rows
from .._extension import why_not_on_cpu_alone as why_not  # noqa: F401 - asked before a call
from .memory_format import in_channels_last, is_channels_last

DTYPES = (torch.uint8, torch.float32, torch.bfloat16, torch.float16)


def _factors(frames: Tensor, channel_scale: Tensor | None, power: int) -> Tensor:
    """What |d| or d² of each channel is multiplied by, fp32 (C,)."""
    unit = 1 / 255 if frames.dtype == torch.uint8 else 1.0
    if channel_scale is None:
        return constant(unit**power, frames.shape[-3])
    scale = channel_scale.to(torch.float32) * unit
    return (scale.abs() if power == 1 else scale.square()).contiguous()


def forward(
    frames: Tensor, reference: Tensor, patch_size: int, norm: str, channel_scale: Tensor | None
) -> Tensor:
    """(B, N) or (B, T, N)."""
    channels_last = is_channels_last(frames)
    ordered = in_channels_last if channels_last else with_contiguous_rows
    return operators.frame_difference(
        ordered(frames),
        ordered(reference),
        patch_size,
        norm == "l2",
        _factors(frames, channel_scale, 1 if norm == "l1" else 2),
        channels_last,
    )


def backward(
    grad: Tensor,
    frames: Tensor,
    reference: Tensor,
    patch_size: int,
    norm: str,
    channel_scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(d_frames, d_reference), of the shapes and dtypes of frames and reference, contiguous."""
    return operators.frame_difference_backward(
        grad.contiguous(),
        with_contiguous_rows(frames),
        with_contiguous_rows(reference),
        patch_size,
        norm == "l2",
        _factors(frames, channel_scale, 1 if norm == "l1" else 2),
    )
