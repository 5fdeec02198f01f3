"""Diagonal attention in C++: ``csrc/diagonal_attention``. Same functions and signatures as ``reference``.

CUDA tensors go to ``native_cuda``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _extension
from .._extension import operators, with_contiguous_rows
from . import native_cuda as on_cuda
from .arguments import Gradients, Inputs, Saved, Wanted
from .rows import weight_per_head

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(device: torch.device, *dtypes: torch.dtype, width: int = 0, value_width: int = 0) -> str | None:
    """Why a call cannot be served, or None."""
    if device.type == "cuda" and any(dtype not in on_cuda.DTYPES for dtype in dtypes):
        return "computes in bfloat16 and float16 on CUDA"
    if device.type == "cuda" and width > on_cuda.MAX_WIDTH:
        return f"takes width up to {on_cuda.MAX_WIDTH} on CUDA, not {width}"
    return _extension.why_not(device, architectures=("9.0a",))


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def forward(inputs: Inputs, keep: bool) -> tuple[Tensor, Saved]:
    """(out (B, H, K, Ev), what the backward needs)."""
    query, key, value, scale, row_weight, rows, key_mask = inputs
    if query.is_cuda:
        return on_cuda.forward(inputs, keep)
    batch, heads, computed = *query.shape[:2], inputs.computed
    statistics = (batch, heads, computed)
    out = value.new_empty((*statistics, value.shape[3]))
    weights, row_max, row_sum = (query.new_empty(statistics, dtype=torch.float32) for _ in range(3))
    exponentials = query.new_empty((*statistics, query.shape[2]), dtype=torch.float32) if keep else None
    operators().diagonal_attention(
        with_contiguous_rows(query),
        with_contiguous_rows(key),
        with_contiguous_rows(value),
        scale,
        weight_per_head(row_weight, heads),
        _contiguous(rows),
        _contiguous(key_mask),
        out,
        weights,
        row_max,
        row_sum,
        exponentials,
    )
    return out, Saved(weights, row_max, row_sum, exponentials)


def backward(
    grad_out: Tensor | None, grad_weights: Tensor | None, inputs: Inputs, saved: Saved, wanted: Wanted
) -> Gradients:
    """(dQ, dK, dV, dw), each of the shape and dtype of its input, or None where it is not wanted."""
    query, key, value, scale, row_weight, rows, key_mask = inputs
    if query.is_cuda:
        return on_cuda.backward(grad_out, grad_weights, inputs, saved, wanted)
    new = query.new_empty if rows is None else query.new_zeros  # the kernel adds up the rows it is given
    weigh = wanted.row_weight and row_weight is not None
    d_query = new(query.shape, dtype=torch.float32) if wanted.query else None
    d_key = key.new_empty(key.shape, dtype=torch.float32) if wanted.key else None
    d_value = new(value.shape, dtype=torch.float32) if wanted.value else None
    d_weight = new(query.shape[:3], dtype=torch.float32) if weigh else None
    operators().diagonal_attention_backward(
        None if grad_out is None else with_contiguous_rows(grad_out),
        _contiguous(grad_weights),
        with_contiguous_rows(query),
        with_contiguous_rows(key),
        with_contiguous_rows(value),
        scale,
        weight_per_head(row_weight, query.shape[1]),
        _contiguous(rows),
        _contiguous(key_mask),
        *(_contiguous(x) for x in saved),
        d_query,
        d_key,
        d_value,
        d_weight,
    )
    if d_weight is not None and row_weight is not None:
        d_weight = (d_weight.sum(1) if row_weight.dim() == 2 else d_weight).to(row_weight.dtype)
    return (
        None if d_query is None else d_query.to(query.dtype),
        None if d_key is None else d_key.to(key.dtype),
        None if d_value is None else d_value.to(value.dtype),
        d_weight,
    )
