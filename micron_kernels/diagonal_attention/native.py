"""Diagonal attention in C++: ``csrc/diagonal_attention``. Same functions and signatures as ``reference``.

CUDA tensors go to ``native_cuda``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _extension
from .._extension import operators
from . import native_cuda as on_cuda
from .arguments import Gradients, Inputs, Saved, Wanted
from .rows import gradient_of_weight

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(device: torch.device, *dtypes: torch.dtype, width: int = 0, value_width: int = 0) -> str | None:
    """Why a call cannot be served, or None."""
    if device.type == "cuda" and any(dtype not in on_cuda.DTYPES for dtype in dtypes):
        return "computes in bfloat16 and float16 on CUDA"
    if device.type == "cuda" and width > on_cuda.MAX_WIDTH:
        return f"takes width up to {on_cuda.MAX_WIDTH} on CUDA, not {width}"
    return _extension.why_not(device, architectures=("9.0a",))


def forward(inputs: Inputs, keep: bool) -> tuple[Tensor, Saved]:
    """(out (B, H, K, Ev), what the backward needs)."""
    if inputs.query.is_cuda:
        return on_cuda.forward(inputs, keep)
    out, *saved = operators.diagonal_attention(*inputs, keep)
    return out, Saved(*saved)


def backward(
    grad_out: Tensor | None, grad_weights: Tensor | None, inputs: Inputs, saved: Saved, wanted: Wanted
) -> Gradients:
    """(dQ, dK, dV, dw), each of the shape and dtype of its input, or None where it is not wanted."""
    query, key, value, _, row_weight, *_ = inputs
    if query.is_cuda:
        return on_cuda.backward(grad_out, grad_weights, inputs, saved, wanted)
    d_query, d_key, d_value, d_weight = operators.diagonal_attention_backward(
        grad_out,
        grad_weights,
        *inputs,
        *saved,
        None,
        None,
        wanted.query,
        wanted.key,
        wanted.value,
        wanted.row_weight and row_weight is not None,
    )
    return (
        None if d_query is None else d_query.to(query.dtype),
        None if d_key is None else d_key.to(key.dtype),
        None if d_value is None else d_value.to(value.dtype),
        gradient_of_weight(d_weight, row_weight),
    )
