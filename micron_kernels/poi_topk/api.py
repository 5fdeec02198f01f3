"""Patch-of-Interest top-k: the public functions."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor

from .. import _check
from .._implementation import Impl
from . import ops


def count(k: int | float, length: int) -> int:
    """The number of tokens that ``k`` asks for out of ``length``: k itself, or a ratio of it, rounded up."""
    if isinstance(k, numbers.Real) and not isinstance(k, numbers.Integral):
        if not 0 < k <= 1:
            raise ValueError(
                f"k={k} is a {type(k).__name__}, hence a ratio, which must lie in (0, 1]; for a count pass an int"
            )
        # 0.07 is a little more in binary, and 5/7 may be: what is above an integer by rounding is that integer.
        dtype = (
            torch.float64
            if isinstance(k, float)
            else getattr(torch, str(getattr(k, "dtype", "")), torch.float64)
        )
        return math.ceil(float(k) * length * (1 - 2 * torch.finfo(dtype).eps))
    k = _check.integer("k", k, 0)
    if k > length:
        raise ValueError(f"k={k} is more than the N={length} tokens of a row; it must lie in [0, N]")
    return k


def _check_scores(scores: Tensor) -> None:
    _check.tensor("scores", scores, dims=(2,), layout="(B, N)", dtypes=_check.FLOATING)


def _check_tokens(tokens: Tensor, scores: Tensor) -> None:
    _check_scores(scores)
    _check.tensor("tokens", tokens, dims=(3,), layout="(B, N, D)", dtypes=_check.FLOATING)
    _check.shape("scores", scores, tokens.shape[:2], "one score a token of tokens")
    _check.same_device("scores", scores, "tokens", tokens)


def topk_mask(scores: Tensor, k: int | float, *, impl: Impl | None = None) -> tuple[Tensor, Tensor]:
    """Mark the k highest scores of each row.

    Of equal scores the lower position wins, and NaN ranks below −inf: the result is the same on every device.

    Args:
        scores: (B, N), fp16, bf16, fp32 or fp64.
        k: an int in [0, N], or a float in (0, 1]: that share of N, rounded up. What is above an integer by the
            rounding of k alone is that integer: 0.07 of 100 tokens are 7, and c/N of N are c.
        impl: ``"reference"``, ``"native"``, ``"triton"``, or None for the fastest that is available.

    Returns:
        mask (B, N) bool, True at the k highest; indices (B, k) int64, their positions, ascending.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range.
        RuntimeError: ``impl`` names an implementation that is not available.
    """
    _check_scores(scores)
    scores = scores.detach() if scores.requires_grad else scores
    return ops.topk_mask(scores, count(k, scores.shape[1]), impl)


def mask_tokens(
    tokens: Tensor, scores: Tensor, k: int | float, *, weighted: bool = False, impl: Impl | None = None
) -> Tensor:
    """Zero all tokens but those with the k highest scores of their row.

    Args:
        tokens: (B, N, D), fp16, bf16, fp32 or fp64.
        scores: (B, N), any of these dtypes. Ties and NaN rank as in :func:`topk_mask`.
        k: an int in [0, N], or a float in (0, 1]: that share of N, rounded up.
        weighted: multiply each kept token by its score. Then scores get the gradient
            d score_i = token_i · d out_i for kept i, 0 elsewhere; otherwise they get none.
        impl: ``"reference"``, ``"native"``, ``"triton"``, or None for the fastest that is available.

    Returns:
        (B, N, D), the dtype of ``tokens``, contiguous.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range.
        RuntimeError: ``impl`` names an implementation that is not available.
    """
    _check_tokens(tokens, scores)
    return ops.mask_tokens(tokens, scores, count(k, scores.shape[1]), weighted, impl)[0]


def select_tokens(
    tokens: Tensor, scores: Tensor, k: int | float, *, weighted: bool = False, impl: Impl | None = None
) -> tuple[Tensor, Tensor]:
    """Gather the tokens with the k highest scores of their row, in the order of their positions.

    Args and errors as in :func:`mask_tokens`.

    Returns:
        tokens (B, k, D) in the dtype of ``tokens``, contiguous; indices (B, k) int64, ascending.
    """
    _check_tokens(tokens, scores)
    return ops.select_tokens(tokens, scores, count(k, scores.shape[1]), weighted, impl)
