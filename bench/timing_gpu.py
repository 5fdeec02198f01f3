"""Timing on a GPU: events around calls that find the L2 cache cold, and around replays of a CUDA graph of them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import ceilings
import pytest
import torch
from torch import Tensor

CALLS, REPLAYS = "calls", "graph replays"
#: Seconds. Shorter calls are timed as replays of a CUDA graph too, which have no launch latency.
SHORT = 200e-6


class Instant:
    """A moment on the GPU's clock; pytest-benchmark takes the difference of two, which is in seconds."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def __sub__(self, earlier: Instant) -> float:
        torch.cuda.synchronize()
        return earlier.event.elapsed_time(self.event) / 1e3


now = Instant


@contextlib.contextmanager
def way(name: str) -> Iterator[Callable[[Callable], Callable]]:
    yield captured if name == REPLAYS else lambda function: function


def bytes_of(result: Any) -> int:
    if isinstance(result, Tensor):
        return result.nbytes
    return sum(map(bytes_of, result)) if isinstance(result, (tuple, list)) else 0


@functools.cache
def _cold() -> Tensor:
    """Larger than any L2 cache, and of so many bytes that what is launched next is queued when they are written."""
    return torch.empty(1 << 30, device="cuda", dtype=torch.uint8)


def before(function: Callable, short: bool) -> None:
    """The L2 cache holds nothing of the call's; and the GPU is busy until the call has been launched."""
    _cold().zero_()


def extra_memory(function: Callable) -> int:
    """The most bytes that ``function`` holds beside its result."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = function()
    torch.cuda.synchronize()
    return max(0, torch.cuda.max_memory_allocated() - before - bytes_of(result))


def captured(function: Callable) -> Callable:
    """A replay of ``function`` as a CUDA graph, on the inputs that it has now."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def stop_if_the_device_is_lost(error: str) -> None:
    """After an illegal access every later call of this process fails: end it, keeping the results that there are."""
    try:
        torch.cuda.synchronize()
    except Exception:
        pytest.exit(f"the CUDA context is broken: {error}", returncode=3)


def shares(
    case: Any, way: str, seconds: float, floor: float | None, device: torch.device
) -> dict[str, float]:
    """Of what the GPU can do: of the rate of a matrix product, and of the bandwidth of a copy."""
    if not case.operations and not case.moved:
        return {}
    rate, bandwidth = ceilings.matrix_rate(device), ceilings.copy_bandwidth(device)
    lowest = max(case.operations / rate, case.moved / bandwidth)
    found = {
        "operations": case.operations,
        "bytes": case.moved,
        "matrix_rate": rate,
        "copy_bandwidth": bandwidth,
    }
    found |= {"floor_seconds": lowest, "times_floor": seconds / lowest}
    if case.operations:
        found["share_of_matrix_rate"] = case.operations / seconds / rate
    return found | {"share_of_copy_bandwidth": case.moved / seconds / bandwidth}
