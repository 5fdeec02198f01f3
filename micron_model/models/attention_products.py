"""Self-attention by torch's flash kernel, by plain matrices, or by oneDNN: forward and backward of each.

All map qkv (B, N, 3, H, E) to out (B, N, H·E). With P = softmax(QKᵀ/√E) and out = PV the gradients of a head are

    dV = Pᵀ dO        dS = P (dP − Σ_j P dP)  by row, dP = dO Vᵀ        dQ = dS K / √E        dK = dSᵀ Q / √E

A forward that is told to keep returns a state that spares its backward some work. A backward that is given an empty
one does that work again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Forward(Protocol):
    def __call__(self, qkv: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        """(out, state), contiguous."""
        ...


class Backward(Protocol):
    def __call__(self, grad: Tensor, qkv: Tensor, out: Tensor, state: Tensor) -> Tensor:
        """The gradient of qkv, contiguous."""
        ...


class Kind(NamedTuple):
    forward: Forward
    backward: Backward


#: P is kept up to N/E of this: then a block of a transformer whose MLP is four times as wide keeps twice as much.
KEPT = 16
#: Scores that are computed at once, unless one head has more: 12 MB.
GROUP = 3 << 20
#: Numbers in a line of the cache.
LINE = 16


def split(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (B, H, N, E)."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    return query, key, value


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Of (B, H, M, E) to (B, H, N, E) by operators that torch differentiates and transforms in every way."""
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    return scores.softmax(-1) @ value


def plain_attention_backward(grad: Tensor, qkv: Tensor) -> Tensor:
    """The gradient of qkv, by the same operators."""
    query, key, value = split(qkv)
    scale = query.shape[-1] ** -0.5
    grad_out = grad.unflatten(2, qkv.shape[3:]).transpose(1, 2)
    weights = (query @ key.transpose(-2, -1) * scale).softmax(-1)
    grad_weights = grad_out @ value.transpose(-2, -1)
    expected = (weights * grad_weights).sum(-1, keepdim=True)
    grad_scores = weights * (grad_weights - expected) * scale
    grads = (grad_scores @ key, grad_scores.transpose(-2, -1) @ query, weights.transpose(-2, -1) @ grad_out)
    return torch.stack(grads).permute(1, 3, 0, 2, 4).contiguous()


def empty_state(qkv: Tensor, kind: str) -> Tensor:
    """Room for what ``kind`` keeps; empty where it keeps nothing, as "" does."""
    batch, length, _, heads, width = qkv.shape
    if kind == "flash":
        dtype = torch.promote_types(qkv.dtype, torch.float32)
        return qkv.new_empty((batch, length, heads), dtype=dtype)
    if kind == "matrices" and length <= KEPT * width:
        return qkv.new_empty((batch, heads, length, _padded(length)))
    return qkv.new_empty((0,))


def _flash(qkv: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*split(qkv))


def _flash_forward(qkv: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    out, logsumexp = _flash(qkv)
    out = out.transpose(1, 2).flatten(2).contiguous()
    return out, logsumexp.transpose(1, 2).contiguous() if keep else empty_state(qkv, "")


def _flash_backward(grad: Tensor, qkv: Tensor, out: Tensor, state: Tensor) -> Tensor:
    query, key, value = split(qkv)
    logsumexp = state.transpose(1, 2) if state.numel() else _flash(qkv)[1]
    grad_out, out = (x.unflatten(2, qkv.shape[3:]).transpose(1, 2) for x in (grad, out))
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, query, key, value, out, logsumexp, 0.0, False
    )
    return torch.stack(grads).permute(1, 3, 0, 2, 4).contiguous()


def _padded(length: int) -> int:
    """Numbers from one row of scores to the next: MKL writes rows that begin a line of the cache faster by a third."""
    return math.ceil(length / LINE) * LINE


