"""Timing on a GPU: events around calls that find the L2 cache cold, and around replays of a CUDA graph of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import ceilings
import pytest
import torch
from torch import Tensor

ROUNDS = 30
#: Calls shorter than this are timed as replays of a CUDA graph too, which have no launch latency.
SHORT = 200e-6


def bytes_of(result: Any) -> int:
    if isinstance(result, Tensor):
        return result.nbytes
    return sum(map(bytes_of, result)) if isinstance(result, (tuple, list)) else 0


def ratio(taken: dict[str, list[float]], name: str, to: str) -> float:
    """Median over the rounds of how many times as long ``name`` took as ``to``."""
    return statistics.median(x / y for x, y in zip(taken[name], taken[to], strict=True))


def time_in_turn(variants: dict[str, Callable], device: torch.device) -> dict[str, list[float]]:
    """Seconds of every call, by name.

    What is written between two calls replaces all of the L2 cache, and takes long enough that the launches of
    the next call are already queued when it ends: what is timed is the GPU, unless a call is slow to launch.
    """
    cold = torch.empty(max(256 << 20, 4 * torch.cuda.get_device_properties(device).L2_cache_size), device=device,
                       dtype=torch.uint8)  # fmt: skip
    events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, function in variants.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            cold.zero_()
            start.record()
            function()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    return {name: [start.elapsed_time(end) / 1e3 for start, end in pairs] for name, pairs in events.items()}


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


class Survivors:
    """The variants that have not failed yet, and what each of the others said."""

    def __init__(self, variants: dict[str, Callable]):
        self.variants = dict(variants)
        self.errors: dict[str, str] = {}

    def attempt(self, step: Callable[[str], Any]) -> dict[str, Any]:
        """``step`` of every name; one that raises leaves the race, and its message goes into the row."""
        results = {}
        for name in list(self.variants):
            try:
                results[name] = step(name)
                torch.cuda.synchronize()
            except Exception as error:  # whatever a compiler or a library raises must not lose the others
                message = " ".join(str(error).split())
                self.errors[name] = f"{type(error).__name__}: {message[:300]}"
                del self.variants[name]
                _stop_if_the_device_is_lost(name, self.errors[name])
        return results


def _stop_if_the_device_is_lost(name: str, error: str) -> None:
    """After an illegal access every later call of this process fails: end it, keeping the rows that there are."""
    try:
        torch.cuda.synchronize()
    except Exception:
        pytest.exit(f"{name} broke the CUDA context: {error}", returncode=3)


def compare(
    operator: str,
    case: str,
    ours: dict[str, Callable],
    peers: dict[str, Callable],
    check: Callable[[str], None],
    *,
    operations: float,
    moved: float,
    device: torch.device,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(rows, errors of ours): a row for calls and, where they are short, one for replays of CUDA graphs."""

    def warm_up(name: str) -> None:
        check(name)
        for _ in range(3):
            alive.variants[name]()

    def row(timed: str, survivors: Survivors) -> dict[str, Any]:
        taken = time_in_turn(survivors.variants, device)
        result = {"operator": operator, "case": case, "timed": timed}
        return result | _facts(taken, survivors.errors, list(ours), list(peers), operations, moved, device)

    alive = Survivors({**ours, **peers})
    alive.attempt(warm_up)
    memory = alive.attempt(lambda name: extra_memory(alive.variants[name]))
    rows = [row("calls", alive)]
    for name in alive.variants:
        rows[0]["variants"][name]["extra_bytes"] = memory[name]
    fastest = min((v["milliseconds"] for v in rows[0]["variants"].values() if "error" not in v), default=1e9)
    if fastest < SHORT * 1e3:
        graphs = Survivors(alive.variants)
        graphs.variants = graphs.attempt(lambda name: captured(alive.variants[name]))
        rows.append(row("graph replays", graphs))
    return rows, {name: error for name, error in alive.errors.items() if name in ours}


def _facts(
    taken: dict[str, list[float]],
    errors: dict[str, str],
    ours: list[str],
    peers: list[str],
    operations: float,
    moved: float,
    device: torch.device,
) -> dict[str, Any]:
    """What a row says: times, the ratio over the best of the peers, the floor and the shares of the ceilings."""
    first = next((name for name in ours if name in taken), None)
    best = min(
        (name for name in peers if name in taken), key=lambda n: statistics.median(taken[n]), default=None
    )
    facts: dict[str, Any] = {"ours": first, "best_peer": best, "variants": {}}
    if first and best:
        facts["times_best_peer"] = ratio(taken, best, first)
    floor = 0.0
    if operations or moved:
        rate, bandwidth = ceilings.matrix_rate(device), ceilings.copy_bandwidth(device)
        floor = max(operations / rate, moved / bandwidth)
        facts |= {"operations": operations, "bytes": moved, "matrix_rate": rate, "copy_bandwidth": bandwidth}
        facts |= {"floor_milliseconds": floor * 1e3}
    for name, times in taken.items():
        seconds = statistics.median(times)
        variant = {"milliseconds": seconds * 1e3}
        if first:
            variant["times_ours"] = ratio(taken, name, first)
        if floor and name in ours:
            variant["times_floor"] = seconds / floor
            if operations:
                variant["share_of_matrix_rate"] = operations / seconds / rate
            variant["share_of_copy_bandwidth"] = moved / seconds / bandwidth
        facts["variants"][name] = variant
    facts["variants"] |= {name: {"error": error} for name, error in errors.items()}
    return facts
