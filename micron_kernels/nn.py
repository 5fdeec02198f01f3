"""Modules built on the operators, and the drop-in for models that already have a diagonal attention."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import _check
from .diagonal_attention.api import diagonal_attention

_LINEARS = ("to_q", "to_k", "to_v", "proj")


def _check_tokens(widths: dict[str, int], query: Tensor, key: Tensor, value: Tensor) -> None:
    """All three are (B, N, width) or all (N, width), each of its own width."""
    for (name, width), x in zip(widths.items(), (query, key, value), strict=True):
        layout = f"(B, N, {width}), or (N, {width}) without a batch"
        _check.tensor(name, x, dims=(2, 3), layout=layout, dtypes=_check.FLOATING)
        _check.shape(name, x, (*x.shape[:-1], width), "the width of its layer last")
        _check.shape(name, x, (*query.shape[:-1], width), "the positions of query")


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    row_weight: Tensor | None,
    rows: Tensor | None,
    key_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``diagonal_attention`` with its weights, of (B, H, N, E), or of (H, N, E) and arguments without a batch."""
    if query.dim() == 4:
        out, weights = diagonal_attention(
            query,
            key,
            value,
            scale=scale,
            row_weight=row_weight,
            rows=rows,
            key_mask=key_mask,
            return_weights=True,
        )
        return out, weights
    options = (None if x is None else x[None] for x in (row_weight, rows, key_mask))
    out, weights = _attend(query[None], key[None], value[None], scale, *options)
    return out[0], weights[0]


class DiagonalMicroAttention(nn.Module):
    """Diagonal micro-attention with its projections: ``proj(w · p · to_v(value))``.

    p is the diagonal of the row softmax between ``to_q(query)`` and ``to_k(key)``, see
    :func:`micron_kernels.diagonal_attention`.

    Args:
        dim: width of the tokens; a multiple of ``num_heads``.
        num_heads: H; μ-BERT has one head of width ``dim``.
        qkv_bias: whether ``to_q``, ``to_k`` and ``to_v`` have a bias; ``proj`` always has one.
        linear: what makes the four layers ``to_q``, ``to_k``, ``to_v`` and ``proj``, in this order, called as
            :class:`torch.nn.Linear` is.
        device, dtype: of the parameters, as in :class:`torch.nn.MultiheadAttention`.

    Raises:
        TypeError, ValueError: ``dim`` or ``num_heads`` is no int of at least 1, or one does not divide the other.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        qkv_bias: bool = True,
        *,
        linear: Callable[..., nn.Linear] = nn.Linear,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.dim = dim = _check.integer("dim", dim, 1)
        self.num_heads = _check.integer("num_heads", num_heads, 1)
        if dim % self.num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}")
        self.scale = (dim // self.num_heads) ** -0.5
        self.to_q = linear(dim, dim, bias=qkv_bias, device=device, dtype=dtype)
        self.to_k = linear(dim, dim, bias=qkv_bias, device=device, dtype=dtype)
        self.to_v = linear(dim, dim, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = linear(dim, dim, device=device, dtype=dtype)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, scale={self.scale:g}"

    @property
    def output_bias(self) -> Tensor:
        """The output (dim,) of a position of weight 0."""
        return self.proj.bias

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)  # [B, H, N, dim/H]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        row_weight: Tensor | None = None,
        rows: Tensor | None = None,
        key_mask: Tensor | None = None,
        *,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend from ``query`` to ``key`` and weight ``value``; all (B, N, dim), or all (N, dim).

        ``row_weight`` (B, N) or (B, H, N), ``rows`` (B, K) and ``key_mask`` (B, N) are those of
        :func:`micron_kernels.diagonal_attention`; True in ``key_mask`` may be attended to, the opposite of the
        ``key_padding_mask`` of :class:`torch.nn.MultiheadAttention`. Returns (B, N, dim), or (B, K, dim) with
        ``rows``; with ``return_weights`` also p (B, H, N) or (B, H, K) in fp32. Tokens without a batch take these
        without it too, and return so.

        Raises:
            TypeError, ValueError: an argument of the wrong type, dtype, shape, device or value.
        """
        layers = {"query": self.to_q, "key": self.to_k, "value": self.to_v}
        _check_tokens({name: layer.in_features for name, layer in layers.items()}, query, key, value)
        out, weights = _attend(
            self._split_heads(self.to_q(query)),
            self._split_heads(self.to_k(key)),
            self._split_heads(self.to_v(value)),
            self.scale,
            row_weight,
            rows,
            key_mask,
        )
        out = self.proj(out.transpose(-3, -2).flatten(-2))
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
        layers = [getattr(self, name) for name in _LINEARS]
        if any(layer.weight.shape != (self.dim, self.dim) for layer in layers):
            raise ValueError(f"only layers of dim={self.dim} to dim={self.dim} can be folded")

        def wide(linear: nn.Linear) -> tuple[Tensor, Tensor]:
            bias = linear.weight.new_zeros(self.dim) if linear.bias is None else linear.bias
            return linear.weight.double(), bias.double()

        (w_q, b_q), (w_k, _), (w_v, b_v), (w_o, _) = map(wide, layers)
        weight = self.proj.weight
        empty = FoldedDiagonalMicroAttention(self.dim, self.scale, device="meta", dtype=weight.dtype)
        folded = empty.to_empty(device=weight.device)  # nothing is drawn: fold() leaves the generator alone
        folded.query_projection.weight.copy_(w_k.T @ w_q)
        folded.query_projection.bias.copy_(b_q @ w_k)
        folded.value_projection.weight.copy_(w_o @ w_v)
        folded.value_projection.bias.copy_(w_o @ b_v)
        folded.bias.copy_(self.proj.bias)
        return folded.train(self.training).requires_grad_(False)


