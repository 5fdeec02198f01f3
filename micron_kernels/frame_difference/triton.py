"""Frame difference in Triton. Same functions and signatures as ``reference``, where the formulas stand.

Images are seen as planes of rows: C planes and patches of P columns, or, in channels-last memory, one plane and
patches of P·C columns, in which the channels alternate. A program takes patches that lie side by side in one strip
of P rows, so that it reads long runs of each row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import launch

#: Pixels that a program holds at a time.
TILE = 4096
#: Frames that share one read of their reference.
MOST_TIMES = 4


@triton.jit
def take_index(program, count):
    """(index, what remains of ``program``) where the index runs fastest, below ``count``."""
    return program % count, program // count


@triton.jit
def patch_columns(
    run, patches_across, PATCH_COLUMNS: tl.constexpr, PATCHES: tl.constexpr, COLUMNS: tl.constexpr
):
    """Of a run of patches: their numbers [PATCHES], the columns of their pixels and whether these are in the image
    [PATCHES, COLUMNS], and the columns as a patch counts them [COLUMNS]."""
    patches = run * PATCHES + tl.arange(0, PATCHES)
    in_patch = tl.arange(0, COLUMNS)
    columns = patches.to(tl.int64)[:, None] * PATCH_COLUMNS + in_patch[None, :]
    inside = (patches < patches_across)[:, None] & (in_patch < PATCH_COLUMNS)[None, :]
    return patches, columns, inside, in_patch


@triton.jit
def load_pixels(pointers, inside):
    return tl.load(pointers, mask=inside, other=0).to(tl.float32)


@triton.jit
def channel_factor(channel_scale, channels, IS_UINT8: tl.constexpr, SQUARED: tl.constexpr):
    """What |d| or d² of these channels is multiplied by."""
    scale = 1.0 if channel_scale is None else tl.load(channel_scale + channels).to(tl.float32)
    if IS_UINT8:
        scale = scale / 255.0
    return scale * scale if SQUARED else tl.abs(scale)


@triton.jit
def magnitude(difference, SQUARED: tl.constexpr):
    return difference * difference if SQUARED else tl.abs(difference)


@triton.jit
def slope_of_magnitude(difference, SQUARED: tl.constexpr):
    """2d, or the sign of d: 0 where d is 0, NaN where it is NaN."""
    if SQUARED:
        slope = 2.0 * difference
    else:
        slope = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, difference))
    return slope


@triton.jit
def forward_kernel(
    frames, reference, channel_scale, out,
    time, planes, strips, patches_across,
    frames_b, frames_t, frames_plane, frames_row, frames_column,
    reference_b, reference_plane, reference_row, reference_column,
    SQUARED: tl.constexpr, CHANNELS: tl.constexpr, PATCH_ROWS: tl.constexpr, PATCH_COLUMNS: tl.constexpr,
    TIMES: tl.constexpr, ROWS: tl.constexpr, PATCHES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # The frames that share a reference follow each other: it is then still in the cache.
    block_of_time, program = take_index(tl.program_id(0), tl.cdiv(time, TIMES))
    run, program = take_index(program, tl.cdiv(patches_across, PATCHES))
    strip, batch = take_index(program.to(tl.int64), strips)

    times = (block_of_time * TIMES + tl.arange(0, TIMES)).to(tl.int64)
    patches, columns, in_run, in_patch = patch_columns(run, patches_across, PATCH_COLUMNS, PATCHES, COLUMNS)
    in_time = (times < time)[:, None, None, None]
    frames += batch * frames_b
    frames_columns = times[:, None, None, None] * frames_t + (columns * frames_column)[None, None]
    reference += batch * reference_b
    reference_columns = (columns * reference_column)[None, None]

    total = tl.zeros([TIMES, ROWS, PATCHES, COLUMNS], tl.float32)
    for plane in range(planes):
        channels = plane + in_patch % CHANNELS
        factor = channel_factor(channel_scale, channels, frames.dtype.element_ty == tl.uint8, SQUARED)
        for first_row in range(0, PATCH_ROWS, ROWS):
            row_in_patch = (first_row + tl.arange(0, ROWS))[None, :, None, None]
            rows = strip * PATCH_ROWS + row_in_patch
            inside = (row_in_patch < PATCH_ROWS) & in_run[None, None]
            r = load_pixels(reference + rows * reference_row + reference_columns, inside)
            x = load_pixels(frames + rows * frames_row + frames_columns, inside & in_time)
            r = tl.where(in_time, r, 0.0)
            total += magnitude(x - r, SQUARED) * factor
        frames += frames_plane
        reference += reference_plane
    mean = tl.sum(tl.sum(total, 3), 1) / (planes * PATCH_ROWS * PATCH_COLUMNS)  # [TIMES, PATCHES]

    out += ((batch * time + times[:, None]) * strips + strip) * patches_across + patches[None, :]
    tl.store(out, mean, mask=(times < time)[:, None] & (patches < patches_across)[None, :])


@triton.jit
def backward_kernel(
    grad, frames, reference, channel_scale, d_frames, d_reference,
    time, channels, strips, patches_across,
    grad_b, grad_t, grad_patch,
    frames_b, frames_t, frames_channel, frames_row, frames_column,
    reference_b, reference_channel, reference_row, reference_column, d_t, d_channel, d_row,
    SQUARED: tl.constexpr, PATCH_SIZE: tl.constexpr,
    ROWS: tl.constexpr, PATCHES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # The channels of the same pixels follow each other: in channels-last memory they share their cache lines.
    channel, program = take_index(tl.program_id(0), channels)
    block_of_rows, program = take_index(program, tl.cdiv(PATCH_SIZE, ROWS))
    run, program = take_index(program, tl.cdiv(patches_across, PATCHES))
    strip, batch = take_index(program.to(tl.int64), strips)
    channel = channel.to(tl.int64)

    patches, columns, in_run, _ = patch_columns(run, patches_across, PATCH_SIZE, PATCHES, COLUMNS)
    row_in_patch = (block_of_rows * ROWS + tl.arange(0, ROWS))[:, None, None]
    rows = strip * PATCH_SIZE + row_in_patch  # [ROWS, 1, 1]
    columns = columns[None]  # [1, PATCHES, COLUMNS]
    inside = (row_in_patch < PATCH_SIZE) & in_run[None]

    frames += batch * frames_b + channel * frames_channel
    frames_pixels = rows * frames_row + columns * frames_column
    reference += batch * reference_b + channel * reference_channel
    r = load_pixels(reference + rows * reference_row + columns * reference_column, inside)
    grad += batch * grad_b + (strip * patches_across + patches) * grad_patch
    d_frames += batch * time * d_t + channel * d_channel
    d_reference += batch * d_t + channel * d_channel
    d_pixels = rows * d_row + columns

    factor = channel_factor(channel_scale, channel, frames.dtype.element_ty == tl.uint8, SQUARED)
    factor = factor / (channels * PATCH_SIZE * PATCH_SIZE)
    total = tl.zeros([ROWS, PATCHES, COLUMNS], tl.float32)
    for _ in range(time):
        x = load_pixels(frames + frames_pixels, inside)
        g = tl.load(grad, mask=patches < patches_across, other=0).to(tl.float32)
        d_x = (g * factor)[None, :, None] * slope_of_magnitude(x - r, SQUARED)
        tl.store(d_frames + d_pixels, d_x, mask=inside)
        total += d_x
        frames += frames_t
        grad += grad_t
        d_frames += d_t
    tl.store(d_reference + d_pixels, -total, mask=inside)


def _with_time(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B, 1, C, H, W)."""
    return x[:, None] if x.dim() == 4 else x


