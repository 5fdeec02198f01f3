"""Diagonal attention in plain PyTorch: the specification.

With P = row softmax of s_ij = scale · q_i·k_j, p_i = P_ii and out_i = w_i p_i v_i, and with dO and dp the
incoming gradients of out and p, the chain rule through log p_i = s_ii − logsumexp_j s_ij gives

    a_i  = w_i v_i·dO_i + dp_i        g_i = p_i a_i         dS_ij = g_i (δ_ij − P_ij)
    dV_i = w_i p_i dO_i               dw_i = p_i v_i·dO_i   (summed over heads for a (B, N) weight)
    dQ_i = scale Σ_j dS_ij k_j        dK_j = scale Σ_i dS_ij q_i

P is made in blocks of rows, so that no tensor of size N×N is stored. What the backward needs of a row is kept
as its maximum m_i and its sum l_i = Σ_j exp(s_ij − m_i), so that P_ij = exp(s_ij − m_i) / l_i: a logsumexp in
one fp32 number would cost ε·|logsumexp| of relative error in every P_ij, which is more than all the rest. p_i is
kept too: where it is near 1, gradients are differences that vanish, and another rounding of it would be all that is
left of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .._implementation import accumulate_dtype
from .arguments import Gradients, Inputs, Saved, Wanted

#: Scores held at a time, all batch entries and heads together: 16 MiB in fp32.
BLOCK_ELEMENTS = 1 << 22


def _row_blocks(batch_heads: int, rows: int, keys: int) -> Iterator[slice]:
    step = max(1, BLOCK_ELEMENTS // max(1, batch_heads * keys))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _take_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """The positions ``rows`` (B, K) of x (B, H, N) or (B, H, N, E)."""
    if rows is None:
        return x
    index = rows[:, None, :].expand(-1, x.shape[1], -1)
    if x.dim() == 4:
        index = index[..., None].expand(-1, -1, -1, x.shape[3])
    return x.gather(2, index)


def _put_rows(x: Tensor, rows: Tensor | None, length: int) -> Tensor:
    """The transpose of ``_take_rows``: zeros of ``length`` positions with x added at ``rows``."""
    if rows is None:
        return x
    full = x.new_zeros((*x.shape[:2], length, *x.shape[3:]))
    index = rows[:, None, :].expand(-1, x.shape[1], -1)
    if x.dim() == 4:
        index = index[..., None].expand_as(x)
    return full.scatter_add_(2, index, x)


class _Rows:
    """Inputs in the dtype of accumulation, cut to the rows that are computed; masked positions hold zeros."""

    def __init__(self, inputs: Inputs):
        query, key, value, self.scale, row_weight, rows, self.key_mask = inputs
        key_mask = self.key_mask
        batch, heads, length, _ = query.shape
        dtype = accumulate_dtype(query.dtype)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if key_mask is not None:
            masked = ~key_mask[:, None, :, None]
            query, key, value = (x.masked_fill(masked, 0) for x in (query, key, value))
        weight = query.new_ones((1, 1, 1)) if row_weight is None else row_weight.to(dtype)
        weight = (weight[:, None] if weight.dim() == 2 else weight).expand(batch, heads, length)

        self.key = key
        self.query = _take_rows(query, rows)
        self.value = _take_rows(value, rows)
        self.weight = _take_rows(weight, rows)  # [B, H, K]
        positions = torch.arange(length, device=query.device) if rows is None else rows
        self.positions = positions.expand(batch, -1)  # [B, K]
        self.masked = None if key_mask is None else ~key_mask.gather(1, self.positions)[:, None]  # [B, 1, K]

    def __len__(self) -> int:
        return self.query.shape[2]

    def blocks(self) -> Iterator[slice]:
        batch, heads, length, _ = self.key.shape
        return _row_blocks(batch * heads, len(self), length)

    def scores(self, block: slice) -> Tensor:
        scores = torch.matmul(self.query[:, :, block], self.key.transpose(-2, -1)).mul_(self.scale)
        if self.key_mask is not None:
            scores.masked_fill_(~self.key_mask[:, None, None, :], -torch.inf)
        return scores  # [B, H, BLOCK, N]

    def diagonal_index(self, block: slice) -> Tensor:
        return self.positions[:, None, block, None].expand(
            -1, self.query.shape[1], -1, -1
        )  # [B, H, BLOCK, 1]


def forward(inputs: Inputs, keep: bool) -> tuple[Tensor, Saved]:
    """(out (B, H, K, Ev), what the backward needs); ``keep`` the exponentials too."""
    x = _Rows(inputs)
    row_max = x.query.new_empty(x.query.shape[:3])
    row_sum = torch.empty_like(row_max)
    weights = torch.empty_like(row_max)
    kept = row_max.new_empty((*row_max.shape, x.key.shape[2])) if keep else None
    for block in x.blocks():
        scores = x.scores(block)
        maximum = scores.amax(3)
        maximum.masked_fill_(maximum == -torch.inf, 0)
        exponentials = scores.sub_(maximum[..., None]).exp_()
        total = exponentials.sum(3)
        total.masked_fill_(total == 0, 1)
        diagonal = exponentials.gather(3, x.diagonal_index(block)).squeeze(3)
        row_max[:, :, block], row_sum[:, :, block] = maximum, total
        weights[:, :, block] = diagonal / total
        if kept is not None:
            kept[:, :, block] = exponentials
    if x.masked is not None:
        weights.masked_fill_(x.masked, 0)
    out = (x.weight * weights)[..., None] * x.value
    if x.masked is not None:
        out.masked_fill_(x.masked[..., None], 0)
    return out.to(inputs.value.dtype), Saved(weights, row_max, row_sum, kept)


def backward(
    grad_out: Tensor | None, grad_weights: Tensor | None, inputs: Inputs, saved: Saved, wanted: Wanted
) -> Gradients:
    """(dQ, dK, dV, dw), each of the shape and dtype of its input, or None where it is not wanted."""
    x = _Rows(inputs)
    query, key, value, scale, row_weight, rows, _ = inputs
    weights, row_max, row_sum, kept = saved
    length = key.shape[2]
    grad_out = torch.zeros_like(x.value) if grad_out is None else grad_out.to(x.value.dtype)
    grad_weights = torch.zeros_like(x.weight) if grad_weights is None else grad_weights
    if x.masked is not None:
        grad_out = grad_out.masked_fill(x.masked[..., None], 0)
        grad_weights = grad_weights.masked_fill(x.masked, 0)
    value_grad = (x.value * grad_out).sum(3)  # v_i·dO_i, [B, H, K]
    a = x.weight * value_grad + grad_weights
    if x.masked is not None:
        a = a.masked_fill(x.masked, 0)  # a weight that is infinite there must not count either

    d_query = torch.empty_like(x.query, memory_format=torch.contiguous_format)
    d_key = torch.zeros_like(x.key, memory_format=torch.contiguous_format)
    for block in x.blocks() if wanted.query or wanted.key else ():
        q, diagonal = x.query[:, :, block], x.diagonal_index(block)
        if kept is not None:
            d_scores = kept[:, :, block] / row_sum[:, :, block, None]  # P
        else:
            d_scores = x.scores(block).sub_(row_max[:, :, block, None]).exp_()
            d_scores /= row_sum[:, :, block, None]
        p, a_block = weights[:, :, block, None], a[:, :, block, None]
        g = p * a_block
        d_scores.mul_(-g).scatter_(3, diagonal, p * (a_block - g))  # p (a − g) = g (1 − p), rounded less
        if wanted.query:
            d_query[:, :, block] = torch.matmul(d_scores, x.key)
        if wanted.key:
            d_key += torch.matmul(d_scores.transpose(-2, -1), q)

    d_value, d_weight = None, None
    if wanted.value:
        d_value = (x.weight * weights)[..., None] * grad_out
        if x.masked is not None:
            d_value = d_value.masked_fill(x.masked[..., None], 0)
        d_value = _put_rows(d_value, rows, length).to(value.dtype)
    if wanted.row_weight and row_weight is not None:
        d_weight = _put_rows(weights * value_grad, rows, length)
        d_weight = (d_weight.sum(1) if row_weight.dim() == 2 else d_weight).to(row_weight.dtype)
    return (
        _put_rows(d_query.mul_(scale), rows, length).to(query.dtype) if wanted.query else None,
        d_key.mul_(scale).to(key.dtype) if wanted.key else None,
        d_value,
        d_weight,
    )
