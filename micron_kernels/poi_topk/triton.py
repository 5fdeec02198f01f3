"""Patch-of-Interest top-k in Triton. Same functions and signatures as ``reference``, where the formulas stand.

A score is ranked by an integer key of the same order. One program a few rows finds the k-th highest key of each bit
by bit, then numbers the positions that it keeps by prefix sums: no sort. The tokens move in a second kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._implementation import interpreted
from .._triton import launch

#: The interpreter loses subnormal numbers of bf16 on the way to fp32.
INTERPRETED = tl.constexpr(interpreted())

#: Scores that a program holds while it looks for the k-th key: a row of as many is read once for that, a longer one
#: once for every bit. Prefix sums want more registers, and go by smaller chunks.
MOST_SCORES = 16384
MOST_SCORES_NUMBERED = 4096
#: Scores of a warp. Measured on an H200, 256 rows of 784 and of 3136: 256 scores 11.3 and 21.4 µs, 512 11.2 and 18.8,
#: 1024 11.8 and 17.6.
WARP_SCORES = 512
#: Shorter rows share a program until it holds so many scores.
FEW_SCORES = 512
#: Elements of tokens that a program holds at a time, and the most of one token.
TILE = 4096
MOST_COLUMNS = 512

#: Low bits of an fp32 made from a half, which are all 0.
IDLE_BITS = {torch.float32: 0, torch.bfloat16: 16, torch.float16: 13}


@triton.jit
def load_keys(scores, positions, stride_n, there, IDLE: tl.constexpr):
    """Keys that rank as the scores do: NaN lowest, −0 as 0. Where there is no score they are 0, as for NaN."""
    values = tl.load(scores + positions.to(tl.int64) * stride_n, mask=there, other=0)
    if INTERPRETED and values.dtype == tl.bfloat16:
        bits = values.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
    else:
        bits = values.to(tl.float32).to(tl.uint32, bitcast=True)
    bits = tl.where(bits == 0x80000000, 0, bits)
    keys = tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    is_number = (bits & 0x7FFFFFFF) <= 0x7F800000
    return tl.where(there & is_number, keys >> IDLE, 0)


@triton.jit
def topk_kernel(
    scores, mask, indices, batch, length, k, stride_b, stride_n,
    IDLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    in_batch = rows < batch
    scores += rows * stride_b
    first = tl.arange(0, BLOCK)[None, :]
    first_keys = load_keys(scores, first, stride_n, in_batch & (first < length), IDLE)

    # The k-th highest key is the highest that k keys reach. The last candidate to fail is one above it.
    kth = tl.zeros([ROWS, 1], tl.uint32)
    above = tl.zeros([ROWS, 1], tl.int32)
    bit = tl.full([ROWS, 1], 1 << (31 - IDLE), tl.uint32)
    for _ in range(32 - IDLE):
        candidate = kth | bit
        reached = tl.sum((first_keys >= candidate).to(tl.int32), 1, keep_dims=True)
        for start in range(BLOCK, length, BLOCK):
            positions = start + first
            keys = load_keys(scores, positions, stride_n, in_batch & (positions < length), IDLE)
            reached += tl.sum((keys >= candidate).to(tl.int32), 1, keep_dims=True)
        is_enough = reached >= k
        kth = tl.where(is_enough, candidate, kth)
        above = tl.where(is_enough, above, reached)
        bit = bit >> 1

    kept_before = tl.zeros([ROWS, 1], tl.int32)
    ties_left = k - above
    for start in range(0, length, CHUNK):
        positions = start + tl.arange(0, CHUNK)[None, :]
        there = in_batch & (positions < length)
        keys = load_keys(scores, positions, stride_n, there, IDLE)
        is_tie = (keys == kth).to(tl.int32)
        kept = there & ((keys > kth) | ((is_tie != 0) & (tl.cumsum(is_tie, 1) <= ties_left)))
        is_kept = kept.to(tl.int32)
        slots = kept_before + tl.cumsum(is_kept, 1) - 1
        tl.store(indices + rows * k + slots, positions.to(tl.int64), mask=kept)
        if mask is not None:
            tl.store(mask + rows * length + positions, kept, mask=there)
        kept_before += tl.sum(is_kept, 1, keep_dims=True)
        ties_left -= tl.sum(is_tie, 1, keep_dims=True)


@triton.jit
def slots_of(positions, indices, k, steps):
    """(slot in the ascending ``indices``, whether the position is among them), by bisection."""
    low = tl.zeros_like(positions)
    high = low + k
    for _ in range(steps):
        middle = (low + high) // 2
        searching = low < high
        below = searching & (tl.load(indices + middle, mask=searching, other=0) < positions)
        high = tl.where(below, high, middle)
        low = tl.where(below, middle + 1, low)
    return low, (low < k) & (tl.load(indices + low, mask=low < k, other=-1) == positions)


@triton.jit
def load_factors(scores, positions, stride_n, kept):
    """What each token is multiplied by: its score if weighted.  # [TOKENS, 1]"""
    if scores is None:
        factors = 1.0
    else:
        factors = tl.load(scores + positions * stride_n, mask=kept, other=0).to(tl.float32)[:, None]
    return factors


