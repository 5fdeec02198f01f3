"""Diagonal attention in CUDA C++, for Hopper: ``csrc/diagonal_attention/cuda.cu``. Signatures as in ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from .._extension import operators
from .arguments import Gradients, Inputs, Saved, Wanted
from .rows import gradient_of_weight, slots_of_positions

#: wgmma multiplies halves alone, and the rows of a block must fit its shared memory.
DTYPES = (torch.bfloat16, torch.float16)
MAX_WIDTH = 512


def forward(inputs: Inputs, keep: bool) -> tuple[Tensor, Saved]:
    """(out (B, H, K, Ev), what the backward needs); row_max in units of log 2. Nothing more is kept."""
    out, *saved = operators.diagonal_attention(*inputs, False)
    return out, Saved(*saved)


def backward(
    grad_out: Tensor | None, grad_weights: Tensor | None, inputs: Inputs, saved: Saved, wanted: Wanted
) -> Gradients:
    """(dQ, dK, dV, dw), each of the shape and dtype of its input, or None where it is not wanted."""
    rows, row_weight = inputs.rows, inputs.row_weight
    slots = (None, None) if rows is None else slots_of_positions(rows, inputs.query.shape[2])
    *gradients, d_weight = operators.diagonal_attention_backward(
        grad_out,
        grad_weights,
        *inputs,
        *saved,
        *slots,
        wanted.query,
        wanted.key,
        wanted.value,
        wanted.row_weight and row_weight is not None,
    )
    return *gradients, gradient_of_weight(d_weight, row_weight)
