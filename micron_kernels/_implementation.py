"""Which implementation of an operator serves a call."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from . import _extension

Impl = Literal["reference", "native", "triton"]

#: Every implementation an operator may have, slowest first.
NAMES: tuple[Impl, ...] = ("reference", "triton", "native")

logger = logging.getLogger("micron_kernels")


def what_it_needs(impl: str) -> str:
    """What would have to be there for ``impl`` to be available."""
    if impl == "native":
        why = f" ({_extension.reason})" if _extension.reason else ""
        return f"the compiled extension{why}: {_extension.REBUILD}"
    return "Triton kernels, which this version does not have yet"


def _why_not(module: ModuleType, device: torch.device, dtypes: Sequence[torch.dtype]) -> str | None:
    """Why an implementation cannot serve a call, or None. One that names no DEVICES and no DTYPES serves all."""
    devices = getattr(module, "DEVICES", None)
    if devices is not None and device.type not in devices:
        return f"runs on {', '.join(devices)}, not on {device.type}"
    have = getattr(module, "DTYPES", None)
    wrong = [dtype for dtype in dtypes if have is not None and dtype not in have]
    if wrong:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in have or ())
        return f"computes in {names}, not in {str(wrong[0]).removeprefix('torch.')}"
    return None


def choose(
    operator: str,
    impl: str | None,
    available: Mapping[str, ModuleType],
    device: torch.device,
    *dtypes: torch.dtype,
) -> str:
    """Return the name of the implementation that serves a call of ``operator`` on ``device`` with ``dtypes``.

    An explicit ``impl`` is served by exactly that implementation or raises: ValueError for a name that no
    operator has, RuntimeError for one that this operator does not have here or that cannot take the call.
    ``None`` takes the fastest one that can; a debug log says to what it fell back and why.
    """
    if impl is None:
        for name in reversed(NAMES):
            if name in available:
                why = _why_not(available[name], device, dtypes)
                if why is None:
                    return name
                logger.debug("%s: falling back from %r, which %s", operator, name, why)
        raise AssertionError(f"{operator} has no reference")
    if impl not in NAMES:
        raise ValueError(f"{operator}: impl={impl!r} is not one of {', '.join(map(repr, NAMES))}, None")
    if impl not in available:
        have = ", ".join(map(repr, available))
        raise RuntimeError(
            f"{operator}: impl={impl!r} needs {what_it_needs(impl)}; available here: {have}; "
            "impl=None takes the fastest of these"
        )
    why = _why_not(available[impl], device, dtypes)
    if why is not None:
        raise RuntimeError(
            f"{operator}: impl={impl!r} {why}; convert the tensors, or let impl=None take one that can"
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
