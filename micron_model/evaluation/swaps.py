"""Does micro-attention know which patches are foreign? A measure that needs no labels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from micron_kernels import blockwise_mask, swap_patches, topk_mask

from ..models.micron_bert import MicronBERT


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    NaN where there is no positive or no negative.
    """
    from scipy.stats import rankdata  # takes a second to import, which every command would wait for

    positive = np.asarray(positive, bool).ravel()
    n_positive = int(positive.sum())
    n_negative = positive.size - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    ranks = rankdata(np.asarray(scores).ravel())
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


@torch.no_grad()
def swap_auroc(
    model: MicronBERT,
    frames: Tensor,
    later: Tensor,
    moved: Tensor,
    *,
    masks: int = 12,
    share: float = 0.25,
    seed: int = 0,
) -> dict[str, float]:
    """How well the diagonal of micro-attention tells swapped patches from others, within a position.

    How distinctive a patch is varies far more from place to place than a swap changes it, so the diagonal is
    compared with itself: the same pair under several swap masks, log diagonal minus its mean over the masks. A
    patch that was taken from the later frame matches the later frame better.

    Args:
        model: a model; its Patch of Interest plays no part.
        frames, later: pairs (B, 3, H, W), uint8.
        moved: how far each patch moved between the two (B, N), in any unit.
        masks: swap masks a pair.
        share: of the patches of a pair, those that moved most, for the second value.
        seed: of the masks.

    Returns:
        ``auroc_all``, over all patches, and ``auroc_moved``, over the share that moved most; 0.5 is chance.
    """
    was_training = model.training
    model.eval()
    size = model.config.patch_size
    grid = (frames.shape[2] // size, frames.shape[3] // size)
    generator = torch.Generator().manual_seed(seed)
    later_patches = model.encode(later).patches
    swaps, logs = [], []
    for _ in range(masks):
        swap = blockwise_mask(frames.shape[0], grid, 0.5, generator).to(frames.device)
        swapped = swap_patches(frames, later, swap, size, mean=model.mean, std=model.std)
        _, diagonal = model.forward_micro_attention(model.encode(swapped).patches, later_patches)
        swaps.append(swap)
        logs.append(diagonal.float().clamp(min=torch.finfo(torch.float32).tiny).log())
    model.train(was_training)
    log = torch.stack(logs)  # [masks, B, N]
    relative = (log - log.mean(0)).cpu().numpy()
    swapped_patches = torch.stack(swaps).cpu().numpy()
    most = topk_mask(moved.float(), share)[0].cpu().numpy()
    return {
        "auroc_all": auroc(relative, swapped_patches),
        "auroc_moved": auroc(relative[:, most], swapped_patches[:, most]),
    }
