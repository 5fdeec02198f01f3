"""Registration of diagonal attention with torch.library: one opaque operator forward, one backward."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from .._extension import register
from .._implementation import TritonModule, accumulate_dtype, autocast_off
from . import native, reference

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
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, p, row_max, row_sum): the last three are what the backward needs of each row."""
    _check_rows(rows, query.shape[2])
    with autocast_off(query):
        return IMPLEMENTATIONS[impl].forward(query, key, value, scale, row_weight, rows, key_mask)


@diagonal_attention.register_fake
def _(query, key, value, scale, row_weight, rows, key_mask, impl):
    batch, heads, length, _ = query.shape
    computed = length if rows is None else rows.shape[1]
    statistics = query.new_empty((batch, heads, computed), dtype=accumulate_dtype(query.dtype))
    out = query.new_empty((batch, heads, computed, value.shape[-1]))
    return out, statistics, torch.empty_like(statistics), torch.empty_like(statistics)


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
    impl: str,
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and row_weight (an empty tensor where there is no row_weight)."""
    with autocast_off(query):
        return IMPLEMENTATIONS[impl].backward(
            grad_out,
            grad_weights,
            query,
            key,
            value,
            scale,
            row_weight,
            rows,
            key_mask,
            weights,
            row_max,
            row_sum,
        )


@diagonal_attention_backward.register_fake
def _(
    grad_out,
    grad_weights,
    query,
    key,
    value,
    scale,
    row_weight,
    rows,
    key_mask,
    weights,
    row_max,
    row_sum,
    impl,
):
    return (
        query.new_empty(query.shape),
        key.new_empty(key.shape),
        value.new_empty(value.shape),
        query.new_empty((0,)) if row_weight is None else row_weight.new_empty(row_weight.shape),
    )


def _setup_context(ctx, inputs, output):
    query, key, value, scale, row_weight, rows, key_mask, impl = inputs
    ctx.save_for_backward(query, key, value, row_weight, rows, key_mask, *output[1:])
    ctx.scale, ctx.impl = scale, impl
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, grad_weights, _grad_row_max, _grad_row_sum):
    query, key, value, row_weight, rows, key_mask, weights, row_max, row_sum = ctx.saved_tensors
    if grad_out is None and grad_weights is None:
        return (None,) * 8
    d_query, d_key, d_value, d_weight = diagonal_attention_backward(
        grad_out,
        grad_weights,
        query,
        key,
        value,
        ctx.scale,
        row_weight,
        rows,
        key_mask,
        weights,
        row_max,
        row_sum,
        ctx.impl,
    )
    return d_query, d_key, d_value, None, None if row_weight is None else d_weight, None, None, None


diagonal_attention.register_autograd(_backward, setup_context=_setup_context)
