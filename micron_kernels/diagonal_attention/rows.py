"""What the implementations prepare alike: weights by head, and which rows are one position."""

from __future__ import annotations

import torch
from torch import Tensor


def weight_per_head(row_weight: Tensor | None, heads: int) -> Tensor | None:
    """row_weight as fp32 (B, H, N)."""
    if row_weight is None:
        return None
    weight = row_weight.to(torch.float32)
    return weight[:, None].expand(-1, heads, -1) if weight.dim() == 2 else weight


def gradient_of_weight(d_weight: Tensor | None, row_weight: Tensor | None) -> Tensor | None:
    """fp32 (B, H, N) as row_weight has it: summed over heads that share one, in its dtype."""
    if d_weight is None or row_weight is None:
        return None
    return (d_weight.sum(1) if row_weight.dim() == 2 else d_weight).to(row_weight.dtype)


def slots_of_positions(rows: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """(first (B, N + 1), order (B, K)): the slots of position n are order[first[n]:first[n + 1]], ascending."""
    ascending, order = rows.sort(dim=1, stable=True)
    positions = torch.arange(length + 1, device=rows.device).expand(len(rows), -1).contiguous()
    return torch.searchsorted(ascending, positions), order
