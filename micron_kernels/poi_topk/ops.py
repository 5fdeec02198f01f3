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
    return _choose(impl, scores.device, scores.dtype).topk_mask(scores, k)


def _topk_mask_fake(scores, k, impl):
    mask = scores.new_empty(scores.shape, dtype=torch.bool)
    return mask, scores.new_empty((scores.shape[0], k), dtype=torch.int64)


topk_mask = Operator(
    "topk_mask(Tensor scores, SymInt k, str? impl) -> (Tensor, Tensor)", _topk_mask, _topk_mask_fake
)


def _mask_tokens(tokens, scores, k, weighted, impl):
    implementation = _choose(impl, tokens.device, tokens.dtype, scores.dtype)
    return implementation.mask_tokens(tokens, scores, k, weighted)


def _mask_tokens_fake(tokens, scores, k, weighted, impl):
    return tokens.new_empty(tokens.shape), scores.new_empty((scores.shape[0], k), dtype=torch.int64)


def _select_tokens(tokens, scores, k, weighted, impl):
    implementation = _choose(impl, tokens.device, tokens.dtype, scores.dtype)
    return implementation.select_tokens(tokens, scores, k, weighted)


def _select_tokens_fake(tokens, scores, k, weighted, impl):
    batch, _, width = tokens.shape
    return tokens.new_empty((batch, k, width)), scores.new_empty((batch, k), dtype=torch.int64)


_FORWARD = "(Tensor tokens, Tensor scores, SymInt k, bool weighted, str? impl) -> (Tensor, Tensor)"
mask_tokens = Operator(f"mask_tokens{_FORWARD}", _mask_tokens, _mask_tokens_fake, visible=1)
select_tokens = Operator(f"select_tokens{_FORWARD}", _select_tokens, _select_tokens_fake)


def _mask_tokens_backward(grad, tokens, scores, indices, weighted, impl):
    implementation = _choose(impl, tokens.device, tokens.dtype, scores.dtype)
    return implementation.mask_tokens_backward(grad, tokens, scores, indices, weighted)


def _select_tokens_backward(grad, tokens, scores, indices, weighted, impl):
    implementation = _choose(impl, tokens.device, tokens.dtype, scores.dtype)
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

    def save(args, results):
        tokens, scores, _, weighted, impl = args
        return (tokens, scores, results[1]), (weighted, impl)

    def gradients(tensors, others, grads, wanted):
        d_tokens, d_scores = backward(grads[0], *tensors, *others)
        return d_tokens, d_scores if others[0] else None, None, None, None

    def tangents(tensors, others, tangents):
        return (tangent(*tensors, others[0], *tangents[:2]),)

    forward.derivatives(save=save, gradients=gradients, tangents=tangents)

    def backward_save(args, results):
        grad, tokens, scores, indices, weighted, impl = args
        return (grad, tokens, scores, indices), (weighted, impl)

    def second_order(tensors, others, d_tokens, d_scores):
        """The change of the backward for that of tokens and scores, or None."""
        grad, tokens, scores, indices = tensors
        if not others[0] or (d_tokens is None and d_scores is None):
            return None
        d_tokens = torch.zeros_like(tokens) if d_tokens is None else d_tokens
        d_scores = torch.zeros_like(scores) if d_scores is None else d_scores
        return backward(grad, d_tokens, d_scores, indices, *others)

    def backward_gradients(tensors, others, grads, wanted):
        _, tokens, scores, indices = tensors
        d_tokens, d_scores = grads[0], grads[1] if others[0] else None
        d_grad = tangent(tokens, scores, indices, others[0], d_tokens, d_scores) if wanted[0] else None
        second = second_order(tensors, others, d_tokens, d_scores) or (None, None)
        return d_grad, *second, None, None, None

    def backward_tangents(tensors, others, tangents):
        _, tokens, scores, indices = tensors
        results = second_order(tensors, others, *tangents[1:3])
        if tangents[0] is not None:
            first = backward(tangents[0], tokens, scores, indices, *others)
            results = first if results is None else tuple(x + y for x, y in zip(first, results, strict=True))
        d_tokens, d_scores = results or (torch.zeros_like(tokens), torch.zeros_like(scores))
        return d_tokens, d_scores if others[0] else None

    backward.derivatives(
        save=backward_save, gradients=backward_gradients, tangents=backward_tangents, outputs=2
    )


_add_derivatives(mask_tokens, mask_tokens_backward, reference.mask_tokens_tangent)
_add_derivatives(select_tokens, select_tokens_backward, reference.select_tokens_tangent)
