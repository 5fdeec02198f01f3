"""Fused operators for finding tiny differences between two frames.

Importing this package needs torch and nothing else.
"""

from .diagonal_attention.api import diagonal_attention
from .frame_difference.api import frame_difference
from .poi_topk.api import mask_tokens, select_tokens, topk_mask
from .swap_patches.api import blockwise_mask, swap_patches

__version__ = "0.1.0"

__all__ = [
    "blockwise_mask",
    "diagonal_attention",
    "frame_difference",
    "mask_tokens",
    "select_tokens",
    "swap_patches",
    "topk_mask",
]
