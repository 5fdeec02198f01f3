"""What a user would otherwise run. The plain formulas are those of ``micron_kernels.testing``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from micron_kernels.testing import (
    eager_diagonal_attention,
    eager_frame_difference,
    eager_mask_tokens,
    eager_select_tokens,
    eager_swap_patches,
)


def full_attention(query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
    """The diagonal of the full softmax matrix, times the values."""
    return eager_diagonal_attention(query, key, value, **options)[0]


def topk_scatter(scores: Tensor, k: int) -> Tensor:
    """The mask of the k highest scores by ``torch.topk`` and scatter."""
    return torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, scores.topk(k, dim=1).indices, True)


def topk_gather(tokens: Tensor, scores: Tensor, k: int) -> Tensor:
    """The k tokens of the highest scores, in the order of their scores."""
    indices = scores.topk(k, dim=1).indices
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[2]))


def compiled(function: Callable) -> Callable:
    """``torch.compile`` of a function, afresh: after eight shapes it would quietly fall back to eager."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)


__all__ = [
    "compiled",
    "eager_frame_difference",
    "eager_mask_tokens",
    "eager_select_tokens",
    "eager_swap_patches",
    "full_attention",
    "topk_gather",
    "topk_scatter",
]
