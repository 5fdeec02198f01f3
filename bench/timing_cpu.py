"""Timing on a CPU: warm code, inputs as the benchmark leaves them, one thread and all."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import ceilings
import torch
from timing_gpu import bytes_of
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from micron_kernels import _extension

ONE = "1 thread"
now = time.perf_counter


@contextlib.contextmanager
def way(name: str) -> Iterator[Callable[[Callable], Callable]]:
    """On that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(name.split()[0]))
    try:
        yield lambda function: function
    finally:
        torch.set_num_threads(before)


def before(function: Callable, short: bool) -> None:
    """Code and predictors warm again, whatever ran last."""
    if short:
        function()


def extra_memory(function: Callable) -> int:
    """The most bytes that ``function`` holds beside its result: of torch's allocator, and the kernels' scratch."""
    scratch = _extension.module.take_scratch_peak if _extension.module is not None else lambda: 0
    scratch()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = function()
    held = highest = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return max(0, highest - bytes_of(result)) + scratch()


def rotating(*tensors: Tensor, total: int) -> Iterator[tuple[Tensor, ...]]:
    """The tensors and copies of them in turn, of ``total`` bytes together: each comes out of memory, not a cache."""
    size = sum(x.nbytes for x in tensors)
    copies = [tensors, *(tuple(x.clone() for x in tensors) for _ in range(total // size))]
    return itertools.cycle(copies)


def shares(
    case: Any, way: str, seconds: float, floor: float | None, device: torch.device
) -> dict[str, float]:
    """Of what one thread can do: ``floor`` is the time of moving the bytes over that of the call."""
    found = {}
    if way == ONE and case.operations:
        peak = ceilings.fma_peak(_extension.module.instruction_set())
        found["share_of_fma_peak"] = case.operations / seconds / peak
    if floor is not None:
        found["share_of_bandwidth"] = floor
    return found
