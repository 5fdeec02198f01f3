"""The order of an image's pixels in memory, which the kernels keep."""

from __future__ import annotations

from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel of ``x`` (..., C, H, W) lie side by side, and the pixels of a row."""
    if x.is_contiguous():
        return False
    channels, _, width = x.shape[-3:]
    return channels > 1 and x.stride(-3) == 1 and (width == 1 or x.stride(-1) == channels)


def in_channels_last(x: Tensor) -> Tensor:
    """``x`` in that order; a copy only where it is not."""
    return x if is_channels_last(x) else x.movedim(-3, -1).contiguous().movedim(-1, -3)
