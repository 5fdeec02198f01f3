import baselines
import ceilings
import pytest
import torch

from micron_kernels import _extension, diagonal_attention
from micron_kernels.diagonal_attention import ops

CPU_SHAPES = [(1, 1, 784, 512), (4, 1, 784, 512), (64, 1, 784, 512), (4, 4, 784, 128), (16, 1, 3136, 512)]
GPU_SHAPES = [(64, 1, 784, 512), (16, 1, 3136, 512), (64, 8, 784, 64), (16, 4, 784, 128)]
OPERATOR = "diagonal_attention"
# Compilation takes most of the time of a run, so what the targets speak of comes first.
GPU_CASES = [*((shape, torch.bfloat16) for shape in GPU_SHAPES), (GPU_SHAPES[0], torch.float32)]

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def inputs(bench, shape, dtype=torch.float32):
    shape = shape if bench.full else (2, shape[1], 49, 32)
    return [torch.randn(shape, device=bench.device).to(dtype) for _ in range(3)]


def ours(q, k, v, *, impl="native", **options):
    return diagonal_attention(q, k, v, impl=impl, **options)


def implementations(bench, dtype, shape):
    return bench.implementations(ops, dtype, width=shape[3], value_width=shape[3])


def peak():
    return ceilings.fma_peak(_extension.module.instruction_set())


def gpu_peers(bench, eager, q, k, v, rows=None, *, differentiable=False):
    """What a user of a GPU has: all that gives a logsumexp, each followed by one compiled elementwise product."""
    compiled = baselines.compiled if bench.full else (lambda function: function)
    peers = {"eager": eager, "compiled": compiled(eager)}
    if rows is None:
        peers["flex"] = compiled(baselines.flex_diagonal)
    if not differentiable:
        finish = compiled(baselines.diagonal_from_logsumexp)

        def from_logsumexp(kernel):
            def function(q, k, v):
                if rows is None:
                    return finish(q, k, v, kernel(q, k, v))
                some_q, some_k, some_v = (baselines.take_rows(x, rows) for x in (q, k, v))
                return finish(some_q, some_k, some_v, kernel(some_q, k, v))

            return function

        if q.shape[3] <= 256:
            peers["flash"] = from_logsumexp(baselines.flash_logsumexp)
        peers["efficient"] = from_logsumexp(baselines.efficient_logsumexp)
    return {name: lambda f=function: f(q, k, v) for name, function in peers.items()}


def gradients_of(function, q, k, v, gradient):
    out = function(q, k, v)
    return out, *torch.autograd.grad(out, (q, k, v), gradient)


