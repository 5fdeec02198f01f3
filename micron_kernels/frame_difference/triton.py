"""Frame difference in Triton. Same functions and signatures as ``reference``, where the formulas stand.

Images are seen as planes of rows: C planes and patches of P columns, or, in channels-last memory, one plane and
patches of P·C columns, in which the channels alternate. The forward pass takes narrow patches in groups, side by side,
whose rows fill the 16 bytes that a thread loads at a time. A program is one warp with a run of groups, numbered row by
row through all images. It goes through the rows of their patches, [GROUPS, COLUMNS] pixels at a time, of several rows
and frames at once: as tensors of their own, since what lanes Triton gives to a third dimension differs by version.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._implementation import interpreted
from .._triton import launch
from .memory_format import in_channels_last, is_channels_last

#: Threads of a program of the forward pass: a warp. What the interpreter takes goes by programs, not by their size.
THREADS = 256 if interpreted() else 32
#: Bytes that a thread of the forward pass loads at a time; the most frames that share one read of their reference; and
#: the loads of frames that are under way, beside those of the reference.
VECTOR, MOST_TIMES, LOADS = 16, 2, 4
#: Pixels that a program of the backward pass holds at a time, and frames.
TILE, TILE_TIMES = 2048, 4
#: Blocks of rows that are added up before their sum is added to the others': the error of a sum grows with the terms
#: that follow each other, and a patch may have thousands of rows.
SUMMED_BLOCKS = tl.constexpr(32)


@triton.jit
def take_index(program, count):
    """(index, what remains of ``program``) where the index runs fastest, below ``count``."""
    return program % count, program // count


@triton.jit
def pixels_of(patches, rows, columns, patches_in_image, patches_across, PATCH_SIZE: tl.constexpr):
    """y [ROWS, PATCHES, 1] and x [1, PATCHES, COLUMNS], in the image, of these rows and columns of the patches; and
    whether there is such a pixel [ROWS, PATCHES, COLUMNS]."""
    rows, columns, patches = rows[:, None, None], columns[None, None, :], patches[None, :, None]
    y = (patches // patches_across).to(tl.int64) * PATCH_SIZE + rows
    x = (patches % patches_across).to(tl.int64) * PATCH_SIZE + columns
    inside = (rows < PATCH_SIZE) & (patches < patches_in_image) & (columns < PATCH_SIZE)
    return y, x, inside


@triton.jit
def channel_factor(channel_scale, channels, images, SQUARED: tl.constexpr):
    """What |d| or d² of these channels is multiplied by."""
    scale = 1.0 if channel_scale is None else tl.load(channel_scale + channels).to(tl.float32)
    if images.dtype.element_ty == tl.uint8:
        scale = scale / 255.0
    return scale * scale if SQUARED else tl.abs(scale)


@triton.jit
def slope_of_magnitude(difference, SQUARED: tl.constexpr):
    """2d, or the sign of d: 0 where d is 0, NaN where it is NaN."""
    sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, difference))
    return 2.0 * difference if SQUARED else sign


@triton.jit
def add_each(x, y, factor):
    """x + factor · y of the tensors of two tuples."""
    sums = x[:0]
    for i in tl.static_range(len(x)):
        sums += (x[i] + y[i] * factor,)
    return sums


@triton.jit
def forward_kernel(
    frames, reference, channel_scale, out,
    groups, time, planes, groups_in_image, groups_across, pixels_in_patch,
    frames_b, frames_t, frames_plane, frames_row, frames_column,
    reference_b, reference_plane, reference_row, reference_column,
    SQUARED: tl.constexpr, CHANNELS: tl.constexpr, PATCH_ROWS: tl.constexpr, GROUP_COLUMNS: tl.constexpr,
    IN_GROUP: tl.constexpr, TIMES: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # The frames that share a reference follow each other: it is then still in the cache.
    block_of_time, program = take_index(tl.program_id(0), tl.cdiv(time, TIMES))
    block_of_groups, _ = take_index(program, tl.cdiv(groups, GROUPS))
    first_time = block_of_time.to(tl.int64) * TIMES
    group = block_of_groups * GROUPS + tl.arange(0, GROUPS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    in_batch = group < groups
    inside = in_batch & (columns < GROUP_COLUMNS)
    group, batch = take_index(group, groups_in_image)
    batch = batch.to(tl.int64)
    y = (group // groups_across).to(tl.int64) * PATCH_ROWS
    x = (group % groups_across).to(tl.int64) * GROUP_COLUMNS + columns
    frames_at = batch * frames_b + y * frames_row + x * frames_column
    reference_at = batch * reference_b + y * reference_row + x * reference_column

    zeros = (tl.zeros([GROUPS, COLUMNS], tl.float32),) * TIMES
    totals = zeros
    for first_block in range(0, PATCH_ROWS, SUMMED_BLOCKS * ROWS):
        pieces = zeros
        for first_row in range(first_block, min(first_block + SUMMED_BLOCKS * ROWS, PATCH_ROWS), ROWS):
            for plane in range(planes):
                sums = zeros
                for i in tl.static_range(ROWS):
                    c, row = tl.cast(plane, tl.int64), tl.cast(first_row + i, tl.int64)
                    r_row = reference + (c * reference_plane + row * reference_row)
                    r = tl.load(r_row + reference_at, mask=inside, other=0).to(tl.float32)
                    magnitudes = zeros[:0]
                    for t in tl.static_range(TIMES):
                        seen = inside & (first_time + t < time)
                        x_row = frames + ((first_time + t) * frames_t + c * frames_plane + row * frames_row)
                        difference = tl.load(x_row + frames_at, mask=seen, other=0).to(tl.float32) - r
                        magnitude = difference * difference if SQUARED else tl.abs(difference)
                        magnitudes += (magnitude,)
                    sums = add_each(sums, magnitudes, 1.0)
                channel = plane if CHANNELS == 1 else columns % CHANNELS
                pieces = add_each(pieces, sums, channel_factor(channel_scale, channel, frames, SQUARED))
        totals = add_each(totals, pieces, 1.0)

    patches = group * IN_GROUP + tl.arange(0, IN_GROUP)[None, :]
    for t in tl.static_range(TIMES):
        mean = tl.sum(tl.reshape(totals[t], [GROUPS, IN_GROUP, COLUMNS // IN_GROUP]), 2) / pixels_in_patch
        to = out + (batch * time + first_time + t) * (groups_in_image * IN_GROUP) + patches
        tl.store(to, mean, mask=in_batch & (first_time + t < time))


@triton.jit
def backward_kernel(
    grad, frames, reference, channel_scale, d_frames, d_reference,
    time, channels, patches_in_image, patches_across, pixels_in_patch,
    grad_b, grad_t, grad_patch,
    frames_b, frames_t, frames_channel, frames_row, frames_column,
    reference_b, reference_channel, reference_row, reference_column,
    d_t, d_channel, d_row,
    SQUARED: tl.constexpr, PATCH_SIZE: tl.constexpr,
    TIMES: tl.constexpr, ROWS: tl.constexpr, PATCHES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    block_of_rows, program = take_index(tl.program_id(0), tl.cdiv(PATCH_SIZE, ROWS))
    block_of_patches, batch = take_index(program, tl.cdiv(patches_in_image, PATCHES))
    batch = batch.to(tl.int64)
    patches = block_of_patches * PATCHES + tl.arange(0, PATCHES)
    rows, columns = block_of_rows * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    y, x, inside = pixels_of(patches, rows, columns, patches_in_image, patches_across, PATCH_SIZE)
    grad += batch * grad_b + patches.to(tl.int64)[None, :] * grad_patch
    frames += batch * frames_b + (y * frames_row + x * frames_column)[None]
    reference += batch * reference_b + y * reference_row + x * reference_column
    d_frames += batch * time * d_t + (y * d_row + x)[None]
    d_reference += batch * d_t + y * d_row + x

    for channel in range(channels):
        factor = channel_factor(channel_scale, channel, frames, SQUARED) / pixels_in_patch
        r = tl.load(reference, mask=inside, other=0).to(tl.float32)[None]
        total = tl.zeros([ROWS, PATCHES, COLUMNS], tl.float32)
        for first_time in range(0, time, TIMES):
            times = first_time + tl.arange(0, TIMES).to(tl.int64)
            in_time = times < time
            inside_grad = in_time[:, None] & (patches < patches_in_image)[None, :]
            inside_frames = in_time[:, None, None, None] & inside[None]
            g = tl.load(grad + times[:, None] * grad_t, mask=inside_grad, other=0).to(tl.float32) * factor
            times = times[:, None, None, None]
            difference = tl.load(frames + times * frames_t, mask=inside_frames, other=0).to(tl.float32) - r
            d_x = g[:, None, :, None] * slope_of_magnitude(difference, SQUARED)
            tl.store(d_frames + times * d_t, d_x, mask=inside_frames)
            total += tl.sum(tl.where(inside_frames, d_x, 0.0), 0)
        tl.store(d_reference, -total, mask=inside)
        frames += frames_channel
        reference += reference_channel
        d_frames += d_channel
        d_reference += d_channel


def _with_time(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B, 1, C, H, W)."""
    return x[:, None] if x.dim() == 4 else x


