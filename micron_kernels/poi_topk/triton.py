"""Patch-of-Interest top-k in Triton. Same functions and signatures as ``reference``, where the formulas stand.

A score is ranked by an integer key of the same order. One program a row finds the k-th highest key bit by bit, then
numbers the positions it keeps by prefix sums: no sort. The tokens move in a second kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import launch

#: Scores that a program holds at a time: a row of as many is read once, a longer one once for every bit.
MOST_SCORES = 16384
#: Elements of tokens that a program holds at a time, and the most of one token.
TILE = 4096
MOST_COLUMNS = 512

#: Low bits that are the same in every fp32 made from a half, up to the sign.
IDLE_BITS = {torch.float32: 0, torch.bfloat16: 16, torch.float16: 13}


@triton.jit
def load_keys(scores, positions, length, stride_n, IDLE: tl.constexpr):
    """Keys that rank as the scores do: NaN lowest, −0 as 0. Behind the end of the row they are 0, as for NaN."""
    there = positions < length
    bits = (
        tl.load(scores + positions * stride_n, mask=there, other=0).to(tl.float32).to(tl.uint32, bitcast=True)
    )
    bits = tl.where(bits == 0x80000000, 0, bits)
    keys = tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return tl.where(there & (is_nan == 0), keys >> IDLE, 0)


@triton.jit
def count(chosen):
    return tl.sum(chosen.to(tl.int32), 0)


@triton.jit
def highest_key_of_at_least(
    k, scores, length, stride_n, IDLE: tl.constexpr, FITS: tl.constexpr, BLOCK: tl.constexpr
):
    """The highest key that at least k of the row reach."""
    positions = tl.arange(0, BLOCK).to(tl.int64)
    keys = load_keys(scores, positions, length, stride_n, IDLE)
    highest = tl.full([], 0, tl.uint32)
    bit = tl.full([], 1 << (31 - IDLE), tl.uint32)
    for _ in range(32 - IDLE):
        candidate = highest | bit
        reached = count(keys >= candidate)
        if not FITS:
            for start in range(BLOCK, length, BLOCK):
                reached += count(load_keys(scores, start + positions, length, stride_n, IDLE) >= candidate)
        highest = tl.where(reached >= k, candidate, highest)
        bit = bit >> 1
    return highest


@triton.jit
def topk_kernel(
    scores, mask, indices, length, k, stride_b, stride_n,
    IDLE: tl.constexpr, FITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    scores += row * stride_b
    lowest_kept = highest_key_of_at_least(k, scores, length, stride_n, IDLE, FITS, BLOCK)

    above = tl.full([], 0, tl.int32)
    for start in range(0, length, BLOCK):
        positions = start + tl.arange(0, BLOCK).to(tl.int64)
        above += count(load_keys(scores, positions, length, stride_n, IDLE) > lowest_kept)
    ties_kept = k - above

    kept_before = tl.full([], 0, tl.int32)
    ties_before = tl.full([], 0, tl.int32)
    for start in range(0, length, BLOCK):
        positions = start + tl.arange(0, BLOCK).to(tl.int64)
        keys = load_keys(scores, positions, length, stride_n, IDLE)
        is_tie = (keys == lowest_kept).to(tl.int32)
        tie_number = ties_before + tl.cumsum(is_tie, 0)
        kept = (keys > lowest_kept) | ((is_tie != 0) & (tie_number <= ties_kept))
        kept = kept & (positions < length)
        slots = kept_before + tl.cumsum(kept.to(tl.int32), 0) - 1
        tl.store(indices + row * k + slots, positions, mask=kept)
        if mask is not None:
            tl.store(mask + row * length + positions, kept, mask=positions < length)
        kept_before += count(kept)
        ties_before += tl.sum(is_tie, 0)


@triton.jit
def slots_of(positions, indices, k, steps):
    """(slot in the ascending ``indices``, whether the position is among them), by bisection."""
    low = tl.zeros_like(positions)
    high = low + k
    for _ in range(steps):
        middle = (low + high) // 2
        below = tl.load(indices + middle, mask=low < high, other=0) < positions
        low, high = (
            tl.where((low < high) & below, middle + 1, low),
            tl.where((low < high) & (below == 0), middle, high),
        )
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
    """With a mask (B, N), out (B, N, D) holds the kept tokens in their places; without, out (B, k, D) holds no other."""
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
    launch(
        topk_kernel,
        (batch if length else 0,),
        scores,
        mask,
        indices,
        length,
        k,
        *scores.stride(),
        IDLE=IDLE_BITS[scores.dtype],
        FITS=length <= block,
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
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
        num_warps=4,
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
        num_warps=4,
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
