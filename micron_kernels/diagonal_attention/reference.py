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

The derivatives of both in a direction (dq, dk, dv, dw; and of dO and dp), with dS_ij = scale (dq_i·k_j + q_i·dk_j)
and C_ij = δ_ij − P_ij, whose C_ii is the sum of the other P_ij, not 1 − p_i:

    u_i   = d log p_i = Σ_j C_ij dS_ij = scale (dq_i·Σ_j C_ij k_j + q_i·Σ_j C_ij dk_j)
    d out = d(w_i p_i v_i)                             d p_i = p_i u_i
    d g_i = p_i (u_i a_i + d a_i)                      d P_ij = P_ij (dS_ij − Σ_k P_ik dS_ik)
    d dQ_i = scale Σ_j (d G_ij k_j + G_ij dk_j)        G_ij = g_i C_ij, d G_ij = d g_i C_ij − g_i d P_ij
    d dK_j = scale Σ_i (d G_ij q_i + G_ij dq_i)        d dV and d dw by the product rule

Three and seven products of the size N²·E, in blocks of rows like the rest. The gradient of the backward is made of the
same two, since second derivatives are symmetric: with incoming gradients c of (dQ, dK, dV, dw), that of (dO, dp) is
the change of (out, p) in the direction c, and that of (q, k, v, w) the change of the backward in the direction c.
They are made of differentiable operations, so that a third order exists, at the memory of the N×N matrix.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .._implementation import accumulate_dtype
from .arguments import Gradients, Inputs, Saved, Tangents, Wanted

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
    index = rows[:, None, :].expand(-1, x.shape[1], -1)
    if x.dim() == 4:
        index = index[..., None].expand_as(x)
    return x.new_zeros((*x.shape[:2], length, *x.shape[3:])).scatter_add(2, index, x)


def _cut(x: Tensor, block: slice) -> Tensor:
    """x[:, :, block], which may be all of x: ``torch.autograd.functional`` cannot map the alias that it then is."""
    return x.narrow(2, block.start, block.stop - block.start)


