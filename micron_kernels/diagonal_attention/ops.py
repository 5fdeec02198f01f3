"""Registration of diagonal attention with torch.library: one opaque operator forward, one backward."""

from collections.abc import Sequence
from typing import Optional, Tuple

import torch
from torch import Tensor

from .._extension import register
from .._implementation import TritonModule, accumulate_dtype, autocast_off
from . import native, reference
from .arguments import Inputs, Saved, Wanted, keeps_exponentials

_TRITON = TritonModule(
    "diagonal_attention", torch.float32, torch.bfloat16, torch.float16, width=512, value_width=512
)
IMPLEMENTATIONS = register({"reference": reference, "triton": _TRITON}, native)


def _check_rows(rows: Optional[Tensor], length: int) -> None:
    """Positions are data, so they are checked where data is at hand, and not on a GPU: that would stop it."""
    if rows is None or rows.device.type != "cpu" or rows.numel() == 0:
        return
    low, high = (int(x) for x in rows.aminmax())
    if low < 0 or high >= length:
        wrong = low if low < 0 else high
        raise ValueError(f"rows holds {wrong}; positions must lie in [0, N) = [0, {length})")


@torch.library.custom_op("micron_kernels::diagonal_attention", mutates_args=())
def diagonal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    row_weight: Optional[Tensor],
    rows: Optional[Tensor],
    key_mask: Optional[Tensor],
    impl: str,
    keep: bool,
) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(out, *Saved); ``keep`` the exponentials, if the rule allows it: where query or key want a gradient."""
    _check_rows(rows, query.shape[2])
    inputs = Inputs(query, key, value, scale, row_weight, rows, key_mask)
    with autocast_off(query):
        out, saved = IMPLEMENTATIONS[impl].forward(inputs, keep and keeps_exponentials(query, rows, impl))
    weights, row_max, row_sum, exponentials = saved
    return out, weights, row_max, row_sum, weights.new_empty((0,)) if exponentials is None else exponentials


@diagonal_attention.register_fake
def _(query, key, value, scale, row_weight, rows, key_mask, impl, keep):
    batch, heads, length, _ = query.shape
    computed = length if rows is None else rows.shape[1]
    statistics = query.new_empty((batch, heads, computed), dtype=accumulate_dtype(query.dtype))
    out = query.new_empty((batch, heads, computed, value.shape[-1]))
    kept = (batch, heads, computed, length) if keep and keeps_exponentials(query, rows, impl) else (0,)
    return (
        out,
        statistics,
        torch.empty_like(statistics),
        torch.empty_like(statistics),
        statistics.new_empty(kept),
    )


@torch.library.custom_op("micron_kernels::diagonal_attention_backward", mutates_args=())
def diagonal_attention_backward(
    grad_out: Optional[Tensor],
    grad_weights: Optional[Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    row_weight: Optional[Tensor],
    rows: Optional[Tensor],
    key_mask: Optional[Tensor],
    weights: Tensor,
    row_max: Tensor,
    row_sum: Tensor,
    exponentials: Tensor,
    wanted: Sequence[bool],
    impl: str,
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and row_weight, empty where not ``wanted`` or without a row_weight."""
    inputs = Inputs(query, key, value, scale, row_weight, rows, key_mask)
    which = Wanted(*wanted)
    # Without the gradient of a score there is no product of matrices to be fast at.
    implementation = IMPLEMENTATIONS[impl] if which.query or which.key else reference
    saved = Saved(weights, row_max, row_sum, exponentials if exponentials.numel() else None)
    with autocast_off(query):
        gradients = implementation.backward(grad_out, grad_weights, inputs, saved, which)
    d_query, d_key, d_value, d_weight = (query.new_empty((0,)) if x is None else x for x in gradients)
    return d_query, d_key, d_value, d_weight


@diagonal_attention_backward.register_fake
def _(grad_out, grad_weights, query, key, value, scale, row_weight, *rest):
    wanted = rest[-2]
    return tuple(
        query.new_empty((0,)) if x is None or not wants else x.new_empty(x.shape)
        for x, wants in zip((query, key, value, row_weight), wanted, strict=True)
    )


def _setup_context(ctx, inputs, output):
    query, key, value, scale, row_weight, rows, key_mask, impl, _ = inputs
    ctx.save_for_backward(query, key, value, row_weight, rows, key_mask, *output[1:])
    ctx.scale, ctx.impl = scale, impl
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, grad_weights, *_grads):
    query, key, value, row_weight, rows, key_mask, *saved = ctx.saved_tensors
    if grad_out is None and grad_weights is None:
        return (None,) * 9
    needs = ctx.needs_input_grad
    wanted = (*needs[:3], needs[4])
    gradients = diagonal_attention_backward(
        grad_out,
        grad_weights,
        query,
        key,
        value,
        ctx.scale,
        row_weight,
        rows,
        key_mask,
        *saved,
        wanted,
        ctx.impl,
    )
    d_query, d_key, d_value, d_weight = (
        gradient if wants else None for gradient, wants in zip(gradients, wanted, strict=True)
    )
    return d_query, d_key, d_value, None, d_weight, None, None, None, None


diagonal_attention.register_autograd(_backward, setup_context=_setup_context)