@triton.jit
def gather_kernel(
    tokens, scores, mask, indices, out,
    slots, width, tokens_b, tokens_n, tokens_d, scores_b, scores_n,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out is (B, N, D) with a mask (B, N), and (B, k, D), of the kept tokens alone, without."""
    blocks = tl.cdiv(slots, TOKENS)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    slot = (tl.program_id(0) % blocks) * TOKENS + tl.arange(0, TOKENS).to(tl.int64)
    there = slot < slots
    if mask is None:
        positions, kept = tl.load(indices + row * slots + slot, mask=there, other=0), there
    else:
        positions, kept = slot, tl.load(mask + row * slots + slot, mask=there, other=0) != 0
    tokens += row * tokens_b + positions[:, None] * tokens_n
    out += (row * slots + slot[:, None]) * width
    if scores is not None:
        scores += row * scores_b
    factors = load_factors(scores, positions, scores_n, kept)
    for start in range(0, width, COLUMNS):
        columns = start + tl.arange(0, COLUMNS).to(tl.int64)[None, :]
        inside = columns < width
        x = tl.load(tokens + columns * tokens_d, mask=kept[:, None] & inside, other=0).to(tl.float32)
        tl.store(out + columns, x * factors, mask=there[:, None] & inside)


@triton.jit
def gather_backward_kernel(
    grad, tokens, scores, indices, d_tokens, d_scores,
    length, k, steps, width,
    grad_b, grad_n, grad_d, tokens_b, tokens_n, tokens_d, scores_b, scores_n,
    IN_PLACE: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``IN_PLACE``: grad is (B, N, D), otherwise (B, k, D). Scores and d_scores are None unless weighted."""
    blocks = tl.cdiv(length, TOKENS)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    positions = (tl.program_id(0) % blocks) * TOKENS + tl.arange(0, TOKENS).to(tl.int64)
    there = positions < length
    slots, kept = slots_of(positions, indices + row * k, k, steps)
    kept = kept & there
    grad += row * grad_b + (positions if IN_PLACE else slots)[:, None] * grad_n
    tokens += row * tokens_b + positions[:, None] * tokens_n
    d_tokens += (row * length + positions[:, None]) * width
    if scores is not None:
        scores += row * scores_b
    factors = load_factors(scores, positions, scores_n, kept)
    d_score = tl.zeros([TOKENS], tl.float32)
    for start in range(0, width, COLUMNS):
        columns = start + tl.arange(0, COLUMNS).to(tl.int64)[None, :]
        inside = kept[:, None] & (columns < width)
        g = tl.load(grad + columns * grad_d, mask=inside, other=0).to(tl.float32)
        tl.store(d_tokens + columns, g * factors, mask=there[:, None] & (columns < width))
        if d_scores is not None:
            x = tl.load(tokens + columns * tokens_d, mask=inside, other=0).to(tl.float32)
            d_score += tl.sum(x * g, 1)
    if d_scores is not None:
        tl.store(d_scores + row * length + positions, d_score, mask=there)


def _topk(scores: Tensor, k: int, mask: Tensor | None) -> Tensor:
    """Indices (B, k), ascending; ``mask`` (B, N), if any, is filled."""
    batch, length = scores.shape
    indices = scores.new_empty((batch, k), dtype=torch.int64)
    block = min(triton.next_power_of_2(max(length, 1)), MOST_SCORES)
    rows = min(triton.next_power_of_2(max(batch, 1)), max(1, FEW_SCORES // block))
    launch(
        topk_kernel,
        (triton.cdiv(batch, rows) if length else 0,),
        scores,
        mask,
        indices,
        batch,
        length,
        k,
        *scores.stride(),
        IDLE=IDLE_BITS[scores.dtype],
        ROWS=rows,
        BLOCK=block,
        CHUNK=min(block, MOST_SCORES_NUMBERED),
        num_warps=min(max(block // WARP_SCORES, 1), 16),
    )
    return indices


def _tile(tokens: int, width: int) -> dict[str, int]:
    """The block of tokens that a program holds; its sides are powers of two."""
    columns = min(triton.next_power_of_2(max(width, 1)), MOST_COLUMNS)
    return {"TOKENS": min(triton.next_power_of_2(max(tokens, 1)), TILE // columns), "COLUMNS": columns}


def topk_mask(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(mask (B, N), indices (B, k))."""
    mask = scores.new_empty(scores.shape, dtype=torch.bool)
    return mask, _topk(scores, k, mask)


def _gather(tokens: Tensor, scores: Tensor, weighted: bool, mask: Tensor | None, indices: Tensor) -> Tensor:
    batch, length, width = tokens.shape
    slots = indices.shape[1] if mask is None else length
    out = tokens.new_empty((batch, slots, width))
    tile = _tile(slots, width)
    launch(
        gather_kernel,
        (batch * triton.cdiv(slots, tile["TOKENS"]) if width else 0,),
        tokens,
        scores if weighted else None,
        mask,
        indices,
        out,
        slots,
        width,
        *tokens.stride(),
        *scores.stride(),
        **tile,
        num_warps=8,
    )
    return out


def select_tokens(tokens: Tensor, scores: Tensor, k: int, weighted: bool) -> tuple[Tensor, Tensor]:
    """(kept tokens (B, k, D), indices (B, k))."""
    indices = _topk(scores, k, None)
    return _gather(tokens, scores, weighted, None, indices), indices


def mask_tokens(tokens: Tensor, scores: Tensor, k: int, weighted: bool) -> tuple[Tensor, Tensor]:
    """(tokens (B, N, D) with zeros where they are not kept, indices (B, k))."""
    mask, indices = topk_mask(scores, k)
    return _gather(tokens, scores, weighted, mask, indices), indices


def _backward(
    grad: Tensor, tokens: Tensor, scores: Tensor, indices: Tensor, weighted: bool, in_place: bool
) -> tuple[Tensor, Tensor]:
    batch, length, width = tokens.shape
    d_tokens = tokens.new_empty(tokens.shape)
    d_scores = scores.new_empty(scores.shape if weighted else (0,))
    k = indices.shape[1]
    tile = _tile(length, width)
    launch(
        gather_backward_kernel,
        (batch * triton.cdiv(length, tile["TOKENS"]),),
        grad,
        tokens,
        scores if weighted else None,
        indices.contiguous(),
        d_tokens,
        d_scores if weighted else None,
        length,
        k,
        k.bit_length(),
        width,
        *grad.stride(),
        *tokens.stride(),
        *scores.stride(),
        IN_PLACE=in_place,
        **tile,
        num_warps=8,
    )
    return d_tokens, d_scores


def select_tokens_backward(
    grad: Tensor, tokens: Tensor, scores: Tensor, indices: Tensor, weighted: bool
) -> tuple[Tensor, Tensor]:
    """(d_tokens (B, N, D), d_scores (B, N), empty unless weighted) from grad (B, k, D)."""
    return _backward(grad, tokens, scores, indices, weighted, in_place=False)


def mask_tokens_backward(
    grad: Tensor, tokens: Tensor, scores: Tensor, indices: Tensor, weighted: bool
) -> tuple[Tensor, Tensor]:
    """(d_tokens (B, N, D), d_scores (B, N), empty unless weighted) from grad (B, N, D)."""
    return _backward(grad, tokens, scores, indices, weighted, in_place=True)
