"""Diagonal attention in CUDA C++, for Hopper: ``csrc/diagonal_attention/cuda.cu``. Signatures as in ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from .._extension import operators
from .arguments import Gradients, Inputs, Saved, Wanted
from .by_scores import ALIGNED_BYTES, aligned_size, gradients_by_scores, heads_at_a_time
from .rows import slots_of_positions, weight_per_head

#: wgmma multiplies halves alone, and the rows of a block must fit its shared memory.
DTYPES = (torch.bfloat16, torch.float16)
MAX_WIDTH = 512


def _aligned(x: Tensor) -> Tensor:
    """``x`` with rows that start at multiples of 16 bytes and no stride of 0: itself, or a copy, wider if need be."""
    width, elements = x.shape[3], ALIGNED_BYTES // x.itemsize
    strides = all(stride > 0 and stride % elements == 0 for stride in x.stride()[:3])
    if width and width % elements == 0 and x.stride(3) == 1 and strides and x.data_ptr() % ALIGNED_BYTES == 0:
        return x
    wide = x.new_zeros((*x.shape[:3], aligned_size(width, x.dtype)))
    wide[..., :width] = x
    return wide


def _of_width(x: Tensor, width: int) -> Tensor:
    """``x`` without the columns that were added to align its rows."""
    return x if x.shape[3] == width else x[..., :width].contiguous()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def forward(inputs: Inputs, keep: bool) -> tuple[Tensor, Saved]:
    """(out (B, H, K, Ev), what the backward needs); row_max in units of log 2. Nothing more is kept."""
    query, key, value, scale, row_weight, rows, key_mask = inputs
    out, *saved = operators.diagonal_attention(
        _aligned(query),
        _aligned(key),
        _aligned(value),
        scale,
        weight_per_head(row_weight, query.shape[1]),
        _contiguous(rows),
        _contiguous(key_mask),
        False,
    )
    return _of_width(out, value.shape[3]), Saved(*saved)


def backward(
    grad_out: Tensor | None, grad_weights: Tensor | None, inputs: Inputs, saved: Saved, wanted: Wanted
) -> Gradients:
    """(dQ, dK, dV, dw), each of the shape and dtype of its input, or None where it is not wanted."""
    query, key, value, scale, row_weight, rows, key_mask = inputs
    weights, row_max, row_sum, _ = saved
    batch, heads, length, width = query.shape
    q, k, v = _aligned(query), _aligned(key), _aligned(value)
    row_max, row_sum = row_max.contiguous(), row_sum.contiguous()
    rows, key_mask = _contiguous(rows), _contiguous(key_mask)
    first_slot, slot_order = (None, None) if rows is None else slots_of_positions(rows, length)
    slot_f, slot_c = torch.empty_like(row_max), torch.empty_like(row_max)
    position_f, position_c = slot_f, slot_c
    if rows is not None:
        position_f, position_c = (
            query.new_empty((batch, heads, length), dtype=torch.float32) for _ in range(2)
        )
    d_value = v.new_empty(v.shape)
    d_weight = None
    if wanted.row_weight and row_weight is not None:
        d_weight = query.new_empty((batch, heads, length), dtype=torch.float32)
    operators.diagonal_attention_row_gradients(
        None if grad_out is None else _aligned(grad_out),
        _contiguous(grad_weights),
        v,
        weight_per_head(row_weight, heads),
        key_mask,
        weights.contiguous(),
        row_sum,
        first_slot,
        slot_order,
        slot_f,
        slot_c,
        position_f,
        position_c,
        d_value,
        d_weight,
    )
    d_query, d_key = None, k.new_empty(k.shape) if wanted.key else None
    if wanted.query:  # rows that are not computed, or masked, are not written
        d_query = q.new_empty(q.shape) if rows is None and key_mask is None else q.new_zeros(q.shape)
    if rows is None and key_mask is None and heads_at_a_time(q):

        def score_gradients(first_head: int, d_scores: Tensor) -> None:
            operators.diagonal_attention_score_gradients(
                q, k, scale, row_max, slot_f, slot_c, first_head, d_scores
            )

        gradients_by_scores(q, k, scale, d_query, d_key, score_gradients)
    else:
        if d_query is not None:
            operators.diagonal_attention_query_gradients(
                q, k, scale, rows, key_mask, row_max, first_slot, slot_order, position_f, position_c, d_query
            )
        if d_key is not None:
            operators.diagonal_attention_key_gradients(
                q, k, scale, rows, key_mask, row_max, slot_f, slot_c, d_key
            )
    if d_weight is not None and row_weight is not None:
        d_weight = (d_weight.sum(1) if row_weight.dim() == 2 else d_weight).to(row_weight.dtype)
    return (
        None if d_query is None else _of_width(d_query, width),
        None if d_key is None else _of_width(d_key, width),
        _of_width(d_value, value.shape[3]) if wanted.value else None,
        d_weight,
    )
