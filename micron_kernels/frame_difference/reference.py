"""Frame difference in plain PyTorch: the specification.

With d = c · (x − r) and M = C·P·P values in a patch:

    l1: result = Σ|d| / M      dx = g · c · sign(d) / M
    l2: result = Σd² / M       dx = g · c · 2d / M           and dr = −Σ_t dx_t in both

The derivative in a direction (x', r') is Σ c · sign(d) · (x' − r') / M or Σ c² · 2 (x − r) · (x' − r') / M.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._implementation import accumulate_dtype


def _scaled_difference(frames: Tensor, reference: Tensor, channel_scale: Tensor | None) -> Tensor:
    """d (B, T, C, H, W) in the dtype of accumulation; T = 1 for frames (B, C, H, W)."""
    dtype = accumulate_dtype(frames.dtype)
    if frames.dim() == 4:
        frames = frames[:, None]
    difference = frames.to(dtype) - reference[:, None].to(dtype)
    if frames.dtype == torch.uint8:
        difference /= 255
    if channel_scale is not None:
        difference = difference * channel_scale.to(dtype)[:, None, None]
    return difference


def _means(x: Tensor, patch_size: int) -> Tensor:
    """(B, T, N) from (B, T, C, H, W)."""
    batch, time, channels, height, width = x.shape
    grid = (height // patch_size, width // patch_size)
    patches = x.reshape(batch, time, channels, grid[0], patch_size, grid[1], patch_size)
    return patches.mean((2, 4, 6)).reshape(batch, time, grid[0] * grid[1])


def forward(
    frames: Tensor, reference: Tensor, patch_size: int, norm: str, channel_scale: Tensor | None
) -> Tensor:
    """(B, N) or (B, T, N)."""
    difference = _scaled_difference(frames, reference, channel_scale)
    difference = difference.abs_() if norm == "l1" else difference.square_()
    means = _means(difference, patch_size)
    return means if frames.dim() == 5 else means[:, 0].clone()


def forward_tangent(
    frames: Tensor,
    reference: Tensor,
    patch_size: int,
    norm: str,
    channel_scale: Tensor | None,
    t_frames: Tensor | None,
    t_reference: Tensor | None,
) -> Tensor:
    """The change of the result for that of frames and reference; it can be differentiated itself."""
    slope = _scaled_difference(frames, reference, channel_scale)
    slope = slope.sign() if norm == "l1" else slope * 2
    t_frames = torch.zeros_like(frames) if t_frames is None else t_frames
    t_reference = torch.zeros_like(reference) if t_reference is None else t_reference
    means = _means(slope * _scaled_difference(t_frames, t_reference, channel_scale), patch_size)
    return means if frames.dim() == 5 else means[:, 0]


def backward(
    grad: Tensor,
    frames: Tensor,
    reference: Tensor,
    patch_size: int,
    norm: str,
    channel_scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(d_frames, d_reference), of the shapes and dtypes of frames and reference."""
    difference = _scaled_difference(frames, reference, channel_scale)
    batch, time, channels, height, width = difference.shape
    slope = difference.sign_() if norm == "l1" else difference.mul_(2)
    if channel_scale is not None:
        slope *= channel_scale.to(slope.dtype)[:, None, None]
    grid = grad.to(slope.dtype).reshape(batch, time, 1, height // patch_size, width // patch_size)
    per_pixel = grid.repeat_interleave(patch_size, 3).repeat_interleave(patch_size, 4)
    slope *= per_pixel / (channels * patch_size**2)
    d_reference = -slope.sum(1)
    return (
        slope.reshape(frames.shape).to(frames.dtype).contiguous(),
        d_reference.to(reference.dtype).contiguous(),
    )
