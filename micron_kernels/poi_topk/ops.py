"""Registration of Patch-of-Interest top-k with torch.library.

``topk_mask`` has no gradient. ``mask_tokens`` and ``select_tokens`` are one opaque operator forward and one
backward each; both return the chosen indices, which the backward needs.
"""

from __future__ import annotations

import torch

from .._extension import register
from .._implementation import Chooser, TritonModule
from .._operator import Operator
from . import native, reference

_TRITON = TritonModule("poi_topk", torch.float32, torch.bfloat16, torch.float16)
IMPLEMENTATIONS = register({"reference": reference, "triton": _TRITON}, native)
_choose = Chooser("poi_topk", IMPLEMENTATIONS)


def _topk_mask(scores, k, impl):
    return _choose(impl, scores.device, (scores.dtype,)).topk_mask(scores, k)


def _topk_mask_fake(scores, k, impl):
    mask = scores.new_empty(scores.shape, dtype=torch.bool)
    return mask, scores.new_empty((scores.shape[0], k), dtype=torch.int64)


topk_mask = Operator(
    "topk_mask(Tensor scores, SymInt k, str? impl) -> (Tensor, Tensor)", _topk_mask, _topk_mask_fake
)


def _mask_tokens(tokens, scores, k, weighted, impl):
    implementation = _choose(impl, tokens.device, (tokens.dtype, scores.dtype))
    return implementation.mask_tokens(tokens, scores, k, weighted)


def _mask_tokens_fake(tokens, scores, k, weighted, impl):
    return tokens.new_empty(tokens.shape), scores.new_empty((scores.shape[0], k), dtype=torch.int64)


def _select_tokens(tokens, scores, k, weighted, impl):
    implementation = _choose(impl, tokens.device, (tokens.dtype, scores.dtype))
    return implementation.select_tokens(tokens, scores, k, weighted)


def _select_tokens_fake(tokens, scores, k, weighted, impl):
    batch, _, width = tokens.shape
    return tokens.new_empty((batch, k, width)), scores.new_empty((batch, k), dtype=torch.int64)


_FORWARD = "(Tensor tokens, Tensor scores, SymInt k, bool weighted, str? impl) -> (Tensor, Tensor)"
mask_tokens = Operator(f"mask_tokens{_FORWARD}", _mask_tokens, _mask_tokens_fake)
select_tokens = Operator(f"select_tokens{_FORWARD}", _select_tokens, _select_tokens_fake)


def _mask_tokens_backward(grad, tokens, scores, indices, weighted, impl):
    implementation = _choose(impl, tokens.device, (tokens.dtype, scores.dtype))
    return implementation.mask_tokens_backward(grad, tokens, scores, indices, weighted)


def _select_tokens_backward(grad, tokens, scores, indices, weighted, impl):
    implementation = _choose(impl, tokens.device, (tokens.dtype, scores.dtype))
    return implementation.select_tokens_backward(grad, tokens, scores, indices, weighted)


def _backward_fake(grad, tokens, scores, indices, weighted, impl):
    return tokens.new_empty(tokens.shape), scores.new_empty(scores.shape if weighted else (0,))


#: Gradients of tokens and scores (an empty tensor unless weighted) from grad (B, N, D) or (B, k, D).
_BACKWARD = (
    "_backward(Tensor grad, Tensor tokens, Tensor scores, Tensor indices, bool weighted, str? impl) "
    "-> (Tensor, Tensor)"
)
mask_tokens_backward = Operator(f"mask_tokens{_BACKWARD}", _mask_tokens_backward, _backward_fake)
select_tokens_backward = Operator(f"select_tokens{_BACKWARD}", _select_tokens_backward, _backward_fake)


def _add_derivatives(forward: Operator, backward: Operator, tangent) -> None:
    """``tangent`` of reference.py is that of ``forward``; the backward is linear in grad, tokens and scores each."""

    def gradients(saved, grads, wanted):
        tokens, scores, indices, weighted, impl = saved
        d_tokens, d_scores = backward(*grads, tokens, scores, indices, weighted, impl)
        return d_tokens, d_scores if weighted else None, None, None, None

    def tangents(saved, tangents):
        tokens, scores, indices, weighted, _ = saved
        return (tangent(tokens, scores, indices, weighted, *tangents[:2]),)

    forward.derivatives(
        save=lambda args, results: (*args[:2], results[1], *args[3:]), gradients=gradients, tangents=tangents
    )

    def change(saved, d_grad, d_tokens, d_scores):
        """The change of the backward for that of its first three arguments."""
        grad, tokens, scores, indices, weighted, impl = saved
        parts = [] if d_grad is None else [backward(d_grad, tokens, scores, indices, weighted, impl)]
        if weighted and not (d_tokens is None and d_scores is None):
            d_tokens = torch.zeros_like(tokens) if d_tokens is None else d_tokens
            d_scores = torch.zeros_like(scores) if d_scores is None else d_scores
            parts.append(backward(grad, d_tokens, d_scores, indices, weighted, impl))
        if not parts:
            return torch.zeros_like(tokens), torch.zeros_like(scores)
        return tuple(sum(column[1:], column[0]) for column in zip(*parts, strict=True))

    def backward_gradients(saved, grads, wanted):
        _, tokens, scores, indices, weighted, _ = saved
        d_tokens, d_scores = grads
        d_grad, second = None, (None, None)
        if wanted[0]:
            d_grad = tangent(tokens, scores, indices, weighted, d_tokens, d_scores if weighted else None)
        if weighted and (wanted[1] or wanted[2]):
            second = change(saved, None, d_tokens, d_scores)
        return d_grad, *second, None, None, None

    def backward_tangents(saved, tangents):
        d_tokens, d_scores = change(saved, *tangents[:3])
        return d_tokens, d_scores if saved[4] else None

    backward.derivatives(
        save=lambda args, results: args, gradients=backward_gradients, tangents=backward_tangents, outputs=2
    )


_add_derivatives(mask_tokens, mask_tokens_backward, reference.mask_tokens_tangent)
_add_derivatives(select_tokens, select_tokens_backward, reference.select_tokens_tangent)
