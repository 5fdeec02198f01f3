"""The Triton kernels of diagonal attention around matrices of N × N that are stored, for ``by_scores``.

Without ``rows`` or a mask dS is stored, and torch's products make dQ and dK. fp32 has no tensor cores, and torch's
products are faster than ``tl.dot`` then: without ``rows`` they make the scores too. The formulas are those of
``triton_kernels``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_kernels import add_scores, exp, finish_rows, head_of, load_rows, multiply, visible


@triton.jit
def rows_of_scores_kernel(
    scores, value, row_weight, key_mask, out, weights, row_max, row_sum,
    value_b, value_h, value_n, weight_b, weight_h, weight_n, score_h, score_n,
    heads, length, first_head, first_row, rows,
    VALUE_WIDTH: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The forward from scores (heads, rows, N) that are stored, scaled and in fp32."""
    blocks = tl.cdiv(rows, BLOCK_M)
    head = (first_head + tl.program_id(0) // blocks).to(tl.int64)
    batch = head // heads
    block_rows = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = block_rows < rows
    positions = first_row + block_rows
    there = visible(key_mask, positions, inside, length, batch, HAS_MASK)
    scores += (head - first_head) * score_h + block_rows.to(tl.int64) * score_n

    maximum = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, length, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        seen = visible(key_mask, keys, keys < length, length, batch, HAS_MASK)
        mask = there[:, None] & seen[None, :]
        s = tl.load(scores[:, None] + keys[None, :], mask=mask, other=-float("inf"))
        maximum, total = add_scores(maximum, total, s, True)
    maximum = tl.where(maximum == -float("inf"), 0.0, maximum)
    diagonal = tl.load(scores + positions, mask=there, other=0.0)
    own = tl.where(there, exp(diagonal - maximum, True), 0.0)
    slots = tl.where(inside, positions, length)
    finish_rows(
        own, maximum, total,
        value, row_weight, out, weights, row_max, row_sum,
        value_b, value_h, value_n, weight_b, weight_h, weight_n, heads, length, head, slots, positions, there,
        VALUE_WIDTH, HAS_WEIGHT, COLUMNS,
    )  # fmt: skip


@triton.jit
def gradients_of(scores, row_max, f, c, first, positions, keys, inside, PRECISE: tl.constexpr):
    """dS of scaled scores; the statistics of position 0 lie at ``first``."""
    at = first + positions
    m = tl.load(row_max + at, mask=inside, other=0.0)
    d_s = -tl.load(f + at, mask=inside, other=0.0)[:, None] * exp(scores - m[:, None], PRECISE)
    on_diagonal = positions[:, None] == keys[None, :]
    return tl.where(on_diagonal, tl.load(c + at, mask=inside, other=0.0)[:, None], d_s)


@triton.jit
def score_gradients_kernel(
    query, key, row_max, f, c, d_scores,
    query_b, query_h, query_n, key_b, key_h, key_n, scale, heads, length, row, first_head,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dS (heads, N, N) of the heads from ``first_head`` on, of 16 bits, in rows of ``row`` elements."""
    blocks_of_keys = tl.cdiv(length, BLOCK_N)
    blocks = tl.cdiv(length, BLOCK_M) * blocks_of_keys
    head = (first_head + tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    positions = (block // blocks_of_keys) * BLOCK_M + tl.arange(0, BLOCK_M)
    keys = (block % blocks_of_keys) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside, seen = positions < length, keys < length
    query = head_of(query, query_b, query_h, head, heads)
    key = head_of(key, key_b, key_h, head, heads)
    scores = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, WIDTH, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        q = load_rows(query, positions, query_n, inside, columns, WIDTH)
        k = load_rows(key, keys, key_n, seen, columns, WIDTH)
        scores = multiply(q, tl.trans(k), scores)
    d_s = gradients_of(scores * scale, row_max, f, c, head * length, positions, keys, inside, False)
    d_scores += ((head - first_head) * length + positions)[:, None] * row + keys[None, :]
    tl.store(d_scores, d_s, mask=inside[:, None] & seen[None, :])


@triton.jit
def gradients_of_scores_kernel(
    scores, row_max, f, c, length, row, first_head,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dS in the place of scores (heads, N, N) that are stored, scaled and in fp32, each in ``row`` elements."""
    blocks_of_keys = tl.cdiv(length, BLOCK_N)
    blocks = tl.cdiv(length, BLOCK_M) * blocks_of_keys
    head = (first_head + tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    positions = (block // blocks_of_keys) * BLOCK_M + tl.arange(0, BLOCK_M)
    keys = (block % blocks_of_keys) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = positions < length
    both = inside[:, None] & (keys < length)[None, :]
    scores += ((head - first_head) * length + positions)[:, None] * row + keys[None, :]
    s = tl.load(scores, mask=both, other=0.0)
    tl.store(scores, gradients_of(s, row_max, f, c, head * length, positions, keys, inside, True), mask=both)
