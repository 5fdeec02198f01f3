"""What the operators' tests share: implementations to test, memory layouts, and the comparison of numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from micron_kernels._implementation import why_not
from micron_kernels.testing import assert_within_rounding, poisoned_memory

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (*HALVES, torch.float32, torch.float64)
LAYOUTS = ("contiguous", "transposed", "sliced", "expanded", "misaligned")

Inputs = dict[str, Any]


def targets(ops) -> list:
    """(impl, device) for every implementation that ``ops`` has here.

    Without a GPU, Triton's kernels run in its interpreter and the CUDA kernels in the emulator, on CPU tensors.
    """
    result = []
    for impl in ops.IMPLEMENTATIONS:
        for device in ("cpu",) if impl == "emulated" else ("cpu", "cuda"):
            marks = [pytest.mark.gpu] if device == "cuda" else []
            result.append(pytest.param((impl, device), id=f"{impl}-{device}", marks=marks))
    return result


def on_cpu(ops) -> list[str]:
    """The implementations that take CPU tensors here."""
    return [impl for impl in ops.IMPLEMENTATIONS if cannot(ops, impl, "cpu") is None]


#: Examples that Hypothesis draws for each implementation.
EXAMPLES = 10


def tested_on_cpu(ops) -> list[str]:
    """The same without the reference, which is what they are held to."""
    return [impl for impl in on_cpu(ops) if impl != "reference"]


def cannot(ops, impl: str, device: str, *dtypes: torch.dtype) -> str | None:
    """Why ``impl`` serves no call on this machine's ``device`` with ``dtypes``; impl=None takes another one then."""
    if device == "cuda" and not torch.cuda.is_available():
        return "needs a CUDA device"
    return why_not(ops.IMPLEMENTATIONS, impl, torch.device(device), dtypes)


def a_dtype(ops, impl: str, device: str) -> torch.dtype:
    """fp32, or fp16 where ``impl`` computes in halves alone."""
    return torch.float32 if cannot(ops, impl, device, torch.float32) is None else torch.float16


def in_layout(x: Tensor, layout: str) -> Tensor:
    """The values of ``x`` (of its first batch entry if expanded) in another memory layout."""
    if layout == "contiguous" or x.dim() == 0:
        return x
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced":
        larger = torch.zeros([s + 2 for s in x.shape], dtype=x.dtype, device=x.device)
        view = larger[tuple(slice(1, s + 1) for s in x.shape)]
        return view.copy_(x)
    if layout == "expanded":
        return x[:1].expand_as(x)
    if layout == "misaligned":
        flat = torch.zeros(x.numel() + 1, dtype=x.dtype, device=x.device)
        return flat[1:].view(x.shape).copy_(x)
    if layout == "far":  # batch entries more than 2³¹ elements apart; the memory between is never touched
        stride = 2**31 + 64
        size = (x.shape[0] - 1) * stride + x[0].numel()
        buffer = torch.empty(size, dtype=x.dtype, device=x.device)
        return buffer.as_strided(x.shape, (stride, *x[0].contiguous().stride())).copy_(x)
    raise ValueError(layout)


