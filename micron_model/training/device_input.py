"""What is done with a batch once it is on the device."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from micron_kernels import topk_mask

from ..data.clips.motion import pair_motion


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bf16 where ``precision`` is "bf16", or "auto" on a GPU that has it; nothing otherwise."""
    bf16 = precision == "bf16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()


def choose_pairs(
    pairs: dict[str, Tensor], size: int, limits: tuple[float, float], patch_size: int
) -> dict[str, Tensor]:
    """The first ``size`` pairs whose motion lies within ``limits``, with what makes up for a lack of them.

    Nothing waits for the device: a batch has ``size`` pairs whatever was rejected.

    Args:
        pairs: ``frames`` and ``later``, uint8 (at least ``size``, 3, H, W).
        size: pairs wanted.
        limits: least and most motion, see :func:`pair_motion`.
        patch_size: side of a patch in pixels.

    Returns:
        ``frames`` and ``later`` (size, 3, H, W); ``weight`` (size,), fp32, 0 for a pair that had to stand in
        although it was rejected, and of mean 1 unless all were.
    """
    motion = pair_motion(pairs["frames"], pairs["later"], patch_size)
    accepted = ((motion >= limits[0]) & (motion <= limits[1])).float()
    _, chosen = topk_mask(accepted[None], size)  # of equals the first: accepted pairs, then rejected ones
    weight = accepted[chosen[0]]
    taken = {name: x[chosen[0]] for name, x in pairs.items()}
    return taken | {"weight": weight / weight.mean().clamp(min=torch.finfo(torch.float32).tiny)}
