"""Diagonal attention in CUDA C++, for Hopper: ``csrc/diagonal_attention/cuda.cu``. Signatures as in ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from .._extension import operators, with_contiguous_rows
from .arguments import Gradients, Inputs, Saved, Wanted
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


def forward(inputs: Inputs, keep: bool) -> tuple[Tensor, Saved]:
    """(out (B, H, K, Ev), what the backward needs); row_max in units of log 2. Nothing more is kept."""
    query, key, value, scale, row_weight, rows, key_mask = inputs
    out, *saved = operators.diagonal_attention(
        _aligned(query),
        _aligned(key),
        value,
        scale,
        weight_per_head(row_weight, query.shape[1]),
        _contiguous(rows),
        _contiguous(key_mask),
        False,
    )
    return out, Saved(*saved)


def backward(
    grad_out: Tensor | None, grad_weights: Tensor | None, inputs: Inputs, saved: Saved, wanted: Wanted
) -> Gradients:
    """(dQ, dK, dV, dw), each of the shape and dtype of its input, or None where it is not wanted."""
    query, key, value, scale, row_weight, rows, key_mask = inputs
    weights, row_max, row_sum, _ = saved
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
    if wanted.row_weight and row_weight is not None:
        d_weight = query.new_empty((batch, heads, length), dtype=torch.float32)
    operators.diagonal_attention_row_gradients(
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
    d_query, d_key = None, None
    if wanted.query:  # rows that are not computed, or masked, are not written
        d_query = q.new_empty(q.shape) if rows is None and key_mask is None else q.new_zeros(q.shape)
        operators.diagonal_attention_query_gradients(
            q, k, scale, rows, key_mask, row_max, first_slot, slot_order, position_f, position_c, d_query
        )
        d_query = d_query[..., :width].contiguous()
    if wanted.key:
        d_key = k.new_empty(k.shape)
        operators.diagonal_attention_key_gradients(
            q, k, scale, rows, key_mask, row_max, slot_f, slot_c, d_key
        )
        d_key = d_key[..., :width].contiguous()
    if d_weight is None or row_weight is None:
        d_weight = None
    else:
        d_weight = (d_weight.sum(1) if row_weight.dim() == 2 else d_weight).to(row_weight.dtype)
    return d_query, d_key, d_value if wanted.value else None, d_weight