class FoldedDiagonalMicroAttention(nn.Module):
    """What :meth:`DiagonalMicroAttention.fold` returns: the same call, half the projections."""

    def __init__(
        self,
        dim: int,
        scale: float,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.dim = dim = _check.integer("dim", dim, 1)
        self.scale = scale
        self.query_projection = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.value_projection = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.bias = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, scale={self.scale:g}"

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
        key_mask: Tensor | None = None,
        *,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As :meth:`DiagonalMicroAttention.forward`."""
        _check_tokens(dict.fromkeys(("query", "key", "value"), self.dim), query, key, value)
        heads = (
            self.query_projection(query),
            key.to(self.query_projection.weight.dtype),
            self.value_projection(value),
        )
        query, key, value = (x.unsqueeze(-3) for x in heads)  # [B, 1, N, dim]
        out, weights = _attend(query, key, value, self.scale, row_weight, rows, key_mask)
        out = out.squeeze(-3) + self.bias
        return (out, weights) if return_weights else out


class _ListCall(DiagonalMicroAttention):
    """Ours behind the call convention of the modules that :func:`replace_diagonal_attention` finds."""

    def forward(  # type: ignore[override]
        self, qkv: list[Tensor], *, key_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if isinstance(qkv, Tensor) or len(qkv) != 3:
            raise TypeError(
                f"the argument is a {type(qkv).__name__}; it must be the list [query, key, value]"
            )
        query, key, value = qkv
        out, weights = super().forward(query, key, value, key_mask=key_mask, return_weights=True)
        return out, weights[..., None].to(out.dtype)


def _is_diagonal_attention(module: nn.Module) -> bool:
    return (
        all(isinstance(getattr(module, name, None), nn.Linear) for name in _LINEARS)
        and isinstance(getattr(module, "num_heads", None), numbers.Integral)
        and bool(getattr(module, "diag_att", False))
    )


def _list_call_from(path: str, module: Any) -> _ListCall:
    for name, child in module.named_modules():
        if isinstance(child, nn.Dropout) and child.p > 0:
            raise ValueError(f"{path}.{name} drops out with p={child.p}; set it to 0 before replacing {path}")
    found = (getattr(module, name) for name in _LINEARS)
    ours = _ListCall(module.to_q.out_features, module.num_heads, linear=lambda *_, **__: next(found))
    ours.scale = float(getattr(module, "scale", ours.scale))
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