def _forward_tile(time: int, rows: int, columns: int, itemsize: int, across: int) -> dict[str, int]:
    """What a program takes at a time; ``across`` patches, rows × columns, are side by side."""
    width = triton.next_power_of_2(columns)
    in_group = math.gcd(across, max(1, VECTOR // (width * itemsize))) if width == columns else 1
    columns, width = columns * in_group, width * in_group
    # Rows of an odd number of bytes are loaded byte by byte: four for each thread.
    bytes_of_row = THREADS * max(4, math.gcd(columns * itemsize, VECTOR))
    groups = bytes_of_row // (width * itemsize)
    times = min(triton.next_power_of_2(time), MOST_TIMES)
    return {
        "GROUP_COLUMNS": columns,
        "IN_GROUP": in_group,
        "TIMES": times,
        "ROWS": math.gcd(rows, max(1, LOADS // times)) if groups else 1,
        "GROUPS": max(1, groups),
        "COLUMNS": width,
    }


def _backward_tile(time: int, patch_size: int, patches: int) -> dict[str, int]:
    """The block of pixels that a program holds; its sides are powers of two."""
    times = min(triton.next_power_of_2(max(time, 1)), TILE_TIMES)
    tile = {"TIMES": times, "COLUMNS": triton.next_power_of_2(patch_size)}
    for name, size in (("ROWS", patch_size), ("PATCHES", patches)):
        tile[name] = min(triton.next_power_of_2(size), max(1, TILE // math.prod(tile.values())))
    return tile


def forward(
    frames: Tensor, reference: Tensor, patch_size: int, norm: str, channel_scale: Tensor | None
) -> Tensor:
    """(B, N) or (B, T, N)."""
    patches_across = frames.shape[-1] // patch_size
    patches = frames.shape[-2] // patch_size * patches_across
    out = frames.new_empty((*frames.shape[:-3], patches), dtype=torch.float32)
    if out.numel() == 0:
        return out
    if not frames.shape[-3]:
        return out.fill_(torch.nan)  # of no channels there is no mean
    images = _with_time(frames)
    batch, time, channels = images.shape[:3]
    strides = *images.stride(), *reference.stride()
    planes, interleaved = channels, 1
    if is_channels_last(frames):
        reference = in_channels_last(reference)
        strides = *images.stride()[:4], 1, *reference.stride()[:3], 1
        planes, interleaved = 1, channels
    columns = patch_size * interleaved
    tile = _forward_tile(time, patch_size, columns, frames.itemsize, patches_across)
    groups = batch * patches // tile["IN_GROUP"]
    launch(
        forward_kernel,
        (triton.cdiv(time, tile["TIMES"]) * triton.cdiv(groups, tile["GROUPS"]),),
        frames,
        reference,
        None if channel_scale is None else channel_scale.contiguous(),
        out,
        groups,
        time,
        planes,
        patches // tile["IN_GROUP"],
        patches_across // tile["IN_GROUP"],
        float(channels * patch_size**2),
        *strides,
        SQUARED=norm == "l2",
        CHANNELS=interleaved,
        PATCH_ROWS=patch_size,
        **tile,
        num_warps=1,
    )
    return out


def backward(
    grad: Tensor,
    frames: Tensor,
    reference: Tensor,
    patch_size: int,
    norm: str,
    channel_scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(d_frames, d_reference), of the shapes and dtypes of frames and reference."""
    d_frames, d_reference = frames.new_empty(frames.shape), reference.new_empty(reference.shape)
    if d_reference.numel() == 0:
        return d_frames, d_reference
    images = _with_time(frames)
    batch, time, channels, height, width = images.shape
    patches_across = width // patch_size
    patches = height // patch_size * patches_across
    tile = _backward_tile(time, patch_size, patches)
    blocks_of_rows = triton.cdiv(patch_size, tile["ROWS"])
    launch(
        backward_kernel,
        (blocks_of_rows * triton.cdiv(patches, tile["PATCHES"]) * batch,),
        grad,
        frames,
        reference,
        None if channel_scale is None else channel_scale.contiguous(),
        d_frames,
        d_reference,
        time,
        channels,
        patches,
        patches_across,
        float(channels * patch_size**2),
        *(grad if frames.dim() == 5 else grad[:, None]).stride(),
        *images.stride(),
        *reference.stride(),
        *d_reference.stride()[:3],
        SQUARED=norm == "l2",
        PATCH_SIZE=patch_size,
        **tile,
        num_warps=8,
    )
    return d_frames, d_reference
