"""Checks of arguments, worded once. Every message names the argument, its value, the rule and the way out."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
IMAGE = (torch.uint8, *FLOATING)


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)


def describe(shape: Sequence[int]) -> str:
    return "(" + ", ".join(str(s) for s in shape) + ")"


def tensor(
    name: str, value: object, *, dims: Sequence[int], layout: str, dtypes: Sequence[torch.dtype]
) -> None:
    """``value`` is a tensor with one of ``dims`` dimensions, laid out as ``layout``, of one of ``dtypes``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a torch.Tensor {layout}")
    if value.dim() not in dims:
        raise ValueError(f"{name} has shape {describe(value.shape)}; it must be {layout}")
    if value.dtype not in dtypes:
        raise TypeError(
            f"{name} has dtype {_names([value.dtype])}; it must be one of {_names(dtypes)}: "
            f"convert it with {name}.to(...)"
        )


def shape(name: str, value: Tensor, expected: tuple[int, ...], because: str) -> None:
    if value.shape != expected:
        raise ValueError(
            f"{name} has shape {describe(value.shape)}; it must be {describe(expected)}, {because}"
        )


def same_dtype(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.dtype != other.dtype:
        raise TypeError(
            f"{name} has dtype {value.dtype} but {other_name} has {other.dtype}; they must be equal: "
            f"convert one with .to(...)"
        )


def alike(first: Any, *others: Any) -> bool:
    """Whether all are tensors of one dtype and device: most calls, told at a glance.

    What is not is checked in words.
    """
    if not isinstance(first, Tensor):
        return False
    dtype, device = first.dtype, first.device
    for x in others:  # noqa: SIM110  # all() of a generator takes twice the time
        if not isinstance(x, Tensor) or x.dtype is not dtype or x.device != device:
            return False
    return True


def same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(
            f"{name} is on {value.device} but {other_name} is on {other.device}; they must be on one device: "
            f"move one with .to(...)"
        )


def integer(name: str, value: Any, minimum: int) -> int:
    """``value`` as an int, at least ``minimum``: of Python, NumPy or a symbolic shape. A tensor is none, not even one
    number: to look at it would stop a GPU."""
    if type(value) is not int:
        if isinstance(value, bool) or not isinstance(value, (numbers.Integral, torch.SymInt)):
            raise TypeError(
                f"{name}={value!r} is a {type(value).__name__}; it must be an int{_way_out(value)}"
            )
        value = value if isinstance(value, torch.SymInt) else int(value)
    if value < minimum:
        raise ValueError(f"{name}={value} is too small; it must be at least {minimum}")
    return value


def number(name: str, value: Any, otherwise: str = "") -> float:
    """``value`` as a float: a real number of Python, NumPy or a symbolic shape; no tensor, as above."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, torch.SymFloat, torch.SymInt)):
        kind = type(value).__name__
        raise TypeError(f"{name}={value!r} is a {kind}; it must be a number{otherwise}{_way_out(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf  # an int of more than 308 digits; no caller takes infinity of either sign


def _way_out(value: object) -> str:
    return ": pass its .item()" if isinstance(value, Tensor) else ""


def pair(name: str, value: Any, meaning: str) -> tuple[Any, Any]:
    """The two of ``value``, whatever they are."""
    if isinstance(value, (str, bytes, Tensor)) or not hasattr(value, "__len__"):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; it must be two numbers, {meaning}")
    if len(value) != 2:
        raise ValueError(f"{name}={value!r} has length {len(value)}; it must be two numbers, {meaning}")
    first, second = value
    return first, second


def patch_size(value: Any, height: int, width: int) -> int:
    """``value`` as an int that divides a frame of ``height`` × ``width`` pixels."""
    value = integer("patch_size", value, 1)
    if height % value or width % value:
        fits = [p for p in range(1, min(height, width) + 1) if height % p == 0 and width % p == 0]
        near = sorted(sorted(fits, key=lambda p: abs(p - value))[:2])
        raise ValueError(
            f"patch_size={value} does not divide the frame ({height}×{width}); "
            f"divisors near it: {', '.join(map(str, near)) or 'none'}"
        )
    return value


def per_channel(
    name: str, value: Tensor | Sequence[float] | None, channels: int, like: Tensor
) -> Tensor | None:
    """``value`` as a constant (C,) tensor on the device of ``like``, fp64 if it is fp64, else fp32."""
    if value is None:
        return None
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(f"{name} requires grad, but it is a constant here: pass {name}.detach()")
        result = value.to(device=like.device, dtype=dtype)
    else:
        try:
            result = torch.tensor([float(v) for v in value], device=like.device, dtype=dtype)
        except (TypeError, ValueError):
            raise TypeError(
                f"{name}={value!r}; it must be a tensor or a sequence of {channels} numbers"
            ) from None
    shape(name, result, (channels,), "one number a channel")
    return result
