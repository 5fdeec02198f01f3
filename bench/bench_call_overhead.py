"""What a call costs beside its work: the smallest shapes, one thread."""

import functools
import itertools
import statistics

import pytest
import timing_cpu
import torch
import torch.nn.functional as F

import micron_kernels as mk
from micron_kernels._extension import operators
from micron_kernels.diagonal_attention import native as attention
from micron_kernels.frame_difference import native as difference
from micron_kernels.poi_topk import native as topk
from micron_kernels.swap_patches import native as swap

MASK, SCORES, TOKENS = torch.ones(1, 1, dtype=torch.bool), torch.rand(1, 4), torch.rand(1, 4, 8)
HEADS, FRAMES = [torch.rand(1, 1, 1, 8) for _ in range(3)], [torch.rand(1, 3, 8, 8) for _ in range(2)]
#: The call, its differentiable inputs, the module that hands it to the compiled operators.
CALLS = {
    "diagonal_attention": (mk.diagonal_attention, HEADS, attention),
    "frame_difference": (lambda x, y: mk.frame_difference(x, y, 8), FRAMES, difference),
    "topk_mask": (lambda x: mk.topk_mask(x, 1), [SCORES], topk),
    "mask_tokens": (lambda x: mk.mask_tokens(x, SCORES, 1), [TOKENS], topk),
    "select_tokens": (lambda x: mk.select_tokens(x, SCORES, 1), [TOKENS], topk),
    "swap_patches": (lambda x, y: mk.swap_patches(x, y, MASK, 8), FRAMES, swap),
    "scaled_dot_product_attention": (F.scaled_dot_product_attention, HEADS, None),
}
VARIANTS = ["compiled operators", "public call", "gradient wanted"]
NONE = [("scaled_dot_product_attention", "compiled operators"), ("topk_mask", "gradient wanted")]


class Recorder:
    """The compiled operators; remembers how they are called."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((getattr(operators, name), arguments))
            return self.calls[-1][0](*arguments)

        return call


def compiled_operators_alone(call, inputs, module, monkeypatch):
    """With the arguments, results allocated, that the call hands to them."""
    recorder = Recorder()
    monkeypatch.setattr(module, "operators", recorder)
    call(*inputs)
    assert recorder.calls, "the call did not reach the compiled operators"

    monkeypatch.undo()

    def alone():
        for operator, arguments in recorder.calls:
            operator(*arguments)

    return alone


def seconds_more(call, alone, calls=100, turns=60):
    """What a call takes beyond the compiled operators: the median of turns, between which the clock may change."""

    def one(function):
        start = timing_cpu.now()
        for _ in range(calls):
            function()
        return (timing_cpu.now() - start) / calls

    return statistics.median(one(call) - one(alone) for _ in range(turns))


@pytest.mark.benchmark(min_time=1e-4, max_time=0.3)
@pytest.mark.parametrize(
    ("name", "variant"), [x for x in itertools.product(CALLS, VARIANTS) if x not in NONE]
)
def test_call(bench, benchmark, monkeypatch, name, variant):
    call, inputs, module = CALLS[name]
    if bench.gpu:
        pytest.skip("of the C++ kernels on a CPU")
    if variant == "gradient wanted":
        inputs = [x.clone().requires_grad_() for x in inputs]
    benchmark.group = f"call_overhead {name}, {timing_cpu.ONE}"
    benchmark.extra_info |= {
        "operator": "call_overhead",
        "case": name,
        "way": timing_cpu.ONE,
        "variant": variant,
    }
    with timing_cpu.way(timing_cpu.ONE):
        alone = module and compiled_operators_alone(call, inputs, module, monkeypatch)
        benchmark(alone if variant == "compiled operators" else functools.partial(call, *inputs))
        if alone and variant != "compiled operators" and benchmark.enabled:
            more = seconds_more(functools.partial(call, *inputs), alone)
            benchmark.extra_info["seconds_over_operators"] = more
