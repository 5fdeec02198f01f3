"""Patch swapping: the public functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _check
from .._implementation import Impl
from . import ops


def swap_patches(
    frame: Tensor,
    other: Tensor,
    swap: Tensor,
    patch_size: int,
    *,
    mean: Tensor | Sequence[float] | None = None,
    std: Tensor | Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    impl: Impl | None = None,
) -> Tensor:
    """Take each patch from ``other`` where ``swap`` is True and from ``frame`` elsewhere; normalise.

    ::

        x = other if swap else frame          uint8 counts as x/255
        result = (x − mean) / std             per channel, then cast to dtype

    Args:
        frame: (B, C, H, W), uint8, fp16, bf16, fp32 or fp64, in any memory layout.
        other: (B, C, H, W), the dtype of ``frame``.
        swap: (B, N) bool with N = (H/P)·(W/P) patches row by row.
        patch_size: P, the side of a patch in pixels; divides H and W.
        mean: C numbers, constants, in units of [0, 1] for uint8; 0 by default.
        std: C numbers, constants, none of them 0; 1 by default. Numbers that are no tensor are copied to the
            device at each call: a CUDA graph captures tensors alone.
        dtype: floating dtype of the result; by default that of ``frame``, fp32 for uint8.
        impl: ``"reference"``, ``"native"``, ``"triton"``, or None for the fastest that is available.

    Returns:
        (B, C, H, W), contiguous. Differentiable in floating ``frame`` and ``other``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or value.
        RuntimeError: ``impl`` names an implementation that is not available.
    """
    _check.tensor("frame", frame, dims=(4,), layout="(B, C, H, W)", dtypes=_check.IMAGE)
    if not _check.alike(frame, other):
        _check.tensor("other", other, dims=(4,), layout="(B, C, H, W)", dtypes=_check.IMAGE)
        _check.same_dtype("other", other, "frame", frame)
        _check.same_device("other", other, "frame", frame)
    batch, channels, height, width = frame.shape
    _check.shape("other", other, frame.shape, "the shape of frame")
    patch_size = _check.patch_size(patch_size, height, width)
    _check.tensor("swap", swap, dims=(2,), layout="(B, N)", dtypes=(torch.bool,))
    patches = (height // patch_size) * (width // patch_size)
    _check.shape("swap", swap, (batch, patches), "one entry a patch of patch_size × patch_size pixels")
    _check.same_device("swap", swap, "frame", frame)
    if dtype is None:
        dtype = frame.dtype if frame.is_floating_point() else torch.float32
    if dtype not in _check.FLOATING:
        raise TypeError(f"dtype={dtype}; it must be a floating dtype: the result is normalised")
    mean = _check.per_channel("mean", mean, channels, frame)
    if isinstance(std, (list, tuple)) and 0 in std:  # a tensor may be on a GPU, where looking would stop it
        raise ValueError(f"std={std!r} holds 0, by which the result would be divided")
    std = _check.per_channel("std", std, channels, frame)
    return ops.swap_patches(frame, other, swap, patch_size, mean, std, dtype, impl)


def _log_range(name: str, value: tuple[float, float]) -> tuple[float, float]:
    """The logarithms of ``value``, two positive numbers of which the first is not the larger."""
    both = enumerate(_check.pair(name, value, "(lowest, highest)"))
    low, high = (_check.number(f"{name}[{i}]", x) for i, x in both)
    if not 0 < low <= high < math.inf:
        raise ValueError(f"{name}={value!r}; it must be (lowest, highest) with 0 < lowest <= highest < inf")
    return math.log(low), math.log(high)


def blockwise_mask(
    batch: int,
    grid: tuple[int, int],
    ratio: float,
    generator: torch.Generator | None = None,
    *,
    min_area: int = 4,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Tensor:
    """Draw swap masks that are unions of rectangles of patches.

    Every rectangle starts from a patch that is not yet covered; the last one gives up its final patches, in
    reading order, so that exactly round(ratio·N) are covered.

    Args:
        batch: B, how many masks to draw.
        grid: (rows, columns) of patches, at least 1 each.
        ratio: share of the patches to cover, in [0, 1].
        generator: source of randomness, on the CPU; the same state gives the same masks.
        min_area: smallest area of a rectangle, in patches, where as many are left to cover.
        aspect: (lowest, highest) height over width, drawn log-uniformly; 0 < lowest <= highest.

    Returns:
        (B, N) bool on the CPU, N = rows·columns.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range.
    """
    batch = _check.integer("batch", batch, 0)
    rows, columns = _check.pair("grid", grid, "(rows, columns)")
    rows, columns = _check.integer("grid[0]", rows, 1), _check.integer("grid[1]", columns, 1)
    ratio = _check.number("ratio", ratio)
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio={ratio}; it must lie in [0, 1]")
    min_area = _check.integer("min_area", min_area, 1)
    log_low, log_high = _log_range("aspect", aspect)
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            f"generator is on {generator.device}; the masks are drawn on the CPU: torch.Generator('cpu')"
        )
    cpu: Any = {"device": "cpu"}  # whatever torch's default device is
    length = rows * columns
    target = round(ratio * length)
    mask = torch.zeros(batch, length, dtype=torch.bool, **cpu)
    row, column = torch.arange(rows, **cpu)[:, None], torch.arange(columns, **cpu)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float32, **cpu)

    while batch and (remaining := target - mask.sum(1)).any():
        area = min_area + uniform(batch) * (remaining - min_area).clamp(min=0)
        shape_ratio = torch.exp(log_low + (log_high - log_low) * uniform(batch))
        height = (area * shape_ratio).sqrt().round().clamp(1, rows)
        width = (area / shape_ratio).sqrt().round().clamp(1, columns)
        seed = uniform(batch, length).masked_fill_(mask, -1).argmax(1)  # one of the patches not yet covered
        top = (seed // columns - (uniform(batch) * height).floor()).clamp(min=0).minimum(rows - height)
        left = (seed % columns - (uniform(batch) * width).floor()).clamp(min=0).minimum(columns - width)
        top, left, height, width = (x[:, None, None] for x in (top, left, height, width))
        inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
        new = inside.flatten(1) & ~mask
        mask |= new & (new.cumsum(1) <= remaining[:, None])
    return mask
