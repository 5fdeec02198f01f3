"""Registration of Patch-of-Interest top-k with torch.library.

``topk_mask`` has no gradient. ``mask_tokens`` and ``select_tokens`` are one opaque operator forward and one
backward each; both return the chosen indices, which the backward needs.
"""

from typing import Tuple

import torch
from torch import Tensor

from .._extension import register
from .._implementation import TritonModule, autocast_off
from . import native, reference

_TRITON = TritonModule("poi_topk", torch.float32, torch.bfloat16, torch.float16)
IMPLEMENTATIONS = register({"reference": reference, "triton": _TRITON}, native)


@torch.library.custom_op("micron_kernels::topk_mask", mutates_args=())
def topk_mask(scores: Tensor, k: int, impl: str) -> Tuple[Tensor, Tensor]:
    return IMPLEMENTATIONS[impl].topk_mask(scores, k)


@topk_mask.register_fake
def _(scores, k, impl):
    mask = scores.new_empty(scores.shape, dtype=torch.bool)
    return mask, scores.new_empty((scores.shape[0], k), dtype=torch.int64)


@torch.library.custom_op("micron_kernels::mask_tokens", mutates_args=())
def mask_tokens(tokens: Tensor, scores: Tensor, k: int, weighted: bool, impl: str) -> Tuple[Tensor, Tensor]:
    with autocast_off(tokens):
        return IMPLEMENTATIONS[impl].mask_tokens(tokens, scores, k, weighted)


@mask_tokens.register_fake
def _(tokens, scores, k, weighted, impl):
    return tokens.new_empty(tokens.shape), scores.new_empty((scores.shape[0], k), dtype=torch.int64)


@torch.library.custom_op("micron_kernels::select_tokens", mutates_args=())
def select_tokens(tokens: Tensor, scores: Tensor, k: int, weighted: bool, impl: str) -> Tuple[Tensor, Tensor]:
    with autocast_off(tokens):
        return IMPLEMENTATIONS[impl].select_tokens(tokens, scores, k, weighted)


@select_tokens.register_fake
def _(tokens, scores, k, weighted, impl):
    batch, _, width = tokens.shape
    return tokens.new_empty((batch, k, width)), scores.new_empty((batch, k), dtype=torch.int64)


def _fake_gradients(grad, tokens, scores, indices, weighted, impl):
    return tokens.new_empty(tokens.shape), scores.new_empty(scores.shape if weighted else (0,))


@torch.library.custom_op("micron_kernels::mask_tokens_backward", mutates_args=())
def mask_tokens_backward(
    grad: Tensor, tokens: Tensor, scores: Tensor, indices: Tensor, weighted: bool, impl: str
) -> Tuple[Tensor, Tensor]:
    """Gradients of tokens and scores (an empty tensor unless weighted) from grad (B, N, D)."""
    with autocast_off(tokens):
        return IMPLEMENTATIONS[impl].mask_tokens_backward(grad, tokens, scores, indices, weighted)


@torch.library.custom_op("micron_kernels::select_tokens_backward", mutates_args=())
def select_tokens_backward(
    grad: Tensor, tokens: Tensor, scores: Tensor, indices: Tensor, weighted: bool, impl: str
) -> Tuple[Tensor, Tensor]:
    """Gradients of tokens and scores (an empty tensor unless weighted) from grad (B, k, D)."""
    with autocast_off(tokens):
        return IMPLEMENTATIONS[impl].select_tokens_backward(grad, tokens, scores, indices, weighted)


mask_tokens_backward.register_fake(_fake_gradients)
select_tokens_backward.register_fake(_fake_gradients)


def _setup_context(ctx, inputs, output):
    tokens, scores, _, weighted, impl = inputs
    ctx.save_for_backward(tokens, scores, output[1])
    ctx.weighted, ctx.impl = weighted, impl


def _backward_through(backward_op):
    def backward(ctx, grad, _grad_indices):
        tokens, scores, indices = ctx.saved_tensors
        d_tokens, d_scores = backward_op(grad, tokens, scores, indices, ctx.weighted, ctx.impl)
        return d_tokens, d_scores if ctx.weighted else None, None, None, None

    return backward


mask_tokens.register_autograd(_backward_through(mask_tokens_backward), setup_context=_setup_context)
select_tokens.register_autograd(_backward_through(select_tokens_backward), setup_context=_setup_context)
