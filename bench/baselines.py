"""What a user would otherwise run. The plain formulas are those of ``micron_kernels.testing``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import flex_attention

from micron_kernels.testing import eager_diagonal_attention


def full_attention(query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
    """The diagonal of the full softmax matrix, times the values."""
    return eager_diagonal_attention(query, key, value, **options)[0]


def attention_of_rows(query: Tensor, key: Tensor, value: Tensor, rows: Tensor) -> Tensor:
    """The same at ``rows`` (B, K) alone, from a matrix of K×N."""
    query = take_rows(query, rows)
    weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
    index = rows[:, None, :, None].expand(-1, query.shape[1], -1, -1)
    return weights.gather(3, index) * take_rows(value, rows)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x (B, H, N, E) at ``rows`` (B, K)."""
    return x.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def diagonal_from_logsumexp(query: Tensor, key: Tensor, value: Tensor, logsumexp: Tensor) -> Tensor:
    """exp(s_ii − logsumexp_i) times the values, for what attention kernels return beside their output."""
    diagonal = (query.float() * key.float()).sum(-1) * query.shape[-1] ** -0.5
    weights = torch.exp(diagonal - logsumexp[..., : query.shape[2]])  # some kernels pad the rows
    return (weights[..., None] * value).to(value.dtype)


def flash_logsumexp(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Of the flash attention behind ``scaled_dot_product_attention``: on a GPU up to width 256."""
    if query.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[1]
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[1]


def efficient_logsumexp(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Of the memory-efficient attention behind ``scaled_dot_product_attention``: on a GPU, any width."""
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)[1]


def flex_diagonal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """By FlexAttention, whose logsumexp has a gradient."""
    trained = query.requires_grad
    # Where its output is used, three stages of width 512 do not fit in the shared memory of Hopper.
    options = {"fwd_num_stages": 2} if trained and query.shape[-1] > 256 else None
    out, aux = flex_attention.flex_attention(
        query, key, value, return_aux=flex_attention.AuxRequest(lse=True), kernel_options=options
    )
    diagonal = diagonal_from_logsumexp(query, key, value, aux.lse)
    return diagonal + 0 * out if trained else diagonal  # Inductor fails where the output has no gradient


def topk_scatter(scores: Tensor, k: int) -> Tensor:
    """The mask of the k highest scores by ``torch.topk`` and scatter."""
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    return mask.scatter_(1, scores.topk(k, dim=1).indices, True)


def topk_gather(tokens: Tensor, scores: Tensor, k: int) -> Tensor:
    """The k tokens of the highest scores, in the order of their scores."""
    indices = scores.topk(k, dim=1).indices
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[2]))
