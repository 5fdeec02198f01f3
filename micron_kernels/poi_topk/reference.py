"""Patch-of-Interest top-k in plain PyTorch: the specification.

out_i = token_i (· score_i if weighted)   for the k highest scores; ties to the lower position, NaN last
d token_i = d out_i (· score_i)           d score_i = token_i · d out_i, if weighted

The derivative in a direction (token', score') is token'_i (· score_i) + token_i score'_i for the same k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._implementation import accumulate_dtype


def _topk_indices(scores: Tensor, k: int) -> Tensor:
    """(B, k), ascending. Two stable sorts: by score, then NaN behind all numbers, −inf included."""
    is_nan = scores.isnan()
    by_score = scores.masked_fill(is_nan, -torch.inf).argsort(dim=1, descending=True, stable=True)
    nan_last = is_nan.gather(1, by_score).to(torch.uint8).argsort(dim=1, stable=True)
    return by_score.gather(1, nan_last)[:, :k].sort(dim=1).values


def topk_mask(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(mask (B, N), indices (B, k))."""
    indices = _topk_indices(scores, k)
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    return mask.scatter_(1, indices, True), indices


def _gather(tokens: Tensor, indices: Tensor) -> Tensor:
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[2]))


def _scatter(kept: Tensor, indices: Tensor, length: int) -> Tensor:
    batch, _, width = kept.shape
    return kept.new_zeros((batch, length, width)).scatter(1, indices[..., None].expand_as(kept), kept)


def select_tokens(tokens: Tensor, scores: Tensor, k: int, weighted: bool) -> tuple[Tensor, Tensor]:
    """(kept tokens (B, k, D), indices (B, k))."""
    indices = _topk_indices(scores, k)
    kept = _gather(tokens, indices)
    if weighted:
        dtype = accumulate_dtype(tokens.dtype)
        kept = (kept.to(dtype) * scores.gather(1, indices)[..., None].to(dtype)).to(tokens.dtype)
    return kept, indices


def mask_tokens(tokens: Tensor, scores: Tensor, k: int, weighted: bool) -> tuple[Tensor, Tensor]:
    """(tokens (B, N, D) with zeros where they are not kept, indices (B, k))."""
    kept, indices = select_tokens(tokens, scores, k, weighted)
    return _scatter(kept, indices, tokens.shape[1]), indices


def select_tokens_tangent(
    tokens: Tensor,
    scores: Tensor,
    indices: Tensor,
    weighted: bool,
    t_tokens: Tensor | None,
    t_scores: Tensor | None,
) -> Tensor:
    """The change of the kept tokens (B, k, D) for that of tokens and scores; it can be differentiated itself."""
    t_kept = _gather(torch.zeros_like(tokens) if t_tokens is None else t_tokens, indices)
    if not weighted:
        return t_kept
    dtype = accumulate_dtype(tokens.dtype)
    change = t_kept.to(dtype) * scores.gather(1, indices)[..., None].to(dtype)
    if t_scores is not None:
        change = change + _gather(tokens, indices).to(dtype) * t_scores.gather(1, indices)[..., None].to(
            dtype
        )
    return change.to(tokens.dtype)


def mask_tokens_tangent(
    tokens: Tensor,
    scores: Tensor,
    indices: Tensor,
    weighted: bool,
    t_tokens: Tensor | None,
    t_scores: Tensor | None,
) -> Tensor:
    """The change of the result (B, N, D) for that of tokens and scores; it can be differentiated itself."""
    kept = select_tokens_tangent(tokens, scores, indices, weighted, t_tokens, t_scores)
    return _scatter(kept, indices, tokens.shape[1])


def select_tokens_backward(
    grad: Tensor, tokens: Tensor, scores: Tensor, indices: Tensor, weighted: bool
) -> tuple[Tensor, Tensor]:
    """(d_tokens (B, N, D), d_scores (B, N), empty unless weighted) from grad (B, k, D)."""
    length = tokens.shape[1]
    if not weighted:
        return _scatter(grad, indices, length), scores.new_empty((0,))
    dtype = accumulate_dtype(tokens.dtype)
    grad = grad.to(dtype)
    d_kept = grad * scores.gather(1, indices)[..., None].to(dtype)
    d_score = (_gather(tokens, indices).to(dtype) * grad).sum(2)
    d_scores = d_score.new_zeros(scores.shape).scatter_(1, indices, d_score)
    return _scatter(d_kept.to(tokens.dtype), indices, length), d_scores.to(scores.dtype)


def mask_tokens_backward(
    grad: Tensor, tokens: Tensor, scores: Tensor, indices: Tensor, weighted: bool
) -> tuple[Tensor, Tensor]:
    """(d_tokens (B, N, D), d_scores (B, N), empty unless weighted) from grad (B, N, D)."""
    return select_tokens_backward(_gather(grad, indices), tokens, scores, indices, weighted)