def _groups(qkv: Tensor) -> Iterator[tuple[slice, slice]]:
    """Samples and heads that are computed at once: enough to share out among threads, little enough to cache."""
    batch, length, _, heads, _ = qkv.shape
    fit = max(1, GROUP // (length * _padded(length)))
    some, samples = min(heads, fit), max(1, fit // heads)
    for sample in range(0, batch, samples):
        for head in range(0, heads, some):
            yield slice(sample, sample + samples), slice(head, head + some)


def _dense(x: Tensor, rows: int) -> Tensor:
    """(s, N, k, h, E) as k dense matrices a head, (k, s·h, rows, E), with rows of 0 below the N."""
    samples, length, count, heads, width = x.shape
    dense = x.new_empty(count, samples, heads, rows, width)
    dense[..., :length, :] = x.permute(2, 0, 3, 1, 4)
    dense[..., length:, :] = 0
    return dense.flatten(1, 2)


def _softmax_of_scores(query: Tensor, key: Tensor, weights: Tensor) -> None:
    """P (g, N, padded) of query (g, N, E) and key (g, padded, E), 0 where there is no key."""
    torch.bmm(query, key.transpose(1, 2), out=weights)
    weights[..., weights.shape[1] :] = -torch.inf
    torch.softmax(weights, 2, out=weights)


def _matrices_forward(qkv: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    batch, length, _, heads, width = qkv.shape
    padded = _padded(length)
    out = qkv.new_empty(batch, length, heads, width)
    state = empty_state(qkv, "matrices" if keep else "")
    weights = qkv.new_empty(0)
    for group in _groups(qkv):
        query, key, value = _dense(qkv[group[0], :, :, group[1]], padded)
        query = query[:, :length].mul_(width**-0.5)
        shape = (len(query), length, padded)
        weights = state[group].view(shape) if state.numel() else weights.resize_(shape)
        _softmax_of_scores(query, key, weights)
        target = out[group[0], :, group[1]].transpose(1, 2)
        target.copy_((weights @ value).view(target.shape))
    return out.flatten(2), state


def _matrices_backward(grad: Tensor, qkv: Tensor, out: Tensor, state: Tensor) -> Tensor:
    _, length, _, heads, width = qkv.shape
    padded, scale = _padded(length), width**-0.5
    grads = qkv.new_empty(qkv.shape)
    grads_out = grad.unflatten(2, (1, heads, width))
    weights, grad_scores = qkv.new_empty(0), qkv.new_empty(0)
    for samples, some in _groups(qkv):
        query, key, value = _dense(qkv[samples, :, :, some], padded)
        query = query[:, :length].mul_(scale)
        (grad_out,) = _dense(grads_out[samples, :, :, some], length)
        shape = (len(query), length, padded)
        if state.numel():
            weights = state[samples, some].view(shape)
        else:
            _softmax_of_scores(query, key, weights.resize_(shape))
        torch.bmm(grad_out, value.transpose(1, 2), out=grad_scores.resize_(shape))
        torch.ops.aten._softmax_backward_data(grad_scores, weights, 2, qkv.dtype, grad_input=grad_scores)
        of_group = (
            (grad_scores @ key).mul_(scale),
            (grad_scores.transpose(1, 2) @ query)[:, :length],
            (weights.transpose(1, 2) @ grad_out)[:, :length],
        )
        target = grads[samples, :, :, some].permute(2, 0, 3, 1, 4)  # [3, samples, heads, N, E]
        for x, into in zip(of_group, target, strict=True):
            into.copy_(x.unflatten(0, into.shape[:2]))
    return grads


def _product(x: Tensor, y: Tensor) -> Tensor:
    """x (M, K) times y (N, K) transposed by oneDNN, which wants y dense or the transpose of what is."""
    return torch.ops.mkldnn._linear_pointwise(x, y, None, "none", [], "")


def _heads(qkv: Tensor, sample: int) -> Tensor:
    """Query, key and value of a sample, each head dense: (H, 3, N, E)."""
    return qkv[sample].permute(2, 1, 0, 3).contiguous()


def _onednn_weights(query: Tensor, key: Tensor) -> Tensor:
    scores = _product(query * query.shape[1] ** -0.5, key)
    return torch.softmax(scores, 1, out=scores)


def _onednn_forward(qkv: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    batch, length, _, heads, width = qkv.shape
    out = qkv.new_empty(batch, length, heads, width)
    for sample in range(batch):
        for head, (query, key, value) in enumerate(_heads(qkv, sample)):
            out[sample, :, head] = _product(_onednn_weights(query, key), value.t())
    return out.flatten(2), empty_state(qkv, "")


def _onednn_backward(grad: Tensor, qkv: Tensor, out: Tensor, state: Tensor) -> Tensor:
    batch, _, _, heads, width = qkv.shape
    scale = width**-0.5
    grads = qkv.new_empty(qkv.shape)
    for sample in range(batch):
        grads_out = grad[sample].unflatten(1, (heads, width)).transpose(0, 1).contiguous()
        for head, (query, key, value) in enumerate(_heads(qkv, sample)):
            grad_out = grads_out[head]
            weights = _onednn_weights(query, key)
            grads[sample, :, 2, head] = _product(weights.t(), grad_out.t())
            scores = _product(grad_out, value)
            torch.ops.aten._softmax_backward_data(scores, weights, 1, qkv.dtype, grad_input=scores)
            grads[sample, :, 0, head] = _product(scores, key.t()).mul_(scale)
            grads[sample, :, 1, head] = _product(scores.t(), query.t()).mul_(scale)
    return grads


ATTENTION = {
    "flash": Kind(_flash_forward, _flash_backward),
    "matrices": Kind(_matrices_forward, _matrices_backward),
    "onednn": Kind(_onednn_forward, _onednn_backward),
}
