"""Patch swapping in Triton. Same functions and signatures as ``reference``, where the formulas stand.

A program takes a run of patches of one image, numbered row by row, as a block of pixels [ROWS, PATCHES, COLUMNS], and
goes through its channels.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import launch

#: Pixels that a program holds at a time.
TILE = 2048


@triton.jit
def patches_of(
    swap, swap_b, swap_patch, patches_in_image, patches_across,
    PATCH_SIZE: tl.constexpr, ROWS: tl.constexpr, PATCHES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of the patches of this program: the image, where in it their pixels are, and from which frame they come.

    batch; y [ROWS, PATCHES, 1], x [1, PATCHES, COLUMNS], kept and swapped [ROWS, PATCHES, COLUMNS]
    """
    blocks_of_rows, blocks_of_patches = tl.cdiv(PATCH_SIZE, ROWS), tl.cdiv(patches_in_image, PATCHES)
    program = tl.program_id(0)
    block_of_rows, program = program % blocks_of_rows, program // blocks_of_rows
    block_of_patches, batch = program % blocks_of_patches, (program // blocks_of_patches).to(tl.int64)
    rows = (block_of_rows * ROWS + tl.arange(0, ROWS))[:, None, None]
    patches = (block_of_patches * PATCHES + tl.arange(0, PATCHES))[None, :, None]
    columns = tl.arange(0, COLUMNS)[None, None, :]
    y = (patches // patches_across).to(tl.int64) * PATCH_SIZE + rows
    x = (patches % patches_across).to(tl.int64) * PATCH_SIZE + columns
    in_image = patches < patches_in_image
    swap += batch * swap_b + patches.to(tl.int64) * swap_patch
    is_swapped = tl.load(swap, mask=in_image, other=0) != 0
    inside = in_image & (rows < PATCH_SIZE) & (columns < PATCH_SIZE)
    return batch, y, x, inside & (is_swapped == 0), inside & is_swapped


@triton.jit
def scale_of(std, channel):
    """1 / std of a channel, in fp64."""
    return 1.0 / (tl.full([], 1.0, tl.float64) if std is None else tl.load(std + channel).to(tl.float64))


@triton.jit
def forward_kernel(
    frame, other, swap, mean, std, out,
    channels, patches_in_image, patches_across,
    frame_b, frame_channel, frame_row, frame_column,
    other_b, other_channel, other_row, other_column,
    swap_b, swap_patch, out_b, out_channel, out_row,
    PATCH_SIZE: tl.constexpr, ROWS: tl.constexpr, PATCHES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    batch, y, x, kept, swapped = patches_of(
        swap, swap_b, swap_patch, patches_in_image, patches_across, PATCH_SIZE, ROWS, PATCHES, COLUMNS
    )
    frame += batch * frame_b + y * frame_row + x * frame_column
    other += batch * other_b + y * other_row + x * other_column
    out += batch * out_b + y * out_row + x
    for channel in range(channels):
        # The constants of a channel are rounded to fp32 once.
        factor = scale_of(std, channel)
        shift = 0.0 * factor if mean is None else -tl.load(mean + channel).to(tl.float64) * factor
        if frame.dtype.element_ty == tl.uint8:
            factor = factor / 255
        from_frame = tl.load(frame, mask=kept, other=0).to(tl.float32)
        from_other = tl.load(other, mask=swapped, other=0).to(tl.float32)
        pixels = tl.where(swapped, from_other, from_frame)
        tl.store(out, pixels * factor.to(tl.float32) + shift.to(tl.float32), mask=kept | swapped)
        frame += frame_channel
        other += other_channel
        out += out_channel


@triton.jit
def backward_kernel(
    grad, swap, std, d_frame, d_other,
    channels, patches_in_image, patches_across,
    grad_b, grad_channel, grad_row, grad_column, swap_b, swap_patch, d_b, d_channel, d_row,
    PATCH_SIZE: tl.constexpr, ROWS: tl.constexpr, PATCHES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    batch, y, x, kept, swapped = patches_of(
        swap, swap_b, swap_patch, patches_in_image, patches_across, PATCH_SIZE, ROWS, PATCHES, COLUMNS
    )
    grad += batch * grad_b + y * grad_row + x * grad_column
    d_frame += batch * d_b + y * d_row + x
    d_other += batch * d_b + y * d_row + x
    inside = kept | swapped
    for channel in range(channels):
        g = tl.load(grad, mask=inside, other=0).to(tl.float32) * scale_of(std, channel).to(tl.float32)
        tl.store(d_frame, tl.where(kept, g, 0.0), mask=inside)
        tl.store(d_other, tl.where(swapped, g, 0.0), mask=inside)
        grad += grad_channel
        d_frame += d_channel
        d_other += d_channel


def _tile(patch_size: int, patches: int) -> dict[str, int]:
    """The block of pixels that a program holds; its sides are powers of two."""
    tile = {"COLUMNS": triton.next_power_of_2(patch_size)}
    for name, size in (("ROWS", patch_size), ("PATCHES", patches)):
        tile[name] = min(triton.next_power_of_2(size), max(1, TILE // math.prod(tile.values())))
    return tile


def _programs(batch: int, patch_size: int, patches: int, tile: dict[str, int]) -> int:
    return batch * triton.cdiv(patch_size, tile["ROWS"]) * triton.cdiv(patches, tile["PATCHES"])


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


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
    out = frame.new_empty(frame.shape, dtype=dtype)
    if out.numel() == 0:
        return out
    batch, channels, _, width = frame.shape
    patches = swap.shape[1]
    tile = _tile(patch_size, patches)
    launch(
        forward_kernel,
        (_programs(batch, patch_size, patches, tile),),
        frame,
        other,
        swap,
        _contiguous(mean),
        _contiguous(std),
        out,
        channels,
        patches,
        width // patch_size,
        *frame.stride(),
        *other.stride(),
        *swap.stride(),
        *out.stride()[:3],
        PATCH_SIZE=patch_size,
        **tile,
        num_warps=8,
    )
    return out


def backward(
    grad: Tensor, swap: Tensor, patch_size: int, std: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(d_frame, d_other), contiguous, in ``dtype``."""
    d_frame, d_other = (grad.new_empty(grad.shape, dtype=dtype) for _ in range(2))
    if grad.numel() == 0:
        return d_frame, d_other
    batch, channels, _, width = grad.shape
    patches = swap.shape[1]
    tile = _tile(patch_size, patches)
    launch(
        backward_kernel,
        (_programs(batch, patch_size, patches, tile),),
        grad,
        swap,
        _contiguous(std),
        d_frame,
        d_other,
        channels,
        patches,
        width // patch_size,
        *grad.stride(),
        *swap.stride(),
        *d_frame.stride()[:3],
        PATCH_SIZE=patch_size,
        **tile,
        num_warps=8,
    )
    return d_frame, d_other
