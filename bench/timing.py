"""Checking, then timing by interleaved variants: what the benchmark of each operator calls."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import report
import timing_gpu
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from micron_kernels import _extension
from micron_kernels._implementation import NAMES, choose, why_not

FLOOR = "floor"
#: Largest error over largest result: a coarse check, the tests hold the fine one.
TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float32: 1e-4, torch.float64: 1e-10}

Variants = dict[str, Callable[[], Any]]


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    return max(0, highest - timing_gpu.bytes_of(result)) + scratch()


def rotating(*tensors: Tensor, total: int = 96 << 20) -> Iterator[tuple[Tensor, ...]]:
    """The tensors and copies of them in turn, of ``total`` bytes together: each comes out of memory, not a cache."""
    size = sum(x.nbytes for x in tensors)
    copies = [tensors, *(tuple(x.clone() for x in tensors) for _ in range(total // size))]
    return itertools.cycle(copies)


def close(tested: Any, expected: Any) -> None:
    """No speed of a wrong answer: AssertionError where a tensor, or one of a tuple, is far from ``expected``."""
    if not isinstance(tested, Tensor):
        for x, y in zip(tested, expected, strict=True):
            close(x, y)
        return
    assert tested.shape == expected.shape, f"{tuple(tested.shape)} is not {tuple(expected.shape)}"
    tolerance = TOLERANCE.get(tested.dtype, 0.0)
    tested, expected = tested.double(), expected.double()
    error = (tested - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert error <= tolerance, f"relative error {error:.1e}"


class Bench:
    """``full`` asks for full sizes, ``timed`` for times: neither in the quick test."""

    def __init__(self, device: torch.device, *, full: bool, timed: bool, gpu: bool | None = None):
        self.device = device
        self.full = full
        self.timed = timed
        self.gpu = device.type == "cuda" if gpu is None else gpu

    def implementations(self, ops: ModuleType, *dtypes: torch.dtype, **sizes: int) -> list[str]:
        """What to time: on a CPU the C++ kernels; on a GPU what None chooses, then every kernel that can serve."""
        if not self.gpu:
            return ["native"]
        chosen = choose(ops.__name__, None, ops.IMPLEMENTATIONS, self.device, *dtypes, **sizes)
        kernels = [
            name
            for name in NAMES
            if name in ("triton", "native")
            and why_not(ops.IMPLEMENTATIONS, name, self.device, dtypes, **sizes) is None
        ]
        return list(dict.fromkeys([chosen, *kernels]))

    def exact(self, x: Tensor) -> Tensor:
        """``x`` in the precision of what is expected: fp64 on a GPU; fp32 on a CPU, where fp64 takes too long."""
        return x.double() if self.gpu else x.float()

    def compare(
        self,
        operator: str,
        case: str,
        ours: Variants,
        peers: Variants,
        *,
        expected: Callable[[], Any],
        expected_of: dict[str, Callable[[], Any]] | None = None,
        operations: float = 0.0,
        moved: float = 0.0,
        peak: Callable[[], float] | None = None,
        floor: Callable | None = None,
        rounds: int = 9,
    ) -> None:
        """Hold every variant to ``expected``, or its own in ``expected_of``; then time them in turn.

        ``ours`` begins with the one that ratios refer to. A function whose inputs fit the last cache should
        rotate through copies of them: see :func:`rotating`.

        Ours is also held against what the machine allows. On a GPU: ``operations`` over the rate of a large
        matrix product and ``moved`` bytes over the bandwidth of a copy. On one thread of a CPU: ``operations``
        over the measured ``peak`` a second, or ``floor``, a function that only moves the bytes, timed in the
        same rounds.
        """
        expected_of = expected_of or {}
        variants = {**ours, **peers}

        def check(name: str) -> None:
            result = variants[name]()
            close(result, expected_of[name]() if name in expected_of else wanted)

        wanted = expected()
        if self.gpu and self.timed:
            rows, wrong = timing_gpu.compare(
                operator, case, ours, peers, check, operations=operations, moved=moved, device=self.device
            )
            report.ROWS.extend(rows)
            assert not wrong, "; ".join(f"{name}: {why}" for name, why in wrong.items())
            return
        for name in variants:
            check(name)
        if self.timed:
            _time_on_cpu(operator, case, variants, operations, peak, floor, rounds)


def _time_on_cpu(
    operator: str,
    case: str,
    variants: Variants,
    operations: float,
    peak: Callable[[], float] | None,
    floor: Callable | None,
    rounds: int,
) -> None:
    first = next(iter(variants))
    timed = variants if floor is None else {**variants, FLOOR: floor}
    for count in sorted({1, torch.get_num_threads()}):
        with threads(count):
            taken: dict[str, list[float]] = {name: [] for name in timed}
            for _ in range(rounds):
                for name, function in timed.items():
                    function()  # code and predictors warm again, whatever the last variant was
                    start = time.perf_counter()
                    function()
                    taken[name].append(time.perf_counter() - start)
            memory = {name: extra_memory(function) for name, function in variants.items()}
        row: dict[str, Any] = {"operator": operator, "case": case, "threads": count, "variants": {}}
        for name, extra in memory.items():
            row["variants"][name] = {
                "milliseconds": statistics.median(taken[name]) * 1e3,
                "times_ours": timing_gpu.ratio(taken, name, first),
                "extra_bytes": extra,
            }
        if count == 1 and peak is not None:
            row["share_of_fma_peak"] = operations / statistics.median(taken[first]) / peak()
        if count == 1 and floor is not None:
            row["share_of_bandwidth"] = timing_gpu.ratio(taken, FLOOR, first)
        report.ROWS.append(row)
