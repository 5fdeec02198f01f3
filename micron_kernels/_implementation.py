"""Which implementation of an operator serves a call."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

Impl = Literal["reference", "native", "triton"]

#: Every implementation an operator may have, slowest first.
NAMES: tuple[Impl, ...] = ("reference", "triton", "native")

logger = logging.getLogger("micron_kernels")

_WHAT_IT_NEEDS = {
    "native": "the compiled extension, which this version does not have yet",
    "triton": "Triton kernels, which this version does not have yet",
}


def choose(operator: str, impl: str | None, available: Mapping[str, ModuleType]) -> str:
    """Return the name of the implementation that serves a call of ``operator``.

    An explicit ``impl`` is served by exactly that implementation or raises: ValueError for a name that no
    operator has, RuntimeError for one that this operator does not have here. ``None`` takes the fastest one
    that is available.
    """
    if impl is None:
        return next(name for name in reversed(NAMES) if name in available)
    if impl not in NAMES:
        raise ValueError(f"{operator}: impl={impl!r} is not one of {', '.join(map(repr, NAMES))}, None")
    if impl not in available:
        have = ", ".join(map(repr, available))
        raise RuntimeError(
            f"{operator}: impl={impl!r} needs {_WHAT_IT_NEEDS[impl]}; available here: {have}; "
            "impl=None takes the fastest of these"
        )
    return impl


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of reductions, statistics and sums for inputs of ``dtype``: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_off(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Keep an operator's own arithmetic as written: inside it, autocast would cast its fp32 sums down."""
    device_type = tensor.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
