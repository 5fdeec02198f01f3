"""What is done with a batch once it is on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from micron_kernels import frame_difference, topk_mask


def pair_motion(frames: Tensor, later: Tensor, patch_size: int) -> Tensor:
    """Motion (B,) of pairs of uint8 frames (B, 3, H, W), in grey levels of 255.

    The mean difference over the quarter of the patches that differ most: a micro-expression moves few patches.
    """
    difference = frame_difference(later, frames, patch_size)
    _, most = topk_mask(difference, 0.25)
    return 255 * difference.gather(1, most).mean(1)


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