def _promote(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _floating_outputs(result: Any) -> list[Tensor]:
    outputs = result if isinstance(result, (tuple, list)) else (result,)
    return [x for x in outputs if x.is_floating_point()]


class LargestTensor(TorchDispatchMode):
    """Inside, ``elements`` is the size of the largest tensor that an operator has returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            self.elements = max(self.elements, x.numel() if isinstance(x, Tensor) else 0)
        return result


def run(
    function: Callable, inputs: Inputs, wrt: Sequence[str], gradients: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Outputs of ``function(**inputs)`` and their gradients, given ``gradients`` of the outputs."""
    leaves = {name: inputs[name].detach().requires_grad_() for name in wrt}
    outputs = _floating_outputs(function(**{**inputs, **leaves}))
    results = {f"output {i}": x.detach() for i, x in enumerate(outputs)}
    if wrt:
        given = [g.to(x.dtype) for g, x in zip(gradients, outputs, strict=True)]
        for name, gradient in zip(
            wrt, torch.autograd.grad(outputs, list(leaves.values()), given), strict=True
        ):
            results[f"gradient of {name}"] = gradient
    return results


#: Results pooled before errors are compared. Where terms cancel, rounding errors have a heavy tail, and the
#: largest of a handful is a matter of luck: where the budget does not suffice, the plain formula is given more
#: draws than the tested implementation, up to so many times as many, to show its worst.
POOLED = 4096
PLAIN_DRAWS_PER_DRAW = 4
#: GPU kernels on a CPU show their logic; a few draws do, and take a thousand times the time of a GPU.
SLOW = ("triton", "emulated")
SLOW_DRAWS = 2


def check(
    function: Callable,
    eager: Callable,
    make: Callable[[], Inputs],
    wrt: Sequence[str],
    impl: str,
    gradient_layout: str = "contiguous",
) -> None:
    """Hold ``function(impl=impl)`` on inputs from ``make`` to the rounding budget against fp64."""
    tested_pool: dict[str, list[tuple[Tensor, Tensor]]] = {}
    plain_errors: dict[str, list[Tensor]] = {}
    inputs = make()
    slow = impl in SLOW and not any(x.is_cuda for x in inputs.values() if isinstance(x, Tensor))
    with torch.no_grad():
        outputs = _floating_outputs(function(**inputs, impl="reference"))

    def draw(inputs: Inputs, with_tested: bool) -> int:
        promoted = {name: _promote(x) for name, x in inputs.items()}
        gradients = [
            in_layout(torch.randn_like(x, memory_format=torch.contiguous_format), gradient_layout)
            for x in outputs
        ]
        wide = [_promote(g) for g in gradients]
        oracle = run(lambda **x: function(**x, impl="reference"), promoted, wrt, wide)
        for name, result in run(eager, inputs, wrt, gradients).items():
            plain_errors.setdefault(name, []).append((result.double() - oracle[name]).flatten())
        if with_tested:
            for name, result in run(lambda **x: function(**x, impl=impl), inputs, wrt, gradients).items():
                assert result.shape == oracle[name].shape, name
                tested_pool.setdefault(name, []).append((result.flatten(), oracle[name].flatten()))
        return min(x.numel() for x in oracle.values())

    drawn = draw(inputs, True)
    draws = 1 if drawn == 0 else min(32, -(-POOLED // drawn))
    tested_draws = min(draws, SLOW_DRAWS) if slow else draws
    for _ in range(tested_draws - 1):
        draw(make(), True)
    # The largest error of the plain formula only grows by its further draws, so that they are spared where it suffices.
    spare = draws * PLAIN_DRAWS_PER_DRAW - tested_draws if drawn else 0
    for name, pool in tested_pool.items():
        tested, oracle = (torch.cat(column) for column in zip(*pool, strict=True))
        while True:
            try:
                assert_within_rounding(name, tested, oracle, plain_error=torch.cat(plain_errors[name]))
                break
            except AssertionError:
                if spare <= 0 or not tested.isfinite().all():
                    raise
            more = min(spare, max(tested_draws, 8))
            spare -= more
            for _ in range(more):
                draw(make(), False)


def check_empty(function: Callable, inputs: Inputs, wrt: Sequence[str], impl: str) -> None:
    """Where a size is 0, ``function(impl=impl)`` and its gradients, of a sum, are held to the rounding budget."""

    def results(impl: str, inputs: Inputs) -> list[Tensor]:
        leaves = {name: inputs[name].detach().requires_grad_() for name in wrt}
        outputs = _floating_outputs(function(**{**inputs, **leaves}, impl=impl))
        return [*outputs, *torch.autograd.grad(sum(x.sum() for x in outputs), list(leaves.values()))]

    with poisoned_memory():
        tested, plain = results(impl, inputs), results("reference", inputs)
        oracle = results("reference", {name: _promote(x) for name, x in inputs.items()})
        for i, (x, y, z) in enumerate(zip(tested, oracle, plain, strict=True)):
            assert_within_rounding(f"result {i}", x, y, plain_error=z.double() - y)


def check_compiles(
    function: Callable, inputs: Inputs, wrt: Sequence[str], backend: str, dynamic: bool
) -> None:
    """``function`` gives the same under ``torch.compile(fullgraph=True)``, forward and backward."""
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend, dynamic=dynamic)
    with torch.no_grad():
        gradients = [torch.randn_like(x) for x in _floating_outputs(function(**inputs))]
    expected = run(function, inputs, wrt, gradients)
    for name, result in run(compiled, inputs, wrt, gradients).items():
        torch.testing.assert_close(result, expected[name], rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")


def check_exports(function: Callable, inputs: Inputs) -> None:
    """``function`` gives the same through ``torch.export``."""

    class Wrapped(torch.nn.Module):
        def forward(self, **x):
            return function(**x)

    program = torch.export.export(Wrapped(), (), inputs, strict=False)
    expected, result = function(**inputs), program.module()(**inputs)
    for x, y in zip(_floating_outputs(expected), _floating_outputs(result), strict=True):
        assert torch.equal(x, y)


def check_repeats(function: Callable, inputs: Inputs, wrt: Sequence[str]) -> None:
    """The same inputs give the same bits, run after run."""
    with torch.no_grad():
        gradients = [torch.randn_like(x) for x in _floating_outputs(function(**inputs))]
    first = run(function, inputs, wrt, gradients)
    for _ in range(3):
        for name, result in run(function, inputs, wrt, gradients).items():
            assert torch.equal(result, first[name]), name