def random_rows(bench, batch, length):
    return torch.stack([torch.randperm(length)[: length // 4] for _ in range(batch)]).to(bench.device)


@pytest.mark.cases("shape", cpu=CPU_SHAPES, cuda=[])
def test_forward_on_cpu(bench, shape):
    q, k, v = inputs(bench, shape)
    batch, heads, length, width = q.shape
    rows = random_rows(bench, batch, length)
    halves = [x.bfloat16() for x in (q, k, v)]
    peers = {
        "eager": lambda: baselines.full_attention(q, k, v),
        "native rows N/4": lambda: ours(q, k, v, rows=rows),
    }
    if bench.full:
        compiled = baselines.compiled(baselines.full_attention)
        peers["compiled"] = lambda: compiled(q, k, v)
    peers["native bf16"] = lambda: ours(*halves)
    bench.compare(
        OPERATOR,
        f"forward {shape}",
        {"native": lambda: ours(q, k, v)},
        peers,
        expected=lambda: baselines.full_attention(q, k, v),
        expected_of={
            "native rows N/4": lambda: baselines.attention_of_rows(q, k, v, rows),
            "native bf16": lambda: baselines.full_attention(*(x.float() for x in halves)),
        },
        operations=2.0 * batch * heads * length * length * width,
        peak=peak,
    )


@pytest.mark.cases("shape", cpu=[CPU_SHAPES[1], CPU_SHAPES[3]], cuda=[])
def test_forward_and_backward_on_cpu(bench, shape):
    q, k, v = (x.requires_grad_() for x in inputs(bench, shape))
    batch, heads, length, width = q.shape
    gradient = torch.randn_like(v)

    def eager():
        return gradients_of(baselines.full_attention, q, k, v, gradient)

    peers = {"eager": eager}
    if bench.full:
        compiled = baselines.compiled(baselines.full_attention)
        peers["compiled"] = lambda: gradients_of(compiled, q, k, v, gradient)
    bench.compare(
        OPERATOR,
        f"forward + backward {shape}",
        {"native": lambda: gradients_of(ours, q, k, v, gradient)},
        peers,
        expected=eager,
        operations=8.0 * batch * heads * length * length * width,
        peak=peak,
    )


def gpu_case(what, dtype, shape):
    return f"{what} {'bf16' if dtype == torch.bfloat16 else 'fp32, no TF32'} {shape}"


def floor_of(dtype, operations, moved):
    """Nothing for fp32: the rate that is measured is that of bf16 products."""
    return {"operations": operations, "moved": moved} if dtype == torch.bfloat16 else {}


@pytest.mark.cases("case", cpu=[], cuda=GPU_CASES)
def test_forward(bench, case):
    shape, dtype = case
    q, k, v = inputs(bench, shape, dtype)
    batch, heads, length, width = q.shape
    bench.compare(
        OPERATOR,
        gpu_case("forward", dtype, shape),
        {impl: lambda impl=impl: ours(q, k, v, impl=impl) for impl in implementations(bench, dtype, q.shape)},
        gpu_peers(bench, baselines.full_attention, q, k, v),
        expected=lambda: baselines.full_attention(*(bench.exact(x) for x in (q, k, v))),
        **floor_of(dtype, 2.0 * batch * heads * length * length * width, 4.0 * q.nbytes),
    )


@pytest.mark.cases("case", cpu=[], cuda=GPU_CASES[:-1])
def test_forward_and_backward(bench, case):
    shape, dtype = case
    q, k, v = (x.requires_grad_() for x in inputs(bench, shape, dtype))
    batch, heads, length, width = q.shape
    gradient = torch.randn_like(v)
    peers = gpu_peers(
        bench,
        baselines.full_attention,
        q, k, v,
        differentiable=True,
    )  # fmt: skip

    def with_gradients(forward):
        out = forward()
        return out, *torch.autograd.grad(out, (q, k, v), gradient)

    def expected():
        exact = (bench.exact(x.detach()).requires_grad_() for x in (q, k, v))
        return gradients_of(baselines.full_attention, *exact, bench.exact(gradient))

    bench.compare(
        OPERATOR,
        gpu_case("forward + backward", dtype, shape),
        {
            impl: lambda impl=impl: with_gradients(lambda: ours(q, k, v, impl=impl))
            for impl in implementations(bench, dtype, q.shape)
        },
        {name: lambda f=function: with_gradients(f) for name, function in peers.items()},
        expected=expected,
        # Forward: q, k, v in, out. Backward: those three and the gradient of out in, three gradients out.
        **floor_of(dtype, 8.0 * batch * heads * length * length * width, 11.0 * q.nbytes),
    )


@pytest.mark.cases("shape", cpu=[], cuda=GPU_SHAPES)
def test_rows(bench, shape):
    q, k, v = inputs(bench, shape, torch.bfloat16)
    batch, heads, length, width = q.shape
    rows = random_rows(bench, batch, length)
    share = rows.shape[1] / length

    def eager(q, k, v):
        return baselines.attention_of_rows(q, k, v, rows)

    bench.compare(
        OPERATOR,
        f"rows N/4 bf16 {shape}",
        {
            impl: lambda impl=impl: ours(q, k, v, rows=rows, impl=impl)
            for impl in implementations(bench, torch.bfloat16, q.shape)
        },
        gpu_peers(bench, eager, q, k, v, rows),
        expected=lambda: eager(*(bench.exact(x) for x in (q, k, v))),
        operations=2.0 * batch * heads * length * length * width * share,
        moved=(1 + 3 * share) * q.nbytes + rows.nbytes,  # all keys; queries, values and out of the rows
    )
