"""Linear layers and attention in fp32 on a CPU, by oneDNN, where torch's own products are slow.

torch gives them to MKL, which takes AVX-512 on Intel's processors alone. Measured on one thread of an AMD EPYC
(Zen 5), 785 × 4 tokens of width 512: MKL 100 GFLOP/s, oneDNN 170 to 220, the processor's peak 250. On an Intel Xeon
torch's own are as fast or faster, so nothing here is used there.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _is_faster() -> bool:
    """Whether MKL would leave half of this CPU unused."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (cpuinfo.read_text() if cpuinfo.exists() else platform.processor())


IS_FASTER = _is_faster()
#: N·E from which attention a head at a time is faster: measured as 1.06 times at 197 · 64, 0.88 times at 257 · 32.
SMALLEST_HEAD = 12_000


def _serves(x: Tensor) -> bool:
    return (
        IS_FASTER
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def _product(x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) times y (N, K) transposed, plus bias (N,).

    y is dense or the transpose of what is: one with gaps would send oneDNN to a loop without vectors.
    """
    return torch.ops.mkldnn._linear_pointwise(x, y, bias, "none", [], "")


@torch.library.custom_op("micron_model::onednn_linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:  # noqa: UP045  (read by torch)
    return _product(x, weight, bias)


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _save_for_linear(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.biased = bias is not None


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    grad_rows, rows = grad.flatten(0, -2).contiguous(), x.flatten(0, -2).contiguous()
    grad_x = _linear(grad, weight.t(), None) if ctx.needs_input_grad[0] else None
    grad_weight = None
    if ctx.needs_input_grad[1]:  # the first operand is copied to be transposed: the narrower one
        if rows.shape[1] < grad_rows.shape[1]:
            grad_weight = _linear(rows.t(), grad_rows.t(), None).t()
        else:
            grad_weight = _linear(grad_rows.t(), rows.t(), None)
    return grad_x, grad_weight, grad_rows.sum(0) if ctx.biased else None


_linear.register_autograd(_linear_backward, setup_context=_save_for_linear)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: x (..., K), weight (N, K), bias (N,); the same function up to the order of its sums."""
    if _serves(x) and weight.dtype == torch.float32 and weight.is_contiguous():
        return _linear(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """``nn.Linear`` through :func:`linear`: the same parameters under the same names."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def _heads(qkv: Tensor, sample: int) -> Tensor:
    """Query, key and value of a sample, each head dense: (H, 3, N, E)."""
    return qkv[sample].permute(2, 1, 0, 3).contiguous()


def _weights(query: Tensor, key: Tensor) -> Tensor:
    """Softmax of the scores (N, N) of one head; they stay in the cache."""
    scores = _product(query * query.shape[1] ** -0.5, key)
    return torch.softmax(scores, 1, out=scores)


@torch.library.custom_op("micron_model::onednn_attention", mutates_args=())
def _attention(qkv: Tensor) -> Tensor:
    batch, length, _, heads, width = qkv.shape
    out = qkv.new_empty(batch, length, heads, width)
    for sample in range(batch):
        for head, (query, key, value) in enumerate(_heads(qkv, sample)):
            out[sample, :, head] = _product(_weights(query, key), value.t())
    return out.flatten(2)


@_attention.register_fake
def _(qkv: Tensor) -> Tensor:
    return qkv.new_empty(*qkv.shape[:2], qkv.shape[3] * qkv.shape[4])


@torch.library.custom_op("micron_model::onednn_attention_backward", mutates_args=())
def _attention_backward(qkv: Tensor, out: Tensor, grad: Tensor) -> Tensor:
    """Gradient of qkv. P softmax, O = PV: dV = PᵀdO, dS = P(dO Vᵀ − Σ O·dO), dQ = scale dS K, dK = scale dSᵀQ."""
    batch, _, _, heads, width = qkv.shape
    scale = width**-0.5
    grad_qkv = torch.empty_like(qkv)
    grad_heads = grad.unflatten(2, (heads, width))
    expected = (out * grad).unflatten(2, (heads, width)).sum(3)
    for sample in range(batch):
        grads_out = grad_heads[sample].transpose(0, 1).contiguous()
        for head, (query, key, value) in enumerate(_heads(qkv, sample)):
            grad_out = grads_out[head]
            weights = _weights(query, key)
            grad_qkv[sample, :, 2, head] = _product(weights.t(), grad_out.t())
            scores = _product(grad_out, value).sub_(expected[sample, :, head, None]).mul_(weights)
            grad_qkv[sample, :, 0, head] = _product(scores, key.t()).mul_(scale)
            grad_qkv[sample, :, 1, head] = _product(scores.t(), query.t()).mul_(scale)
    return grad_qkv


@_attention_backward.register_fake
def _(qkv: Tensor, out: Tensor, grad: Tensor) -> Tensor:
    return torch.empty_like(qkv)


def _save_for_attention(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


_attention.register_autograd(
    lambda ctx, grad: _attention_backward(*ctx.saved_tensors, grad), setup_context=_save_for_attention
)


def attention(qkv: Tensor) -> Tensor:
    """Multi-head attention: qkv (B, N, 3, H, E) to (B, N, H·E), scale 1/√E.

    By oneDNN a head at a time, its N×N scores in the cache: 1.6 times as fast, forward and backward, as the flash
    attention that torch has for CPUs, at N = 785, E = 128 on the processor above. Small heads go to the latter.
    """
    if _serves(qkv) and qkv.shape[1] * qkv.shape[4] >= SMALLEST_HEAD:
        return _attention(qkv)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
