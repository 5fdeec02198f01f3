"""Diagonal micro-attention: the public function."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _check
from .._implementation import Impl, autocast_dtype
from . import ops


def diagonal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    row_weight: Tensor | None = None,
    rows: Tensor | None = None,
    key_mask: Tensor | None = None,
    return_weights: bool = False,
    impl: Impl | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Weight each value by the diagonal of the row softmax of ``query @ key.T``.

    ::

        s_ij  = scale · q_i·k_j
        p_i   = exp(s_ii − logsumexp_j s_ij)      how much patch i of one frame still looks like patch i
                                                  of the other, among all its patches
        out_i = w_i · p_i · v_i                   w = row_weight

    Memory is O(N·E), also where the backward is differentiated once more. A tensor of size N×N is stored only where it
    takes no more bytes than query and key: on a CPU, the native and the reference implementation keep the exponentials
    of the scores for the gradients of query and key where N ≤ 2·E (N ≤ E for fp16 and bf16; with ``rows``, K in place
    of N); on a GPU, without ``rows`` and ``key_mask``, the backward stores the gradients of the scores of so many heads
    at a time. There are derivatives of any order, in forward and reverse mode and under the transforms of
    ``torch.func``. Past the first they are PyTorch's products in blocks of rows for every ``impl``; a third order, and
    a gradient of a forward-mode derivative, do store P.

    Args:
        query: (B, H, N, E), fp16, bf16, fp32 or fp64. Under autocast, query, key and value are cast to the
            autocast dtype. fp32 on a GPU is at least as precise as
            ``torch.backends.cuda.matmul.allow_tf32`` lets torch's own products be.
        key: (B, H, N, E), the dtype of ``query``.
        value: (B, H, N, Ev), the dtype of ``query``.
        scale: factor of the scores, 1/√E by default.
        row_weight: (B, N) or (B, H, N), any floating dtype: w above, 1 by default. Differentiable.
        rows: (B, K) int64: only these positions are computed, so that the work is K·N instead of N². They
            are positions in [0, N); one named twice is computed twice and its gradients add up. Checked on
            CPU only: checking on a GPU would stop the stream. There, a position outside has weight 0 in the
            Triton and CUDA kernels.
        key_mask: (B, N) bool, True = may be attended to. A position that is itself masked has weight, output
            and gradient 0, whatever its tensors hold.
        return_weights: return p as well.
        impl: ``"reference"``, ``"native"``, ``"triton"``, or None for the fastest that is available.

    Returns:
        out (B, H, N, Ev), or (B, H, K, Ev) with ``rows``, in the dtype of ``value``, contiguous. With
        ``return_weights``, (out, p): p is (B, H, N) or (B, H, K), fp32 (fp64 for fp64 inputs), and
        differentiable.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range.
        RuntimeError: ``impl`` names an implementation that is not available.

    Source: diagonal micro-attention of Nguyen et al., Micron-BERT, CVPR 2023, section 3.2; the closed form of
    its gradient is derived in ``reference.py``.
    """
    alike = _check.alike(query, key, value) and query.dtype in _check.FLOATING
    if not alike or len(shape := query.shape) != 4 or shape != key.shape or shape != value.shape:
        _check.tensor("query", query, dims=(4,), layout="(B, H, N, E)", dtypes=_check.FLOATING)
        batch, heads, length, _ = shape = query.shape
        _check.tensor("key", key, dims=(4,), layout="(B, H, N, E)", dtypes=_check.FLOATING)
        _check.tensor("value", value, dims=(4,), layout="(B, H, N, Ev)", dtypes=_check.FLOATING)
        _check.shape("key", key, shape, "the shape of query")
        _check.shape("value", value, (batch, heads, length, value.shape[3]), "(B, H, N) as query")
        for name, tensor in (("key", key), ("value", value)):
            _check.same_device(name, tensor, "query", query)
    batch, heads, length, width = shape
    if scale is None:
        scale = 1.0 / math.sqrt(max(width, 1))
    else:
        scale = _check.number("scale", scale, ", or None for 1/√E")
        if not -math.inf < scale < math.inf:  # torch.compile traces this, of a symbolic float too
            raise ValueError(f"scale={scale}; it must be a finite number, or None for 1/√E")
    if row_weight is not None:
        _check.tensor(
            "row_weight", row_weight, dims=(2, 3), layout="(B, N) or (B, H, N)", dtypes=_check.FLOATING
        )
        expected = (batch, length) if row_weight.dim() == 2 else (batch, heads, length)
        _check.shape("row_weight", row_weight, expected, "one weight a position of query, also with rows")
        _check.same_device("row_weight", row_weight, "query", query)
    if rows is not None:
        _check.tensor("rows", rows, dims=(2,), layout="(B, K)", dtypes=(torch.int64,))
        _check.shape("rows", rows, (batch, rows.shape[1]), "one row of positions a batch entry of query")
        _check.same_device("rows", rows, "query", query)
    if key_mask is not None:
        _check.tensor("key_mask", key_mask, dims=(2,), layout="(B, N)", dtypes=(torch.bool,))
        _check.shape("key_mask", key_mask, (batch, length), "(B, N) of key")
        _check.same_device("key_mask", key_mask, "query", query)

    dtype = autocast_dtype(query)
    if dtype is not None and query.dtype != torch.float64:
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if not alike:
        _check.same_dtype("key", key, "query", query)
        _check.same_dtype("value", value, "query", query)

    keep = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    out, weights = ops.diagonal_attention(query, key, value, scale, row_weight, rows, key_mask, impl, keep)
    return (out, weights) if return_weights else out
