"""Which implementation of an operator serves a call."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from . import _extension

Impl = Literal["reference", "native", "triton"]

#: What serves a call without ``impl``, by device: the first that can. As measured, bench/results, but not where a
#: CPU's torch multiplies bf16 by AMX, which would favour the eager formula: no such processor was at hand.
ORDER: dict[str, tuple[Impl, ...]] = {
    "cpu": ("native", "reference"),
    "cuda": ("triton", "native", "reference"),
}
#: Of operators that differ: what is written for one GPU, and faster there, goes before what runs on all of them.
ORDER_OF: dict[str, dict[str, tuple[Impl, ...]]] = {
    "diagonal_attention": {"cuda": ("native", "triton", "reference")},
}

NAMES: tuple[str, ...] = ("reference", "triton", "native")

logger = logging.getLogger("micron_kernels")


def order(operator: str, device_type: str) -> tuple[Impl, ...]:
    """What may serve a call without ``impl``, what is preferred first."""
    return ORDER_OF.get(operator, ORDER).get(device_type) or ORDER.get(device_type, ("reference",))


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, and so on CPU tensors: TRITON_INTERPRET=1."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device."""
    return torch.cuda.get_device_capability(device)


WITHOUT_TRITON = "needs the triton package, which is not installed: pip install triton"


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


class TritonModule:
    """``micron_kernels.<operator>.triton``, imported when one of its kernels is first launched.

    ``import micron_kernels`` must work where triton is not installed, and not cost its import where it is.
    """

    def __init__(self, operator: str, *dtypes: torch.dtype, **most: int):
        self._name = f"micron_kernels.{operator}.triton"
        self._most = most  # the largest that it takes, of the sizes that the operator names
        self.DTYPES = dtypes

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self._name), name)

    def why_not(self, device: torch.device, *_dtypes: torch.dtype, **sizes: int) -> str | None:
        for name, size in sizes.items():
            if size > self._most[name]:
                return f"takes {name} up to {self._most[name]}, not {size}"
        if not _has_triton():
            return WITHOUT_TRITON
        if device.type == "cpu" and interpreted():
            return None
        if device.type != "cuda":
            return (
                f"runs on cuda, not on {device.type}, unless TRITON_INTERPRET=1 chooses Triton's interpreter"
            )
        if torch.version.hip is None and capability(device) < (8, 0):
            major, minor = capability(device)
            return f"needs compute capability 8.0 or higher; this GPU has {major}.{minor}"
        return None


def why_not(
    available: Mapping[str, Any],
    impl: str,
    device: torch.device,
    dtypes: Sequence[torch.dtype] = (),
    **sizes: int,
) -> str | None:
    """Why ``available[impl]`` cannot serve a call, or None: by its DTYPES and its own why_not, if it has them."""
    if impl not in available:
        return f"needs the compiled extension ({_extension.reason}); to build it: {_extension.REBUILD}"
    implementation = available[impl]
    have = getattr(implementation, "DTYPES", None)
    wrong = [dtype for dtype in dtypes if have is not None and dtype not in have]
    if wrong:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in have or ())
        return f"computes in {names}, not in {str(wrong[0]).removeprefix('torch.')}"
    own = getattr(implementation, "why_not", None)
    return None if own is None else own(device, *dtypes, **sizes)


def _warn_of_what_is_missing(
    operator: str, available: Mapping[str, Any], device: torch.device, dtypes: Sequence[torch.dtype]
) -> None:
    if "native" not in available:
        _extension.warn_once(operator, dtypes)
    elif device.type == "cuda" and set(dtypes) <= set(available["triton"].DTYPES) and not _has_triton():
        _extension.warn_of_plain_pytorch(f"on a GPU {operator} {WITHOUT_TRITON}")


def choose(
    operator: str,
    impl: str | None,
    available: Mapping[str, Any],
    device: torch.device,
    *dtypes: torch.dtype,
    **sizes: int,
) -> str:
    """Return the name of the implementation that serves a call of ``operator`` on ``device`` with ``dtypes``.
    ``sizes`` are those that some implementation limits.

    An explicit ``impl`` is served by exactly that implementation or raises: ValueError for a name that no
    operator has, RuntimeError for one that this operator does not have here or that cannot take the call.
    ``None`` takes the first of :func:`order` that can; a debug log says to what it fell back and why.
    """
    if impl is None:
        for name in order(operator, device.type):
            why = why_not(available, name, device, dtypes, **sizes)
            if why is None:
                if name == "reference":
                    _warn_of_what_is_missing(operator, available, device, dtypes)
                return name
            logger.debug("%s: falling back from %r, which %s", operator, name, why)
        raise AssertionError(f"{operator} has no reference")
    if impl not in NAMES:
        raise ValueError(f"{operator}: impl={impl!r} is not one of {', '.join(map(repr, NAMES))}, None")
    why = why_not(available, impl, device, dtypes, **sizes)
    if why is not None:
        raise RuntimeError(
            f"{operator}: impl={impl!r} {why}; impl=None takes the fastest that can serve the call as it is"
        )
    return impl


class Chooser:
    """:func:`choose` for one operator, remembered: asking costs more than a small call.

    ``sizes`` names those that some implementation limits.
    """

    def __init__(self, operator: str, available: Mapping[str, Any], *sizes: str):
        self._operator, self._available, self._sizes = operator, available, sizes
        self._chosen: dict[tuple[Any, ...], str] = {}

    def __call__(self, impl: str | None, device: torch.device, *dtypes_and_sizes: torch.dtype | int) -> Any:
        """The implementation that serves the call; the sizes come last."""
        key = (impl, device, dtypes_and_sizes, *self._available)
        name = self._chosen.get(key)
        if name is None:
            split = len(dtypes_and_sizes) - len(self._sizes)
            limited: Any = dict(zip(self._sizes, dtypes_and_sizes[split:], strict=True))
            dtypes: Any = dtypes_and_sizes[:split]
            name = choose(self._operator, impl, self._available, device, *dtypes, **limited)
            if impl != "triton":  # which an environment variable turns on and off
                if len(self._chosen) > 1000:
                    self._chosen.clear()
                self._chosen[key] = name
        return self._available[name]


#: Asked once: Dynamo of torch 2.11 cannot trace the question, and of another device torch raises.
_HAVE_AUTOCAST = frozenset(
    kind
    for kind in ("cpu", "cuda", "xpu", "mps", "mtia", "hpu", "xla")
    if torch.amp.is_autocast_available(kind)
)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of reductions, statistics and sums for inputs of ``dtype``: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """What autocast casts to on the device of ``tensor``, or None where it is off."""
    if not (torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled()):
        return None
    device_type = tensor.device.type
    if device_type not in _HAVE_AUTOCAST or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def autocast_off(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Keep an operator's own arithmetic as written: inside it, autocast would cast its fp32 sums down."""
    if autocast_dtype(tensor) is not None:
        return torch.autocast(tensor.device.type, enabled=False)
    return contextlib.nullcontext()
