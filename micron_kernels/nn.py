"""Modules built on the operators, and the drop-in for models that already have a diagonal attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .diagonal_attention.api import diagonal_attention

_LINEARS = ("to_q", "to_k", "to_v", "proj")


class DiagonalMicroAttention(nn.Module):
    """Diagonal micro-attention with its projections: ``proj(w · p · to_v(value))``.

    p is the diagonal of the row softmax between ``to_q(query)`` and ``to_k(key)``, see
    :func:`micron_kernels.diagonal_attention`.

    Args:
        dim: width of the tokens; a multiple of ``num_heads``.
        num_heads: H; μ-BERT has one head of width ``dim``.
        qkv_bias: whether ``to_q``, ``to_k`` and ``to_v`` have a bias; ``proj`` always has one.
    """

    def __init__(self, dim: int, num_heads: int = 1, qkv_bias: bool = True):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}")
        self.dim = dim
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.to_q = nn.Linear(dim, dim, bias=qkv_bias)
        self.to_k = nn.Linear(dim, dim, bias=qkv_bias)
        self.to_v = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    @property
    def output_bias(self) -> Tensor:
        """The output (dim,) of a position of weight 0."""
        return self.proj.bias

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # [B, H, N, dim/H]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        row_weight: Tensor | None = None,
        rows: Tensor | None = None,
        *,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend from ``query`` to ``key`` and weight ``value``; all (B, N, dim).

        ``row_weight`` (B, N) or (B, H, N) and ``rows`` (B, K) are those of
        :func:`micron_kernels.diagonal_attention`. Returns (B, N, dim), or (B, K, dim) with ``rows``; with
        ``return_weights`` also p (B, H, N) or (B, H, K) in fp32.
        """
        out, weights = diagonal_attention(
            self._split_heads(self.to_q(query)),
            self._split_heads(self.to_k(key)),
            self._split_heads(self.to_v(value)),
            scale=self.scale,
            row_weight=row_weight,
            rows=rows,
            return_weights=True,
        )
        out = self.proj(out.transpose(1, 2).flatten(2))
        return (out, weights) if return_weights else out

    @torch.no_grad()
    def fold(self) -> FoldedDiagonalMicroAttention:
        """The same function with two projections in place of four, for inference. One head only.

        Exact up to rounding, because only the diagonal is wanted and a row softmax ignores what is constant
        along a row::

            S = (x Wq^T + bq)(r Wk^T + bk)^T      ~  ((x Wq^T + bq) Wk) r^T
            Wo (p_i (Wv x_i + bv)) + bo           =  p_i ((Wo Wv) x_i + Wo bv) + bo
        """
        if self.num_heads != 1:
            raise ValueError(f"num_heads={self.num_heads}; only a single head can be folded")

        def wide(linear: nn.Linear) -> tuple[Tensor, Tensor]:
            bias = linear.weight.new_zeros(self.dim) if linear.bias is None else linear.bias
            return linear.weight.double(), bias.double()

        (w_q, b_q), (w_k, _), (w_v, b_v), (w_o, _) = (wide(getattr(self, name)) for name in _LINEARS)
        folded = FoldedDiagonalMicroAttention(self.dim, self.scale).to(self.proj.weight)
        folded.query_projection.weight.copy_(w_k.T @ w_q)
        folded.query_projection.bias.copy_(b_q @ w_k)
        folded.value_projection.weight.copy_(w_o @ w_v)
        folded.value_projection.bias.copy_(w_o @ b_v)
        folded.bias.copy_(self.proj.bias)
        return folded.train(self.training).requires_grad_(False)


class FoldedDiagonalMicroAttention(nn.Module):
    """What :meth:`DiagonalMicroAttention.fold` returns: the same call, half the projections."""

    def __init__(self, dim: int, scale: float):
        super().__init__()
        self.scale = scale
        self.query_projection = nn.Linear(dim, dim)
        self.value_projection = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros(dim))

    @property
    def output_bias(self) -> Tensor:
        """The output (dim,) of a position of weight 0."""
        return self.bias

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        row_weight: Tensor | None = None,
        rows: Tensor | None = None,
        *,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As :meth:`DiagonalMicroAttention.forward`."""
        out, weights = diagonal_attention(
            self.query_projection(query)[:, None],
            key.to(self.query_projection.weight.dtype)[:, None],
            self.value_projection(value)[:, None],
            scale=self.scale,
            row_weight=row_weight,
            rows=rows,
            return_weights=True,
        )
        out = out[:, 0] + self.bias
        return (out, weights) if return_weights else out


class _ListCall(DiagonalMicroAttention):
    """Ours behind the call convention of the modules that :func:`replace_diagonal_attention` finds."""

    def forward(self, qkv: list[Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        query, key, value = qkv
        out, weights = super().forward(query, key, value, return_weights=True)
        return out, weights[..., None].to(out.dtype)


def _is_diagonal_attention(module: nn.Module) -> bool:
    return (
        all(isinstance(getattr(module, name, None), nn.Linear) for name in _LINEARS)
        and isinstance(getattr(module, "num_heads", None), int)
        and bool(getattr(module, "diag_att", False))
    )


def _list_call_from(path: str, module: Any) -> _ListCall:
    for name, child in module.named_modules():
        if isinstance(child, nn.Dropout) and child.p > 0:
            raise ValueError(f"{path}.{name} drops out with p={child.p}; set it to 0 before replacing {path}")
    with torch.device("meta"):  # its own weights are never made: it takes over those it finds
        ours = _ListCall(module.to_q.in_features, module.num_heads)
    ours.scale = float(getattr(module, "scale", ours.scale))
    for name in _LINEARS:
        setattr(ours, name, getattr(module, name))
    return ours.train(module.training)


def replace_diagonal_attention(model: nn.Module) -> list[str]:
    """Swap ours in, in place, for every diagonal attention in ``model``, keeping its weights.

    A module counts as one if it has the linear layers ``to_q``, ``to_k``, ``to_v`` and ``proj``, an int
    ``num_heads`` and a true ``diag_att``. The replacement holds the same layer objects, so that optimisers
    and state dicts go on working, and is called in the same way: one argument, the list [query, key, value],
    each (B, N, dim); it returns (output (B, N, dim), attention (B, heads, N, 1)).

    Returns:
        The paths of the modules that were replaced.

    Raises:
        ValueError: nothing was found, ``model`` is itself such a module (nothing holds it that could be given
            another), or one of them uses dropout.
    """
    if _is_diagonal_attention(model):
        raise ValueError("model is itself a diagonal attention; pass the module that contains it")
    replaced: dict[nn.Module, _ListCall] = {}
    paths = []
    for parent_path, parent in list(model.named_modules()):
        for name, child in parent._modules.items():
            if child is None or isinstance(child, _ListCall) or not _is_diagonal_attention(child):
                continue
            path = f"{parent_path}.{name}" if parent_path else name
            if child not in replaced:
                replaced[child] = _list_call_from(path, child)
            setattr(parent, name, replaced[child])
            paths.append(path)
    if not paths:
        raise ValueError(
            f"{type(model).__name__} has no module with linear layers {', '.join(_LINEARS)}, num_heads and a "
            "true diag_att: there is nothing to replace"
        )
    return paths
