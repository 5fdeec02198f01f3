"""Patch-of-Interest top-k in C++: ``csrc/poi_topk``. Same functions and signatures as ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from .._extension import operators, with_contiguous_rows
from .._extension import why_not as why_not

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def topk_mask(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(mask (B, N), indices (B, k))."""
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    indices = torch.empty((scores.shape[0], k), dtype=torch.int64, device=scores.device)
    operators().topk(scores, k, mask, indices)
    return mask, indices


def _keep(tokens: Tensor, scores: Tensor, k: int, weighted: bool, in_place: bool) -> tuple[Tensor, Tensor]:
    batch, length, width = tokens.shape
    indices = torch.empty((batch, k), dtype=torch.int64, device=scores.device)
    operators().topk(scores, k, None, indices)
    rows = length if in_place else k
    out = torch.empty((batch, rows, width), dtype=tokens.dtype, device=tokens.device)
    factors = scores if weighted else None
    operators().gather_tokens(with_contiguous_rows(tokens), factors, indices, in_place, out)
    return out, indices


def select_tokens(tokens: Tensor, scores: Tensor, k: int, weighted: bool) -> tuple[Tensor, Tensor]:
    """(kept tokens (B, k, D), indices (B, k))."""
    return _keep(tokens, scores, k, weighted, in_place=False)


def mask_tokens(tokens: Tensor, scores: Tensor, k: int, weighted: bool) -> tuple[Tensor, Tensor]:
    """(tokens (B, N, D) with zeros where they are not kept, indices (B, k))."""
    return _keep(tokens, scores, k, weighted, in_place=True)


def _backward(
    grad: Tensor, tokens: Tensor, scores: Tensor, indices: Tensor, weighted: bool, in_place: bool
) -> tuple[Tensor, Tensor]:
    d_tokens = torch.empty(tokens.shape, dtype=tokens.dtype, device=tokens.device)
    d_scores = None
    if weighted:
        d_scores = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
    operators().gather_tokens_backward(
        with_contiguous_rows(grad),
        with_contiguous_rows(tokens) if weighted else None,
        scores if weighted else None,
        indices.contiguous(),
        in_place,
        d_tokens,
        d_scores,
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