class _Rows:
    """Inputs in the dtype of accumulation, cut to the rows that are computed; masked positions hold zeros."""

    def __init__(self, inputs: Inputs):
        query, key, value, self.scale, row_weight, self.rows, self.key_mask = inputs
        self.shape = batch, heads, length, _ = query.shape
        self.dtype = accumulate_dtype(query.dtype)
        positions = torch.arange(length, device=query.device) if self.rows is None else self.rows
        self.positions = positions.expand(batch, -1)  # [B, K]
        self.masked = None  # [B, 1, K]
        if self.key_mask is not None:
            self.masked = ~self.key_mask.gather(1, self.positions)[:, None]
        self.key = self.of_keys(key)
        self.query = self.of_rows(query)
        self.value = self.of_rows(value)
        if row_weight is None:
            row_weight = query.new_ones((1, 1, 1), dtype=self.dtype).expand(batch, heads, length)
        self.weight = self.of_rows(row_weight)  # [B, H, K]

    def of_keys(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if x.dim() == 2:
            x = x[:, None].expand(self.shape[:3])
        if self.key_mask is None:
            return x
        masked = ~self.key_mask[:, None]
        return x.masked_fill(masked[..., None] if x.dim() == 4 else masked, 0)

    def of_rows(self, x: Tensor) -> Tensor:
        return _take_rows(self.of_keys(x), self.rows)

    def gradients(self, grad_out: Tensor | None, grad_weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Incoming gradients of the rows; masked rows hold zeros."""
        grad_out = torch.zeros_like(self.value) if grad_out is None else grad_out.to(self.dtype)
        grad_weights = torch.zeros_like(self.weight) if grad_weights is None else grad_weights
        if self.masked is None:
            return grad_out, grad_weights
        return grad_out.masked_fill(self.masked[..., None], 0), grad_weights.masked_fill(self.masked, 0)

    def blocks(self) -> Iterator[slice]:
        batch, heads, length, _ = self.shape
        return _row_blocks(batch * heads, self.query.shape[2], length)

    def scores(self, block: slice) -> Tensor:
        scores = torch.matmul(_cut(self.query, block), self.key.transpose(-2, -1)) * self.scale
        if self.key_mask is not None:
            scores = scores.masked_fill(~self.key_mask[:, None, None, :], -torch.inf)
        return scores  # [B, H, BLOCK, N]

    def diagonal_index(self, block: slice) -> Tensor:
        return self.positions[:, None, block, None].expand(-1, self.shape[1], -1, -1)  # [B, H, BLOCK, 1]


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
    return out.to(inputs.value.dtype), Saved(weights, row_max, row_sum, kept)


def backward(
    grad_out: Tensor | None, grad_weights: Tensor | None, inputs: Inputs, saved: Saved, wanted: Wanted
) -> Gradients:
    """(dQ, dK, dV, dw), each of the shape and dtype of its input, or None where it is not wanted."""
    x = _Rows(inputs)
    query, key, value, scale, row_weight, rows, _ = inputs
    weights, row_max, row_sum, kept = saved
    length = key.shape[2]
    grad_out, grad_weights = x.gradients(grad_out, grad_weights)
    value_grad = (x.value * grad_out).sum(3)  # v_i·dO_i, [B, H, K]
    a = x.weight * value_grad + grad_weights

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
    if x.masked is not None:  # such a position has no part in any score, but 0 · NaN of another one is not 0
        d_query.masked_fill_(x.masked[..., None], 0)
        d_key = x.of_keys(d_key)

    d_value, d_weight = None, None
    if wanted.value:
        d_value = _put_rows((x.weight * weights)[..., None] * grad_out, rows, length).to(value.dtype)
    if wanted.row_weight and row_weight is not None:
        d_weight = _put_rows(weights * value_grad, rows, length)
        d_weight = (d_weight.sum(1) if row_weight.dim() == 2 else d_weight).to(row_weight.dtype)
    return (
        _put_rows(d_query.mul_(scale), rows, length).to(query.dtype) if wanted.query else None,
        d_key.mul_(scale).to(key.dtype) if wanted.key else None,
        d_value,
        d_weight,
    )


def _tangent_block(x: _Rows, block: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(P, δ − P, where j = i, p) of a block of rows; a row without a key has zeros."""
    scores = x.scores(block)
    nothing = (scores == -torch.inf).all(3, keepdim=True)
    if x.masked is not None:
        nothing = nothing | _cut(x.masked, block)[..., None]
    probabilities = scores.masked_fill(nothing, 0).softmax(3).masked_fill(nothing, 0)
    is_diagonal = x.positions.narrow(1, block.start, block.stop - block.start)[
        :, None, :, None
    ] == torch.arange(x.shape[2], device=scores.device)
    others = probabilities.masked_fill(is_diagonal, 0)
    centred = torch.where(is_diagonal, others.sum(3, keepdim=True), -others)  # 1 − p, rounded less
    return probabilities, centred, is_diagonal, (probabilities - others).sum(3)


def forward_tangent(inputs: Inputs, tangents: Tangents) -> tuple[Tensor, Tensor]:
    """(d out, d p) for the change ``tangents`` of the inputs."""
    x = _Rows(inputs)
    t_query, t_value, t_weight = (
        None if t is None else x.of_rows(t) for t in (tangents.query, tangents.value, tangents.row_weight)
    )
    t_key = None if tangents.key is None else x.of_keys(tangents.key)
    weights, changes = [], []
    for block in x.blocks():
        q = _cut(x.query, block)
        _, centred, _, p = _tangent_block(x, block)
        log_change = torch.zeros_like(p)
        if t_query is not None:
            log_change = log_change + (_cut(t_query, block) * torch.matmul(centred, x.key)).sum(3)
        if t_key is not None:
            log_change = log_change + (q * torch.matmul(centred, t_key)).sum(3)
        weights.append(p)
        changes.append(p * log_change * x.scale)
    p, t_weights = torch.cat(weights, 2), torch.cat(changes, 2)
    factor = x.weight * t_weights
    if t_weight is not None:
        factor = factor + t_weight * p
    t_out = factor[..., None] * x.value
    if t_value is not None:
        t_out = t_out + (x.weight * p)[..., None] * t_value
    return t_out.to(inputs.value.dtype), t_weights


def backward_tangent(
    grad_out: Tensor | None,
    grad_weights: Tensor | None,
    inputs: Inputs,
    t_grad_out: Tensor | None,
    t_grad_weights: Tensor | None,
    tangents: Tangents,
    wanted: Wanted,
) -> Gradients:
    """The change of (dQ, dK, dV, dw) for that of the incoming gradients and of the inputs."""
    x = _Rows(inputs)
    rows, length, row_weight = inputs.rows, x.shape[2], inputs.row_weight
    grad_out, grad_weights = x.gradients(grad_out, grad_weights)
    t_grad_out, t_grad_weights = x.gradients(t_grad_out, t_grad_weights)
    t_query = None if tangents.query is None else x.of_rows(tangents.query)
    t_key = None if tangents.key is None else x.of_keys(tangents.key)
    t_value = torch.zeros_like(x.value) if tangents.value is None else x.of_rows(tangents.value)
    t_weight = torch.zeros_like(x.weight) if tangents.row_weight is None else x.of_rows(tangents.row_weight)

    value_grad = (x.value * grad_out).sum(3)
    t_value_grad = (t_value * grad_out + x.value * t_grad_out).sum(3)
    a = x.weight * value_grad + grad_weights
    t_a = t_weight * value_grad + x.weight * t_value_grad + t_grad_weights

    weights, changes, d_query, d_key = [], [], [], torch.zeros_like(x.key)
    for block in x.blocks():
        q = _cut(x.query, block)
        probabilities, centred, is_diagonal, p = _tangent_block(x, block)
        t_scores = torch.zeros_like(probabilities)
        if t_query is not None:
            t_scores = t_scores + torch.matmul(_cut(t_query, block), x.key.transpose(-2, -1)) * x.scale
        if t_key is not None:
            t_scores = t_scores + torch.matmul(q, t_key.transpose(-2, -1)) * x.scale
        log_change = (centred * t_scores).sum(3, keepdim=True)
        t_log = t_scores - (probabilities * t_scores).sum(3, keepdim=True)
        t_log = torch.where(is_diagonal, log_change, t_log)  # of P: Σ_j (δ − P) dS_ij, rounded less
        p, a_block = p[..., None], _cut(a, block)[..., None]
        g = p * a_block
        t_g = p * (log_change * a_block + _cut(t_a, block)[..., None])
        t_d_scores = t_g * centred - g * probabilities * t_log
        if wanted.query:
            d_block = torch.matmul(t_d_scores, x.key)
            d_query.append(d_block if t_key is None else d_block + torch.matmul(g * centred, t_key))
        if wanted.key:
            d_key = d_key + torch.matmul(t_d_scores.transpose(-2, -1), q)
            if t_query is not None:
                d_key = d_key + torch.matmul((g * centred).transpose(-2, -1), _cut(t_query, block))
        weights.append(p.squeeze(3))
        changes.append((p * log_change).squeeze(3))

    p, t_weights = torch.cat(weights, 2), torch.cat(changes, 2)
    d_value, d_weight = None, None
    if wanted.value:
        factor = t_weight * p + x.weight * t_weights
        d_value = factor[..., None] * grad_out + (x.weight * p)[..., None] * t_grad_out
        d_value = _put_rows(d_value, rows, length).to(inputs.value.dtype)
    if wanted.row_weight and row_weight is not None:
        d_weight = _put_rows(t_weights * value_grad + p * t_value_grad, rows, length)
        d_weight = (d_weight.sum(1) if row_weight.dim() == 2 else d_weight).to(row_weight.dtype)
    return (
        _put_rows(torch.cat(d_query, 2) * x.scale, rows, length).to(inputs.query.dtype)
        if wanted.query
        else None,
        (d_key * x.scale).to(inputs.key.dtype) if wanted.key else None,
        d_value,
        d_weight,
    )
