"""Timing by interleaved variants, the tables, and the files under ``results/``."""

from __future__ import annotations

import contextlib
import datetime
import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

ROWS: list[dict[str, Any]] = []
OURS = "native"


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1]
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def extra_memory(function: Callable) -> int:
    """The highest sum of bytes that torch's allocator holds for ``function``, its result included.

    The native kernels' own scratch is outside that allocator and is not seen.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    held = highest = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest


class Bench:
    def __init__(self, full: bool):
        self.full = full

    def compare(
        self,
        operator: str,
        case: str,
        variants: dict[str, Callable],
        *,
        check: Callable[[], None],
        operations: float = 0.0,
        bytes_moved: float = 0.0,
        ceiling: Callable[[], float] | None = None,
        rounds: int = 7,
    ) -> None:
        """Check, then time ``variants`` in turn. Ratios are medians over rounds of baseline / ours.

        ``operations`` or ``bytes_moved`` of ours, with the ``ceiling`` of one thread a second, give its share.
        """
        check()
        if not self.full:
            for function in variants.values():
                function()
            return
        for count in sorted({1, torch.get_num_threads()}):
            with threads(count):
                taken: dict[str, list[float]] = {name: [] for name in variants}
                for function in variants.values():
                    function()
                for _ in range(rounds):
                    for name, function in variants.items():
                        start = time.perf_counter()
                        function()
                        taken[name].append(time.perf_counter() - start)
                memory = {name: extra_memory(function) for name, function in variants.items()}
            row: dict[str, Any] = {"operator": operator, "case": case, "threads": count}
            ours = statistics.median(taken[OURS])
            for name, times in taken.items():
                ratios = [t / o for t, o in zip(times, taken[OURS], strict=True)]
                row[name] = {
                    "milliseconds": statistics.median(times) * 1e3,
                    "ratio": statistics.median(ratios),
                    "extra_bytes": memory[name],
                }
            if ceiling and count == 1:
                row["share_of_ceiling"] = (operations or bytes_moved) / ours / ceiling()
            ROWS.append(row)


def tables() -> str:
    lines = []
    for operator in dict.fromkeys(row["operator"] for row in ROWS):
        lines.append(f"\n{operator}: milliseconds, (times ours), extra memory")
        for row in ROWS:
            if row["operator"] != operator:
                continue
            cells = [
                f"{name} {cell['milliseconds']:.3f} ({cell['ratio']:.2f}×) {cell['extra_bytes'] / 2**20:.1f} MiB"
                for name, cell in row.items()
                if isinstance(cell, dict)
            ]
            share = f"  {row['share_of_ceiling']:.0%} of ceiling" if "share_of_ceiling" in row else ""
            lines.append(f"  {row['case']}, {row['threads']} thread(s): {'  '.join(cells)}{share}")
    return "\n".join(lines)


def write(path: str | None) -> None:
    name = re.sub(r"[^A-Za-z0-9]+", "-", cpu_name()).strip("-").lower()
    target = Path(path) if path else Path(__file__).parent / "results" / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": cpu_name(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "rows": ROWS,
    }
    target.write_text(json.dumps(result, indent=1) + "\n")


def close(tested: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """No speed of a wrong answer: a coarse check, the tests hold the fine one."""
    tested, expected = tested.double(), expected.double()
    error = (tested - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert error <= tolerance, f"relative error {error:.1e}"