def _is_channels_last(x: Tensor) -> bool:
    channels, _, width = x.shape[-3:]
    return channels > 1 and x.stride(-3) == 1 and (width == 1 or x.stride(-1) == channels)


def _channels_last(x: Tensor) -> Tensor:
    """``x`` in channels-last memory; a copy only where it is not."""
    return x if _is_channels_last(x) else x.movedim(-3, -1).contiguous().movedim(-1, -3)


def _tile(rows: int, columns: int, patches_across: int, size: int) -> dict[str, int]:
    """The block of ``size`` pixels, powers of two, that a program holds of patches of ``rows`` × ``columns``."""
    block_columns = triton.next_power_of_2(columns)
    patches = min(triton.next_power_of_2(patches_across), max(1, size // block_columns))
    block_rows = min(triton.next_power_of_2(rows), max(1, size // (patches * block_columns)))
    return {"ROWS": block_rows, "PATCHES": patches, "COLUMNS": block_columns}


def forward(
    frames: Tensor, reference: Tensor, patch_size: int, norm: str, channel_scale: Tensor | None
) -> Tensor:
    """(B, N) or (B, T, N)."""
    strips, patches_across = (side // patch_size for side in frames.shape[-2:])
    out = frames.new_empty((*frames.shape[:-3], strips * patches_across), dtype=torch.float32)
    if out.numel() == 0:
        return out
    images = _with_time(frames)
    batch, time, channels = images.shape[:3]
    frames_b, frames_t, frames_plane, frames_row, frames_column = images.stride()
    planes, interleaved = channels, 1
    if _is_channels_last(frames):
        reference = _channels_last(reference)
        planes, interleaved, frames_column = 1, channels, 1
    reference_b, reference_plane, reference_row, reference_column = reference.stride()
    if interleaved > 1:
        reference_column = 1
    times = min(triton.next_power_of_2(time), MOST_TIMES)
    tile = _tile(patch_size, patch_size * interleaved, patches_across, TILE // times)
    programs = triton.cdiv(time, times) * triton.cdiv(patches_across, tile["PATCHES"]) * strips * batch
    launch(
        forward_kernel,
        (programs,),
        frames,
        reference,
        None if channel_scale is None else channel_scale.contiguous(),
        out,
        time,
        planes,
        strips,
        patches_across,
        *(frames_b, frames_t, frames_plane, frames_row, frames_column),
        *(reference_b, reference_plane, reference_row, reference_column),
        SQUARED=norm == "l2",
        CHANNELS=interleaved,
        PATCH_ROWS=patch_size,
        PATCH_COLUMNS=patch_size * interleaved,
        TIMES=times,
        **tile,
        num_warps=4,
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
    strips, patches_across = height // patch_size, width // patch_size
    tile = _tile(patch_size, patch_size, patches_across, TILE)
    runs, blocks_of_rows = triton.cdiv(patches_across, tile["PATCHES"]), triton.cdiv(patch_size, tile["ROWS"])
    launch(
        backward_kernel,
        (channels * blocks_of_rows * runs * strips * batch,),
        grad,
        frames,
        reference,
        None if channel_scale is None else channel_scale.contiguous(),
        d_frames,
        d_reference,
        time,
        channels,
        strips,
        patches_across,
        *(grad if frames.dim() == 5 else grad[:, None]).stride(),
        *images.stride(),
        *reference.stride(),
        *d_reference.stride()[:3],
        SQUARED=norm == "l2",
        PATCH_SIZE=patch_size,
        **tile,
        num_warps=4,
    )
    return d_frames, d_reference
