"""Patch-of-Interest top-k in C++: ``csrc/poi_topk``. Same functions and signatures as ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from .._extension import operators
from .._extension import why_not as why_not

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def topk_mask(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(mask (B, N), indices (B, k))."""
    return operators.topk_mask(scores, k)


def select_tokens(tokens: Tensor, scores: Tensor, k: int, weighted: bool) -> tuple[Tensor, Tensor]:
    """(kept tokens (B, k, D), indices (B, k))."""
    return operators.keep_tokens(tokens, scores, k, weighted, False)


def mask_tokens(tokens: Tensor, scores: Tensor, k: int, weighted: bool) -> tuple[Tensor, Tensor]:
    """(tokens (B, N, D) with zeros where they are not kept, indices (B, k))."""
    return operators.keep_tokens(tokens, scores, k, weighted, True)


def _backward(
    grad: Tensor, tokens: Tensor, scores: Tensor, indices: Tensor, weighted: bool, in_place: bool
) -> tuple[Tensor, Tensor]:
    d_tokens, d_scores = operators.keep_tokens_backward(
        grad, tokens, scores, indices.contiguous(), weighted, in_place
    )
    return d_tokens, scores.new_empty((0,)) if d_scores is None else d_scores.to(scores.dtype)


def select_tokens_backward(
    grad: Tensor, tokens: Tensor, scores: Tensor, indices: Tensor, weighted: bool
) -> tuple[Tensor, Tensor]:
    """(d_tokens (B, N, D), d_scores (B, N), empty unless weighted) from grad (B, k, D)."""
    return _backward(grad, tokens, scores, indices, weighted, in_place=False)


def mask_tokens_backward(
    grad: Tensor, tokens: Tensor, scores: Tensor, indices: Tensor, weighted: bool
) -> tuple[Tensor, Tensor]:
    """(d_tokens (B, N, D), d_scores (B, N), empty unless weighted) from grad (B, N, D)."""
    return _backward(grad, tokens, scores, indices, weighted, in_place=True)
