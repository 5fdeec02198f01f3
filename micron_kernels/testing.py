"""How the operators are checked: the plain formulas, a budget for rounding, and memory that tells.

The formulas are written for autograd and for the eye: they hold the N×N matrix that the operators avoid. They
are what a user would otherwise run, hence also the baseline whose error sets the budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def eager_diagonal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    row_weight: Tensor | None = None,
    rows: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, p) of ``diagonal_attention`` by the full matrix, in the dtype of the inputs."""
    scores = (query @ key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None, :], torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1).diagonal(dim1=-2, dim2=-1)
    if key_mask is not None:
        weights = weights.masked_fill(~key_mask[:, None, :], 0)
    factor = weights
    if row_weight is not None:
        factor = weights * (row_weight[:, None] if row_weight.dim() == 2 else row_weight).to(weights.dtype)
    out = factor[..., None] * value
    if rows is not None:
        index = rows[:, None, :].expand(-1, query.shape[1], -1)
        out = out.gather(2, index[..., None].expand(-1, -1, -1, value.shape[-1]))
        weights = weights.gather(2, index)
    return out, weights


def eager_frame_difference(
    frames: Tensor,
    reference: Tensor,
    patch_size: int,
    *,
    norm: str = "l1",
    channel_scale: Tensor | None = None,
) -> Tensor:
    """``frame_difference`` by average pooling, uint8 in fp32."""
    if frames.dim() == 5:
        reference = reference[:, None]
    if frames.dtype == torch.uint8:
        frames, reference = frames.float() / 255, reference.float() / 255
    difference = frames - reference
    if channel_scale is not None:
        difference = difference * channel_scale.to(difference.dtype)[:, None, None]
    magnitude = difference.abs() if norm == "l1" else difference.square()
    pooled = torch.nn.functional.avg_pool2d(magnitude.flatten(0, -4), patch_size)
    return pooled.mean(1).unflatten(0, frames.shape[:-3]).flatten(-2)


def eager_mask_tokens(tokens: Tensor, scores: Tensor, k: int, *, weighted: bool = False) -> Tensor:
    """``mask_tokens`` by ``torch.topk``, scatter and multiply; its ties fall as torch pleases."""
    mask = torch.zeros_like(scores).scatter(1, scores.topk(k, dim=1).indices, 1)
    if weighted:
        mask = mask * scores
    return tokens * mask[..., None].to(tokens.dtype)


def eager_select_tokens(tokens: Tensor, scores: Tensor, k: int, *, weighted: bool = False) -> Tensor:
    """``select_tokens`` by ``torch.topk``, sort and gather; its ties fall as torch pleases."""
    indices = scores.topk(k, dim=1).indices.sort(dim=1).values
    kept = tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[2]))
    return kept * scores.gather(1, indices)[..., None].to(tokens.dtype) if weighted else kept


def eager_swap_patches(
    frame: Tensor,
    other: Tensor,
    swap: Tensor,
    patch_size: int,
    *,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``swap_patches`` by upsampling the mask, uint8 in fp32."""
    height, width = (side // patch_size for side in frame.shape[2:])
    grid = swap.reshape(-1, 1, height, width).to(torch.float32)
    pixels = torch.nn.functional.interpolate(grid, scale_factor=patch_size, mode="nearest").bool()
    if frame.dtype == torch.uint8:
        frame, other = frame.float() / 255, other.float() / 255
    result = torch.where(pixels, other, frame)
    if mean is not None:
        result = result - mean.to(result.dtype)[:, None, None]
    if std is not None:
        result = result / std.to(result.dtype)[:, None, None]
    return result.to(dtype or result.dtype)


def assert_within_rounding(name: str, tested: Tensor, oracle: Tensor, *, plain_error: Tensor) -> None:
    """The one rule for every output and every gradient.

    The largest error of ``tested`` against the fp64 ``oracle`` may be twice that of the plain formula in the
    tested dtype (``plain_error``: its result minus the oracle, on inputs drawn alike), plus two roundings of
    the largest result.
    """
    assert tested.shape == oracle.shape, f"{name}: {tuple(tested.shape)} is not {tuple(oracle.shape)}"
    if oracle.numel() == 0:
        return
    assert tested.isfinite().all(), f"{name}: holds NaN or infinity"
    error = (tested.double() - oracle).abs().max().item()
    plain = plain_error.abs().max().item()
    budget = 2 * plain + 2 * torch.finfo(tested.dtype).eps * oracle.abs().max().item()
    assert error <= budget, f"{name}: error {error:.3e}, budget {budget:.3e} (plain formula {plain:.3e})"


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Inside, memory that torch hands out uninitialised holds NaN, or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = fill


class guarded_memory(TorchDispatchMode):
    """Inside, every new uninitialised tensor is a slice of a larger buffer with sentinels on both sides.

    Leaving raises AssertionError if one of them was overwritten. Of ``torch.ops.micron_kernels``, call the
    implementation, not the operator: it is opaque, and hides what it allocates.
    """

    GUARD_BYTES = 4096
    _SENTINEL = 0xA5

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[tuple[Tensor, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("micron_native", "micron_emulated"):  # C++ that allocates
            kernel = next(x for x in args if isinstance(x, Tensor)).device.type.upper()
            with self:
                return func._op_dk(getattr(torch._C.DispatchKey, kernel), *args)
        result = func(*args, **(kwargs or {}))
        is_empty = func.overloadpacket.__name__ in ("empty", "empty_like", "empty_strided", "new_empty")
        return self._guard(result) if is_empty and result.numel() else result

    def _guard(self, like: Tensor) -> Tensor:
        size = like.untyped_storage().nbytes()
        buffer = torch.full(
            (size + 2 * self.GUARD_BYTES,), self._SENTINEL, dtype=torch.uint8, device=like.device
        )
        self.buffers.append((buffer, size))
        inner = buffer[self.GUARD_BYTES : self.GUARD_BYTES + size].view(like.dtype)
        return inner.as_strided(like.shape, like.stride(), inner.storage_offset())

    def __exit__(self, *exc):
        super().__exit__(*exc)
        for buffer, size in self.buffers:
            before, after = buffer[: self.GUARD_BYTES], buffer[self.GUARD_BYTES + size :]
            for where, guard in (("before", before), ("after", after)):
                assert (guard == self._SENTINEL).all(), (
                    f"memory {where} a tensor of {size} bytes was overwritten"
                )
