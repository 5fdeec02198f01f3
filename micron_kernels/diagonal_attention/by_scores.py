"""dQ and dK on a GPU from stored dS: Triton's kernels make dS, torch's products of matrices do the rest.

    dQ = scale · dS K        dK = scale · dSᵀ Q

A kernel that keeps dS to itself has to make the scores once for dQ and once more for dK, and sums in fewer registers
than a row of 512 columns wants. Memory stays O(N·E): dS is made of so many heads at a time as query and key have
bytes for. The CUDA kernels do the same in C++, ``gradients_by_scores`` of csrc/diagonal_attention/cuda.cu.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ALIGNED_BYTES = 16  # that rows of a matrix start at, for vectors and tensor cores


def aligned_size(size: int, dtype: torch.dtype) -> int:
    """The elements of a row of ``size``, and as many more as the next row needs to start aligned."""
    elements = ALIGNED_BYTES // dtype.itemsize
    return max(elements, -(-size // elements) * elements)


def heads_at_a_time(query: Tensor) -> int:
    """Of how many heads, of all batch entries, dS takes no more memory than query and key; 0: not even of one."""
    length = query.shape[2]
    return 2 * query.numel() // max(1, length * aligned_size(length, query.dtype))


def gradients_by_scores(
    query: Tensor,
    key: Tensor,
    scale: float,
    d_query: Tensor | None,
    d_key: Tensor | None,
    score_gradients: Callable[[int, Tensor], None],
) -> None:
    """Fills d_query and d_key, contiguous of the shape of query and key (B, H, N, E), or None where not wanted.

    ``score_gradients(first, d_scores)`` fills dS (heads, N, N), unscaled, of the heads from ``first`` on, counted
    through all batch entries, into rows that start aligned.
    """
    batch, heads, length, _ = query.shape
    parts = -(-batch * heads // heads_at_a_time(query))
    at_a_time = -(-batch * heads // parts)
    scratch = query.new_empty((at_a_time, length, aligned_size(length, query.dtype)))
    queries, keys = query.flatten(0, 1), key.flatten(0, 1)
    for first in range(0, batch * heads, at_a_time):
        these = slice(first, min(first + at_a_time, batch * heads))
        score_gradients(first, scratch[: these.stop - first])
        d_scores = scratch[: these.stop - first, :, :length]
        for result, factor, others in ((d_query, d_scores, keys), (d_key, d_scores.mT, queries)):
            if result is not None:
                into = result.flatten(0, 1)[these]
                torch.baddbmm(into, factor, others[these], beta=0, alpha=scale, out=into)
