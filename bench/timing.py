"""Benchmarks as contests: each variant a test and an entry of pytest-benchmark, timed in turn with a partner."""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import timing_cpu
import timing_gpu
import torch
from torch import Tensor

from micron_kernels._implementation import choose, why_not

#: Of a variant; between them, as many as pytest-benchmark's --benchmark-max-time allows.
MIN_ROUNDS, MAX_ROUNDS = 3, 30
#: Seconds. A longer call needs no other before it to warm code and predictors; one that takes so long that all else of
#: a run would wait for it is timed twice.
LONG, VERY_LONG = 0.1, 2.0
#: Largest error over largest result: a coarse check, the tests hold the fine one.
TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float32: 1e-4, torch.float64: 1e-10}

Variants = dict[str, Callable[[], Any]]


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


@dataclass(frozen=True)
class Bench:
    """What a benchmark is built for; ``full`` asks for full sizes."""

    device: torch.device
    full: bool
    gpu: bool

    def implementations(self, ops: ModuleType, *dtypes: torch.dtype, **sizes: int) -> list[str]:
        """What to time: on a CPU the C++ kernels; on a GPU every kernel that can serve, what None chooses first."""
        if not self.gpu:
            return ["native"]
        available = ops.IMPLEMENTATIONS
        kernels = [
            name
            for name in ("triton", "native")
            if why_not(available, name, self.device, dtypes, **sizes) is None
        ]
        operator = ops.__name__.split(".")[-2]
        chosen = choose(operator, None, available, self.device, *dtypes, **sizes)
        return sorted(kernels, key=lambda name: name != chosen)

    def exact(self, x: Tensor) -> Tensor:
        """``x`` in the precision of what is expected: fp64 on a GPU; fp32 on a CPU, where fp64 takes too long."""
        return x.double() if self.gpu else x.float()

    def compiled(self, function: Callable) -> Callable:
        """``torch.compile`` of a function for one shape; in a quick test the function."""
        return torch.compile(function, dynamic=False, fullgraph=True) if self.full else function


@dataclass
class Case:
    """Variants of one operator on the same inputs.

    Every variant is held to ``expected``, or to its own in ``expected_of``. ``ours`` begins with the one that
    ratios refer to. A function whose inputs fit the last cache should rotate through copies of them:
    :func:`timing_cpu.rotating`.

    Ours is also held against what the machine allows. On a GPU: ``operations`` over the rate of a large matrix
    product and ``moved`` bytes over the bandwidth of a copy. On one thread of a CPU: ``operations`` over the
    measured FMA peak, or ``floor``, a function that only moves the bytes.
    """

    operator: str
    title: str
    ours: Variants
    peers: Variants
    expected: Callable[[], Any]
    expected_of: dict[str, Callable[[], Any]] = field(default_factory=dict)
    operations: float = 0.0
    moved: float = 0.0
    floor: Callable | None = None

    @functools.cached_property
    def _expected(self) -> Any:
        return self.expected()

    def check(self, variant: str, result: Any) -> None:
        close(result, self.expected_of[variant]() if variant in self.expected_of else self._expected)


def contest(
    **by_device: tuple[Sequence[str], Sequence[Any]],
) -> Callable[[Callable[[Bench, Any], Case]], Callable]:
    """Of a function (bench, value) -> Case: a test for every variant and value that are named for the device."""

    def decorate(build):
        def test(bench, benchmark, case, way, variant, request):
            max_time = float(request.config.getoption("benchmark_max_time"))
            _measure(bench, _built(build, bench, case), variant, way, benchmark, max_time)

        test.contest = by_device
        return test

    return decorate


@functools.lru_cache(maxsize=1)
def _built(build: Callable, bench: Bench, value: Any) -> Case:
    """The latest case, whose variants are consecutive tests on the same inputs."""
    if bench.full:
        torch._dynamo.reset()  # after eight shapes a compiled function would quietly fall back to eager
    return build(bench, value)


def ways(device: str, *, full: bool) -> list[Any]:
    """How each variant is timed: on a CPU with how many threads, on a GPU by calls or by replays of a graph."""
    if device == "cuda":
        names, marks = [timing_gpu.CALLS, timing_gpu.REPLAYS], [pytest.mark.benchmark(timer=timing_gpu.now)]
    else:
        counts = sorted({1, torch.get_num_threads()})
        names, marks = [timing_cpu.ONE, *(f"{count} threads" for count in counts[1:])], []
    return [pytest.param(name, marks=marks, id=name) for name in names[: None if full else 1]]


@contextlib.contextmanager
def _failures(bench: Bench, case: Case, variant: str, benchmark: Any) -> Iterator[None]:
    """Others are timed, though not against a wrong one; what a peer raises on a GPU is its own affair."""
    try:
        yield
    except KeyboardInterrupt:
        benchmark.has_error = True  # or the rounds that there are would be taken for a result
        raise
    except Exception as error:
        case.ours.pop(variant, None)
        if bench.gpu:
            message = f"{variant} failed: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
            timing_gpu.stop_if_the_device_is_lost(message)
            if variant in case.peers:
                pytest.xfail(message)
        raise


def _measure(bench: Bench, case: Case, variant: str, way: str, benchmark: Any, max_time: float) -> None:
    """Of ours that comes first the partner is the floor, of every other variant the first of ours."""
    device = timing_gpu if bench.gpu else timing_cpu
    function = {**case.ours, **case.peers}.get(variant)
    if function is None:
        pytest.skip(f"{variant} cannot serve this case, or failed before")
    with _failures(bench, case, variant, benchmark), device.way(way) as prepared:
        if not benchmark.enabled:
            case.check(variant, benchmark.pedantic(function))
            return
        case.check(variant, function())
        seconds, extra = _seconds(device, device.extra_memory, function)
        if short := seconds < LONG:
            device.before(function, short)  # as in a round: an idle GPU would wait for the launch
            seconds, _ = _seconds(device, function)
        if way == timing_gpu.REPLAYS and seconds >= timing_gpu.SHORT:
            pytest.skip("its launch is a small part of a call")

        first = next(iter(case.ours), None)
        partner = case.ours.get(first) if variant != first else case.floor if way == timing_cpu.ONE else None
        function, partner = (f and prepared(f) for f in (function, partner))
        taken = []

        def partner_first() -> None:
            if partner:
                device.before(partner, short)
                taken.append(_seconds(device, partner)[0])
            device.before(function, short)

        rounds = int(max_time / seconds / (2 if partner else 1) / (2 if short else 1))
        benchmark.group = f"{case.operator} {case.title}, {way}"
        fewest = MIN_ROUNDS if seconds < VERY_LONG else 2
        benchmark.pedantic(function, setup=partner_first, rounds=min(max(rounds, fewest), MAX_ROUNDS))

    facts = {
        "operator": case.operator,
        "case": case.title,
        "way": way,
        "variant": variant,
        "extra_bytes": extra,
    }
    ratios = [x / y for x, y in zip(benchmark.stats["data"], taken, strict=True)] if taken else []
    if variant == first:
        facts["times_ours"] = 1.0
    elif ratios:
        facts["times_ours"] = statistics.median(ratios)
    if variant in case.ours:
        floor = statistics.median(1 / x for x in ratios) if ratios and variant == first else None
        facts |= device.shares(case, way, benchmark.stats["median"], floor, bench.device)
    benchmark.extra_info |= facts


def _seconds(device: ModuleType, function: Callable, *arguments: Any) -> tuple[float, Any]:
    """Of a call, and its result."""
    start = device.now()
    result = function(*arguments)
    return device.now() - start, result
