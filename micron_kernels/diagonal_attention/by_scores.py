"""On a GPU from stored matrices of N × N: torch's products of matrices, and Triton's kernels between them.

    S = scale · Q Kᵀ        dQ = scale · dS K        dK = scale · dSᵀ Q

A kernel that keeps dS to itself has to make the scores once for dQ and once more for dK, and sums in fewer registers
than a row of 512 columns wants. S is stored for fp32 alone, for which torch's products are faster than a kernel's.
Memory stays O(N·E): dS is made of so many heads at a time as query and key have bytes for, S of so many rows. The CUDA
kernels do the same with dS in C++, ``gradients_by_scores`` of csrc/diagonal_attention/cuda.cu.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ALIGNED_BYTES = 16  # that rows of a matrix start at, for vectors and tensor cores
FEWEST_ROWS = 128  # of a head, for which it is worth while to launch a product


def aligned_size(size: int, dtype: torch.dtype) -> int:
    """The elements of a row of ``size``, and as many more as the next row needs to start aligned."""
    elements = ALIGNED_BYTES // dtype.itemsize
    return max(elements, -(-size // elements) * elements)


def heads_at_a_time(query: Tensor) -> int:
    """Of how many heads, of all batch entries, dS takes no more memory than query and key; 0: not even of one."""
    length = query.shape[2]
    return 2 * query.numel() // max(1, length * aligned_size(length, query.dtype))


def rows_at_a_time(query: Tensor) -> int:
    """Of how many rows of one head scores take no more memory than query and key; 0: of too few for a product."""
    length = query.shape[2]
    rows = min(length, 2 * query.numel() // max(1, aligned_size(length, query.dtype)))
    return rows if rows >= min(length, FEWEST_ROWS) else 0


class Block(NamedTuple):
    """Some heads, counted through all batch entries, or some rows of one head; ``scores`` (heads, rows, N) is a view
    that the next block overwrites. Its rows start aligned."""

    heads: slice
    rows: slice
    scores: Tensor


def blocks(query: Tensor) -> Iterator[Block]:
    """All heads and rows in turn, with memory for their scores, while ``rows_at_a_time`` is not 0."""
    count, length, at_a_time = query.shape[0] * query.shape[1], query.shape[2], heads_at_a_time(query)
    rows = length if at_a_time else rows_at_a_time(query)
    parts = -(-count // max(1, at_a_time))
    at_a_time = -(-count // parts)
    memory = query.new_empty((at_a_time, rows, aligned_size(length, query.dtype)))
    for head in range(0, count, at_a_time):
        heads = slice(head, min(head + at_a_time, count))
        for row in range(0, length, rows):
            these = slice(row, min(row + rows, length))
            yield Block(heads, these, memory[: heads.stop - head, : these.stop - row, :length])


def scores_by_blocks(query: Tensor, key: Tensor, scale: float) -> Iterator[Block]:
    """The same with scale · Q Kᵀ in them, by torch and as precise as torch has been told to be."""
    queries, keys = query.flatten(0, 1), key.flatten(0, 1)
    for block in blocks(query):
        q, into = queries[block.heads, block.rows], block.scores
        torch.baddbmm(into, q, keys[block.heads].mT, beta=0, alpha=scale, out=into)
        yield block


def gradients_by_scores(
    query: Tensor,
    key: Tensor,
    scale: float,
    d_query: Tensor | None,
    d_key: Tensor | None,
    d_scores_by_blocks: Iterable[Block],
) -> None:
    """Fills d_query and d_key, contiguous of the shape of query and key (B, H, N, E), or None where not wanted.

    ``d_scores_by_blocks``: dS, unscaled, of whole heads.
    """
    queries, keys = query.flatten(0, 1), key.flatten(0, 1)
    for heads, _, d_scores in d_scores_by_blocks:
        for result, factor, others in ((d_query, d_scores, keys), (d_key, d_scores.mT, queries)):
            if result is not None:
                into = result.flatten(0, 1)[heads]
                torch.baddbmm(into, factor, others[heads], beta=0, alpha=scale, out=into)
