"""Frame difference: the public function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from .. import _check
from .._implementation import Impl
from . import ops


def frame_difference(
    frames: Tensor,
    reference: Tensor,
    patch_size: int,
    *,
    norm: Literal["l1", "l2"] = "l1",
    channel_scale: Tensor | Sequence[float] | None = None,
    impl: Impl | None = None,
) -> Tensor:
    """The mean difference between frames and a reference frame, patch by patch.

    ::

        d = channel_scale · (x − r)          uint8 counts as x/255, r/255
        result = mean of |d| ("l1") or d² ("l2") over the P×P pixels of a patch and the channels

    Args:
        frames: (B, C, H, W) or (B, T, C, H, W), uint8, fp16, bf16, fp32 or fp64, in any memory layout.
        reference: (B, C, H, W), the dtype of ``frames``: the frame that all T are compared with.
        patch_size: P, the side of a patch in pixels; divides H and W.
        norm: ``"l1"`` or ``"l2"``.
        channel_scale: C numbers, constants; 1 by default. With 1/std the result is in units of normalised
            pixels.
        impl: ``"reference"``, ``"native"``, ``"triton"``, or None for the fastest that is available.

    Returns:
        (B, N) or (B, T, N) with N = (H/P)·(W/P) patches row by row; fp32 (fp64 for fp64 inputs).
        Differentiable in floating ``frames`` and ``reference``; the sub-gradient of "l1" at x = r is 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or value.
        RuntimeError: ``impl`` names an implementation that is not available.
    """
    _check.tensor(
        "frames", frames, dims=(4, 5), layout="(B, C, H, W) or (B, T, C, H, W)", dtypes=_check.IMAGE
    )
    if not _check.alike(frames, reference):
        _check.tensor("reference", reference, dims=(4,), layout="(B, C, H, W)", dtypes=_check.IMAGE)
        _check.same_dtype("reference", reference, "frames", frames)
        _check.same_device("reference", reference, "frames", frames)
    batch, *_, channels, height, width = frames.shape
    _check.shape(
        "reference", reference, (batch, channels, height, width), "one frame a batch entry of frames"
    )
    patch_size = _check.patch_size(patch_size, height, width)
    if norm not in ("l1", "l2"):
        raise ValueError(f"norm={norm!r}; it must be 'l1' or 'l2'")
    scale = _check.per_channel("channel_scale", channel_scale, channels, frames)
    return ops.frame_difference(frames, reference, patch_size, norm, scale, impl)
