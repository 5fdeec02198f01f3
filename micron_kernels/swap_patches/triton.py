"""Patch swapping in Triton. Same functions and signatures as ``reference``, where the formulas stand.

Rows of pixels are cut into pieces of COLUMNS pixels, none of which crosses a patch; the pieces of an image are numbered
row by row. A program takes PIECES of them and goes through the channels. A thread moves a whole piece at a time, 16
bytes of the wider of its two sides: had each side its own width, pixels would change threads in between.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import launch

#: Pieces that a program holds at a time, and its warps: a thread has four loads under way. The fastest of those that
#: were measured on an H200: 1024 frames of 224² in 219 µs; 512 pieces by 4 warps 220 µs, 256 by 4 225, 2048 by 8 234.
PIECES, WARPS = 256, 2


@triton.jit
def pieces_of(
    swap, swap_b, swap_patch, pieces_in_image, pieces_across,
    PATCH_SIZE: tl.constexpr, PIECES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of the pieces of this program: the image, where in it their pixels are, and from which frame they come.

    batch; y [PIECES, 1], x [PIECES, COLUMNS], inside and swapped [PIECES, 1]
    """
    blocks = tl.cdiv(pieces_in_image, PIECES)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    pieces = (tl.program_id(0) % blocks * PIECES + tl.arange(0, PIECES))[:, None]
    y, x = pieces // pieces_across, pieces % pieces_across * COLUMNS
    inside = pieces < pieces_in_image
    patches = y // PATCH_SIZE * (pieces_across // (PATCH_SIZE // COLUMNS)) + x // PATCH_SIZE
    swapped = tl.load(swap + batch * swap_b + patches.to(tl.int64) * swap_patch, mask=inside, other=0) != 0
    return batch, y.to(tl.int64), x.to(tl.int64) + tl.arange(0, COLUMNS)[None, :], inside, swapped


@triton.jit
def scale_of(std, channel):
    """1 / std of a channel, in fp64."""
    return 1.0 / (tl.full([], 1.0, tl.float64) if std is None else tl.load(std + channel).to(tl.float64))


@triton.jit
def forward_kernel(
    frame, other, swap, mean, std, out,
    channels, pieces_in_image, pieces_across,
    frame_b, frame_channel, frame_row, frame_column,
    other_b, other_channel, other_row, other_column,
    swap_b, swap_patch, out_b, out_channel, out_row,
    PATCH_SIZE: tl.constexpr, PIECES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    batch, y, x, inside, swapped = pieces_of(
        swap, swap_b, swap_patch, pieces_in_image, pieces_across, PATCH_SIZE, PIECES, COLUMNS
    )
    frame += batch * frame_b + y * frame_row + x * frame_column
    other += batch * other_b + y * other_row + x * other_column
    chosen = tl.where(swapped, other, frame)
    channel_stride = tl.where(swapped, other_channel, frame_channel).to(tl.int64)
    out += batch * out_b + y * out_row + x
    for channel in range(channels):
        pixels = tl.load(chosen + channel * channel_stride, mask=inside, other=0).to(tl.float32)
        # The constants of a channel are rounded to fp32 once.
        scale = scale_of(std, channel)
        shift = 0.0 * scale if mean is None else -tl.load(mean + channel).to(tl.float64) * scale
        factor = scale * (1 / 255) if frame.dtype.element_ty == tl.uint8 else scale
        tl.store(out, pixels * factor.to(tl.float32) + shift.to(tl.float32), mask=inside)
        out += out_channel


@triton.jit
def backward_kernel(
    grad, swap, std, d_frame, d_other,
    channels, pieces_in_image, pieces_across,
    grad_b, grad_channel, grad_row, grad_column, swap_b, swap_patch, d_b, d_channel, d_row,
    PATCH_SIZE: tl.constexpr, PIECES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    batch, y, x, inside, swapped = pieces_of(
        swap, swap_b, swap_patch, pieces_in_image, pieces_across, PATCH_SIZE, PIECES, COLUMNS
    )
    grad += batch * grad_b + y * grad_row + x * grad_column
    d_frame += batch * d_b + y * d_row + x
    d_other += batch * d_b + y * d_row + x
    taken, left = tl.where(swapped, d_other, d_frame), tl.where(swapped, d_frame, d_other)
    for channel in range(channels):
        g = tl.load(grad, mask=inside, other=0).to(tl.float32)
        tl.store(taken, g * scale_of(std, channel).to(tl.float32), mask=inside)
        tl.store(left, tl.zeros([PIECES, COLUMNS], tl.float32), mask=inside)
        grad += grad_channel
        taken += d_channel
        left += d_channel


def _columns(patch_size: int, source: Tensor, target: Tensor) -> int:
    """The pixels of a piece."""
    return math.gcd(patch_size, 16 // max(source.itemsize, target.itemsize))


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
    batch, channels, height, width = frame.shape
    columns = _columns(patch_size, frame, out)
    pieces = height * width // columns
    launch(
        forward_kernel,
        (batch * triton.cdiv(pieces, PIECES),),
        frame,
        other,
        swap,
        _contiguous(mean),
        _contiguous(std),
        out,
        channels,
        pieces,
        width // columns,
        *frame.stride(),
        *other.stride(),
        *swap.stride(),
        *out.stride()[:3],
        PATCH_SIZE=patch_size,
        PIECES=PIECES,
        COLUMNS=columns,
        num_warps=WARPS,
    )
    return out


def backward(
    grad: Tensor, swap: Tensor, patch_size: int, std: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(d_frame, d_other), contiguous, in ``dtype``."""
    d_frame, d_other = (grad.new_empty(grad.shape, dtype=dtype) for _ in range(2))
    if grad.numel() == 0:
        return d_frame, d_other
    batch, channels, height, width = grad.shape
    columns = _columns(patch_size, grad, d_frame)
    pieces = height * width // columns
    launch(
        backward_kernel,
        (batch * triton.cdiv(pieces, PIECES),),
        grad,
        swap,
        _contiguous(std),
        d_frame,
        d_other,
        channels,
        pieces,
        width // columns,
        *grad.stride(),
        *swap.stride(),
        *d_frame.stride()[:3],
        PATCH_SIZE=patch_size,
        PIECES=PIECES,
        COLUMNS=columns,
        num_warps=WARPS,
    )
    return d_frame, d_other
