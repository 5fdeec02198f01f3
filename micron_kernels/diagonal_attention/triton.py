"""Diagonal attention in Triton: what launches the kernels. Same functions and signatures as ``reference``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from .._extension import with_contiguous_rows
from .._triton import Tile, is_hopper, launch, shared_bytes
from .arguments import Gradients, Inputs, Saved, Wanted
from .by_scores import (
    Block,
    blocks,
    gradients_by_scores,
    heads_at_a_time,
    rows_at_a_time,
    scores_by_blocks,
)
from .rows import gradient_of_weight, slots_of_positions, weight_per_head
from .triton_kernels import (
    forward_kernel,
    key_gradients_kernel,
    query_gradients_kernel,
    row_gradients_kernel,
)
from .triton_score_kernels import (
    gradients_of_scores_kernel,
    rows_of_scores_kernel,
    score_gradients_kernel,
)


def _forward_tile(dtype: torch.dtype, width: int, gathers: bool, device: torch.device) -> Tile:
    """``gathers``: with rows or a mask, whose addresses need registers too."""
    size = dtype.itemsize
    if device.type == "cpu":  # the interpreter: its time goes by the number of operations on tiles
        return Tile(256, 256, max(16, triton.next_power_of_2(width)))
    columns = min(128 // size, max(16, triton.next_power_of_2(width)))
    stages = 3 if shared_bytes(device) > 64 << 10 else 2
    if size == 4 and (gathers or not is_hopper(device)):  # without tensor cores
        return Tile(64, 64, columns, num_warps=4, num_stages=2)
    if size == 4:
        return Tile(128, 128, columns, num_warps=8, num_stages=3)
    if gathers:
        return Tile(64, 64, columns, num_warps=4, num_stages=stages)
    if is_hopper(device):
        return Tile(64, 128, columns, num_warps=4, num_stages=4)
    return Tile(128, 128, columns, num_warps=8, num_stages=stages)


def _row_tile(columns: int, device: torch.device) -> Tile:
    """Of what is done with scores that are stored: rows by keys."""
    columns = max(16, triton.next_power_of_2(columns))
    if device.type == "cpu":
        return Tile(256, 256, columns)
    return Tile(8, 256, min(256, columns), num_warps=4)


def _score_tile(dtype: torch.dtype, width: int, device: torch.device) -> Tile:
    """Of dS that is stored, in 16 bits. Measured as the fastest on an H200 at widths of 64 and 512."""
    tile = _forward_tile(dtype, width, False, device)
    if is_hopper(device):
        return Tile(128, 128, tile.COLUMNS, num_warps=8, num_stages=3)
    return tile


def _backward_tile(dtype: torch.dtype, width: int, gathers: bool, device: torch.device) -> Tile:
    """Whole rows are kept, so what fits in shared memory depends on the width."""
    columns = max(16, triton.next_power_of_2(width))
    if device.type == "cpu":
        return Tile(256, 256, columns)
    size = dtype.itemsize
    if size == 4:
        return Tile(32, 32, columns) if columns <= 128 else Tile(16, 16, columns, num_warps=8)
    most_sums = 1 << (14 if gathers else 15)  # that the registers of eight warps can hold
    most_keys = max(16, (1 << 14) // columns)
    for m, n, stages in ((128, 64, 2), (64, 64, 2), (32, 32, 2), (32, 16, 2), (32, 16, 1), (16, 16, 1)):
        n = min(n, most_keys)
        in_registers = m * columns <= most_sums and (m <= 64 or shared_bytes(device) > 64 << 10)
        if in_registers and ((m + n * stages) * columns + m * n) * size <= shared_bytes(device):
            return Tile(m, n, columns, num_warps=8 if m * columns >= 1 << 13 else 4, num_stages=stages)
    raise AssertionError(f"width {width} of {dtype}: no tile fits; why_not refuses it")


def _into_range(*statistics: Tensor) -> Tensor:
    """Multiply what dS is made of by a power of two that brings the largest of it to [1, 2), and return that power.

    At p of 1/N and small gradients dS would be subnormal in fp16. Of zeros, infinity and NaN the power is 1.
    """
    largest = torch.stack([x.abs().amax() for x in statistics]).amax()
    power = torch.exp2(-torch.floor(torch.log2(largest)))
    power = torch.where(largest.isfinite() & power.isfinite() & (power > 0), power, 1.0)
    for x in statistics:
        x.mul_(power)
    return power


def forward(inputs: Inputs, keep: bool) -> tuple[Tensor, Saved]:
    """(out (B, H, K, Ev), what the backward needs). Nothing more is kept."""
    query, key, value, scale, row_weight, rows, key_mask = inputs
    (batch, heads, length, width), computed = query.shape, inputs.computed
    out = value.new_empty((batch, heads, computed, value.shape[3]))
    weights, row_max, row_sum = (
        query.new_empty((batch, heads, computed), dtype=torch.float32) for _ in range(3)
    )
    query, key, value = (with_contiguous_rows(x) for x in (query, key, value))
    weight = weight_per_head(row_weight, heads)
    weight = value[..., 0] if weight is None else weight
    mask = query if key_mask is None else key_mask.contiguous()
    results = (out, weights, row_max, row_sum)
    flags = {
        "VALUE_WIDTH": value.shape[3],
        "HAS_WEIGHT": row_weight is not None,
        "HAS_MASK": key_mask is not None,
    }
    if query.dtype == torch.float32 and rows is None and rows_at_a_time(query):
        row_tile = _row_tile(value.shape[3], query.device)
        for of_heads, of_rows, scores in scores_by_blocks(query, key, scale):
            launch(
                rows_of_scores_kernel,
                (len(scores) * triton.cdiv(scores.shape[1], row_tile.BLOCK_M),),
                scores,
                value,
                weight,
                mask,
                *results,
                *value.stride()[:3],
                *weight.stride(),
                *scores.stride()[:2],
                heads,
                length,
                of_heads.start,
                of_rows.start,
                scores.shape[1],
                **flags,
                **row_tile.constants(),
            )
        return out, Saved(weights, row_max, row_sum)
    tile = _forward_tile(query.dtype, width, rows is not None or key_mask is not None, query.device)
    launch(
        forward_kernel,
        (batch * heads * triton.cdiv(computed, tile.BLOCK_M),),
        query,
        key,
        value,
        weight,
        query if rows is None else rows.contiguous(),
        mask,
        *results,
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        *weight.stride(),
        scale,
        heads,
        length,
        computed,
        WIDTH=width,
        HAS_ROWS=rows is not None,
        **flags,
        **tile.constants(),
    )
    return out, Saved(weights, row_max, row_sum)


def _d_scores(query: Tensor, key: Tensor, scale: float, statistics: tuple[Tensor, ...]) -> Iterator[Block]:
    """dS of whole heads. ``statistics``: row_max, f and c."""
    (_, heads, length, width) = query.shape
    tile = _score_tile(query.dtype, width, query.device)
    for block in blocks(query):
        launch(
            score_gradients_kernel,
            (len(block.scores) * triton.cdiv(length, tile.BLOCK_M) * triton.cdiv(length, tile.BLOCK_N),),
            query,
            key,
            *statistics,
            block.scores,
            *query.stride()[:3],
            *key.stride()[:3],
            scale,
            heads,
            length,
            block.scores.stride(1),
            block.heads.start,
            WIDTH=width,
            **tile.constants(),
        )
        yield block


def _d_scores_over_scores(
    query: Tensor, key: Tensor, scale: float, statistics: tuple[Tensor, ...]
) -> Iterator[Block]:
    """The same in fp32, where scores by torch are faster."""
    length = query.shape[2]
    tile = _row_tile(1, query.device)
    for block in scores_by_blocks(query, key, scale):
        launch(
            gradients_of_scores_kernel,
            (len(block.scores) * triton.cdiv(length, tile.BLOCK_M) * triton.cdiv(length, tile.BLOCK_N),),
            block.scores,
            *statistics,
            length,
            block.scores.stride(1),
            block.heads.start,
            BLOCK_M=tile.BLOCK_M,
            BLOCK_N=tile.BLOCK_N,
            num_warps=tile.num_warps,
        )
        yield block


def backward(
    grad_out: Tensor | None, grad_weights: Tensor | None, inputs: Inputs, saved: Saved, wanted: Wanted
) -> Gradients:
    """(dQ, dK, dV, dw), each of the shape and dtype of its input, or None where it is not wanted."""
    query, key, value, scale, row_weight, rows, key_mask = inputs
    (batch, heads, length, width), computed = query.shape, inputs.computed
    weights, row_max, row_sum = saved.weights, saved.row_max.contiguous(), saved.row_sum.contiguous()
    d_query, d_key = None, None
    d_value = value.new_empty(value.shape)
    slot_f, slot_c = torch.empty_like(row_max), torch.empty_like(row_max)
    position_f, position_c = slot_f, slot_c
    if rows is not None:
        position_f, position_c = (
            query.new_empty((batch, heads, length), dtype=torch.float32) for _ in range(2)
        )
    d_weight = row_max
    if row_weight is not None:
        d_weight = query.new_empty((batch, heads, length), dtype=torch.float32)

    query, key, value = (with_contiguous_rows(x) for x in (query, key, value))
    mask = query if key_mask is None else key_mask.contiguous()
    first_slot, slot_order = (query, query) if rows is None else slots_of_positions(rows, length)
    rows_or_any = query if rows is None else rows.contiguous()
    weight = weight_per_head(row_weight, heads)
    weight = value[..., 0] if weight is None else weight
    d_out = value if grad_out is None else with_contiguous_rows(grad_out)
    columns = max(16, triton.next_power_of_2(value.shape[3]))
    block = max(1, min(64, 4096 // columns)) if query.device.type != "cpu" else 256
    launch(
        row_gradients_kernel,
        (batch * heads * triton.cdiv(length, block),),
        d_out,
        weights if grad_weights is None else grad_weights.contiguous(),
        value,
        weight,
        mask,
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
        *d_out.stride()[:3],
        *value.stride()[:3],
        *weight.stride(),
        heads,
        length,
        computed,
        VALUE_WIDTH=value.shape[3],
        HAS_GRAD_OUT=grad_out is not None,
        HAS_GRAD_WEIGHTS=grad_weights is not None,
        HAS_WEIGHT=row_weight is not None,
        HAS_ROWS=rows is not None,
        HAS_MASK=key_mask is not None,
        BLOCK=block,
        COLUMNS=columns,
        num_warps=4,
    )
    power = None
    if query.dtype == torch.float16 and row_max.numel():
        power = _into_range(slot_f, slot_c, *(() if rows is None else (position_f, position_c)))
    if wanted.query:
        d_query = (query.new_empty if rows is None else query.new_zeros)((batch, heads, length, width))
    if wanted.key:
        d_key = key.new_empty((batch, heads, length, width))
    layout = (*query.stride()[:3], *key.stride()[:3], scale, heads, length)
    if (wanted.query or wanted.key) and rows is None and key_mask is None and heads_at_a_time(query):
        statistics = (row_max, slot_f, slot_c)
        d_scores = (_d_scores_over_scores if query.dtype == torch.float32 else _d_scores)(
            query, key, scale, statistics
        )
        gradients_by_scores(query, key, scale, d_query, d_key, d_scores)
        wanted = wanted._replace(query=False, key=False)
    tile = _backward_tile(query.dtype, width, rows is not None or key_mask is not None, query.device)
    flags = {"WIDTH": width, "HAS_ROWS": rows is not None, "HAS_MASK": key_mask is not None}
    if wanted.query:
        launch(
            query_gradients_kernel,
            (batch * heads * triton.cdiv(computed, tile.BLOCK_M),),
            query,
            key,
            rows_or_any,
            mask,
            row_max,
            first_slot,
            slot_order,
            position_f,
            position_c,
            d_query,
            *layout,
            computed,
            **flags,
            **tile.constants(),
        )
    if wanted.key:
        launch(
            key_gradients_kernel,
            (batch * heads * triton.cdiv(length, tile.BLOCK_M),),
            query,
            key,
            rows_or_any,
            mask,
            row_max,
            slot_f,
            slot_c,
            d_key,
            *layout,
            computed,
            **flags,
            **tile.constants(),
        )
    if power is not None:
        for x in (d_query, d_key):
            if x is not None:
                x.copy_(x.float() / power)
    of_weight = gradient_of_weight(d_weight, row_weight) if wanted.row_weight else None
    return d_query, d_key, d_value if wanted.value else None, of_weight
