"""Timing by interleaved variants, the tables, and the files under ``results/``."""

from __future__ import annotations

import contextlib
import datetime
import itertools
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

from micron_kernels import _extension

ROWS: list[dict[str, Any]] = []
OURS = "native"
FLOOR = "floor"


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


def _bytes_of(result: Any) -> int:
    if isinstance(result, Tensor):
        return result.nbytes
    return sum(map(_bytes_of, result)) if isinstance(result, (tuple, list)) else 0


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
    return max(0, highest - _bytes_of(result)) + scratch()


def rotating(*tensors: Tensor, total: int = 96 << 20) -> Iterator[tuple[Tensor, ...]]:
    """The tensors and copies of them in turn, of ``total`` bytes together: each comes out of memory, not a cache."""
    size = sum(x.nbytes for x in tensors)
    copies = [tensors, *(tuple(x.clone() for x in tensors) for _ in range(total // size))]
    return itertools.cycle(copies)


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
        peak: Callable[[], float] | None = None,
        floor: Callable | None = None,
        rounds: int = 9,
    ) -> None:
        """Check, then time ``variants`` in turn; ratios are medians over the rounds.

        A function whose inputs fit the last cache should rotate through copies of them: see :func:`rotating`.

        Ours is also held against what the machine allows on one thread: ``operations`` over the measured
        ``peak`` a second, or ``floor``, a function that only moves the bytes, timed in the same rounds.
        """
        check()
        if not self.full:
            for function in variants.values():
                function()
            return
        if floor is not None:
            variants = {**variants, FLOOR: floor}
        for count in sorted({1, torch.get_num_threads()}):
            with threads(count):
                taken: dict[str, list[float]] = {name: [] for name in variants}
                for _ in range(rounds):
                    for name, function in variants.items():
                        function()  # code and predictors warm again, whatever the last variant was
                        start = time.perf_counter()
                        function()
                        taken[name].append(time.perf_counter() - start)
                memory = {
                    name: extra_memory(function) for name, function in variants.items() if name != FLOOR
                }
            ROWS.append(_row(operator, case, count, taken, memory, operations, peak))


def _row(
    operator: str,
    case: str,
    count: int,
    taken: dict[str, list[float]],
    memory: dict[str, int],
    operations: float,
    peak: Callable[[], float] | None,
) -> dict[str, Any]:
    def ratio(name: str) -> float:
        return statistics.median(t / o for t, o in zip(taken[name], taken[OURS], strict=True))

    row: dict[str, Any] = {"operator": operator, "case": case, "threads": count, "variants": {}}
    for name in memory:
        row["variants"][name] = {
            "milliseconds": statistics.median(taken[name]) * 1e3,
            "times_ours": ratio(name),
            "extra_bytes": memory[name],
        }
    if count == 1 and peak is not None:
        row["share_of_fma_peak"] = operations / statistics.median(taken[OURS]) / peak()
    if count == 1 and FLOOR in taken:
        row["share_of_bandwidth"] = ratio(FLOOR)
    return row


def tables() -> str:
    """One table an operator, as text."""
    lines = []
    for operator in dict.fromkeys(row["operator"] for row in ROWS):
        lines.append(
            f"\n{operator}: ms (its time over ours, median over rounds), extra memory beside the result"
        )
        for row in (r for r in ROWS if r["operator"] == operator):
            cells = [
                f"{name} {v['milliseconds']:.2f} ({v['times_ours']:.2f}×) {v['extra_bytes'] / 2**20:.2f} MiB"
                for name, v in row["variants"].items()
            ]
            for key, what in (("share_of_fma_peak", "FMA peak"), ("share_of_bandwidth", "bandwidth")):
                if key in row:
                    cells.append(f"{row[key]:.0%} of {what}")
            lines.append(f"  {row['case']:<34} {row['threads']} thread{'s' if row['threads'] > 1 else ' '}")
            lines += [f"      {cell}" for cell in cells]
    return "\n".join(lines)


def write(path: str | None) -> None:
    """``results/<machine>.json`` and the plot beside it, or ``path``; operators not timed now keep their rows."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", cpu_name()).strip("-").lower()
    target = Path(path) if path else Path(__file__).parent / "results" / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "machine": cpu_name(),
        "threads": torch.get_num_threads(),
        "instruction_set": _extension.module.instruction_set() if _extension.module else None,
        "torch": torch.__version__,
        "compiler": _extension.module.compiler if _extension.module else None,
        "date": datetime.date.today().isoformat(),
    }
    rows = []
    if target.exists():
        before = json.loads(target.read_text())
        if all(before.get(name) == result[name] for name in result if name != "date"):
            rows = [r for r in before["rows"] if r["operator"] not in {row["operator"] for row in ROWS}]
    result["rows"] = sorted(rows + ROWS, key=lambda row: row["operator"])
    target.write_text(json.dumps(result, indent=1) + "\n")
    plot(result, target.with_suffix(".png"))


def plot(result: dict[str, Any], path: Path) -> None:
    """Bars: how many times faster ours is than each thing a user would otherwise run, one thread."""
    from matplotlib.figure import Figure

    peers = {"eager": "#0072B2", "compiled": "#D55E00", "torch.topk": "#009E73"}
    bars = [
        (f"{row['operator']}  {row['case']}", peer, values["times_ours"])
        for row in result["rows"]
        if row["threads"] == 1
        for peer, values in row["variants"].items()
        if peer in peers
    ]
    cases = list(dict.fromkeys(case for case, _, _ in bars))
    figure = Figure(figsize=(9, 0.34 * len(cases) + 1.2), layout="constrained")
    axes = figure.subplots()
    for peer, colour in peers.items():
        chosen = [(cases.index(case), value) for case, p, value in bars if p == peer]
        offset = {"eager": -0.18, "compiled": 0.18, "torch.topk": -0.18}[peer]
        places = [place + offset for place, _ in chosen]
        values = [value for _, value in chosen]
        if values:
            axes.barh(places, values, height=0.34, color=colour, label=f"over {peer}")
        for place, value in zip(places, values, strict=True):
            axes.text(value * 1.03, place, f"{value:.1f}×", va="center", fontsize=6.5)
    axes.axvline(1, color="0.3", lw=1)
    axes.set_xscale("log")
    ticks = [1, 2, 5, 10, 20, 50, 100]
    axes.set_xticks(ticks, [f"{tick}×" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.grid(axis="x", alpha=0.3)
    axes.set_yticks(range(len(cases)), cases, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("times faster than the alternative (log scale), one thread")
    axes.set_title(f"{result['machine']}, {result['instruction_set']}, torch {result['torch']}", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.margins(x=0.12)
    figure.savefig(path, dpi=120)


def close(tested: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """No speed of a wrong answer: a coarse check, the tests hold the fine one."""
    tested, expected = tested.double(), expected.double()
    error = (tested - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert error <= tolerance, f"relative error {error:.1e}"
