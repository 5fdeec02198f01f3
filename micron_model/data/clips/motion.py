"""How much moves between two frames."""

from __future__ import annotations

from torch import Tensor

from micron_kernels import frame_difference, topk_mask


def pair_motion(frames: Tensor, later: Tensor, patch_size: int) -> Tensor:
    """Motion (B,) of pairs of uint8 frames (B, 3, H, W), in grey levels of 255.

    The mean difference over the quarter of the patches that differ most: a micro-expression moves few patches.
    """
    difference = frame_difference(later, frames, patch_size)
    _, most = topk_mask(difference, 0.25)
    return 255 * difference.gather(1, most).mean(1)
