"""Diagonal attention in CUDA C++, for Hopper: ``csrc/diagonal_attention/cuda.cu``. Signatures as in ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from .._extension import operators, with_contiguous_rows
from .rows import slots_of_positions, weight_per_head

#: wgmma multiplies halves alone, and the rows of a block must fit its shared memory.
DTYPES = (torch.bfloat16, torch.float16)
MAX_WIDTH = 512
ALIGNMENT = 16  # bytes: of what the copy engine reads


def _aligned(x: Tensor) -> Tensor:
    """``x`` with rows that start at multiples of 16 bytes and no stride of 0: itself, or a copy, wider if need be."""
    elements = ALIGNMENT // x.itemsize
    width = x.shape[3]
    strides = all(stride > 0 and stride % elements == 0 for stride in x.stride()[:3])
    if width and width % elements == 0 and x.stride(3) == 1 and strides and x.data_ptr() % ALIGNMENT == 0:
        return x
    wide = x.new_zeros((*x.shape[:3], max(elements, -(-width // elements) * elements)))
    wide[..., :width] = x
    return wide


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    row_weight: Tensor | None,
    rows: Tensor | None,
    key_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out (B, H, K, Ev), p, row_max, row_sum, each (B, H, K)); row_max in units of log 2."""
    batch, heads, length, _ = query.shape
    computed = length if rows is None else rows.shape[1]
    out = value.new_empty((batch, heads, computed, value.shape[3]))
    weights, row_max, row_sum = (
        query.new_empty((batch, heads, computed), dtype=torch.float32) for _ in range(3)
    )
    operators().diagonal_attention(
        _aligned(query),
        _aligned(key),
        with_contiguous_rows(value),
        scale,
        weight_per_head(row_weight, heads),
        _contiguous(rows),
        _contiguous(key_mask),
        out,
        weights,
        row_max,
        row_sum,
    )
    return out, weights, row_max, row_sum


def backward(
    grad_out: Tensor | None,
    grad_weights: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    row_weight: Tensor | None,
    rows: Tensor | None,
    key_mask: Tensor | None,
    weights: Tensor,
    row_max: Tensor,
    row_sum: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dQ, dK, dV, dw), each of the shape and dtype of its input; dw is empty without a row_weight."""
    batch, heads, length, width = query.shape
    q, k = _aligned(query), _aligned(key)
    row_max, row_sum = row_max.contiguous(), row_sum.contiguous()
    rows, key_mask = _contiguous(rows), _contiguous(key_mask)
    first_slot, slot_order = (None, None) if rows is None else slots_of_positions(rows, length)
    slot_f, slot_c = torch.empty_like(row_max), torch.empty_like(row_max)
    position_f, position_c = slot_f, slot_c
    if rows is not None:
        position_f, position_c = (
            query.new_empty((batch, heads, length), dtype=torch.float32) for _ in range(2)
        )
    d_value = value.new_empty(value.shape)
    d_weight = None
    if row_weight is not None:
        d_weight = query.new_empty((batch, heads, length), dtype=torch.float32)
    operators().diagonal_attention_row_gradients(
        None if grad_out is None else with_contiguous_rows(grad_out),
        _contiguous(grad_weights),
        with_contiguous_rows(value),
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
    # Rows that are not computed, or masked, are not written.
    d_query = q.new_empty(q.shape) if rows is None and key_mask is None else q.new_zeros(q.shape)
    operators().diagonal_attention_query_gradients(
        q, k, scale, rows, key_mask, row_max, first_slot, slot_order, position_f, position_c, d_query
    )
    d_key = k.new_empty(k.shape)
    operators().diagonal_attention_key_gradients(q, k, scale, rows, key_mask, row_max, slot_f, slot_c, d_key)
    if d_weight is None or row_weight is None:
        d_weight = query.new_empty((0,))
    else:
        d_weight = (d_weight.sum(1) if row_weight.dim() == 2 else d_weight).to(row_weight.dtype)
    return d_query[..., :width].contiguous(), d_key[..., :width].contiguous(), d_value, d_weight
