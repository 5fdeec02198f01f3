import itertools

import baselines
import pytest
import torch
from timing import Case, contest

from micron_kernels import diagonal_attention
from micron_kernels.diagonal_attention import ops
from micron_kernels.diagonal_attention.arguments import keeps_exponentials

# (B, H, N, E): μ-BERT's, and many heads of it; keys much longer than wide; one key, which is overhead alone.
SHAPE, HEADS, LONG, ONE_KEY = (4, 1, 784, 512), (4, 4, 784, 128), (1, 1, 3136, 512), (4096, 1, 1, 8)
CPU_CASES = [
    *itertools.product([(1, 1, 784, 512), SHAPE, (64, 1, 784, 512), HEADS, LONG, ONE_KEY], ["fp32"]),
    *itertools.product([(1, 1, 784, 512), SHAPE, HEADS], ["bf16"]),
]
CPU_BACKWARD = [*itertools.product([SHAPE, HEADS, LONG, ONE_KEY], ["fp32"]), (SHAPE, "bf16")]
GPU_SHAPES = [(64, 1, 784, 512), (16, 1, 3136, 512), (64, 8, 784, 64), (16, 4, 784, 128)]
# Compilation takes most of the time of a run, so what the targets speak of comes first.
GPU_CASES = [*itertools.product(GPU_SHAPES, ["bf16"]), (GPU_SHAPES[0], "fp32")]
ON_CPU, ON_GPU = ["native", "eager", "compiled"], ["triton", "native", "eager", "compiled"]

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def inputs(bench, case):
    """[q, k, v], dtype. On a GPU fp32 is torch's default, without TF32."""
    shape, name = case
    shape = shape if bench.full else (2, shape[1], min(49, shape[2]), 32)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
    return [torch.randn(shape, device=bench.device).to(dtype) for _ in range(3)], dtype


def ceiling(bench, q, products, moved):
    """For that many products of the size of Q·Kᵀ. Nothing where the rate that is measured is of another dtype."""
    batch, heads, length, width = q.shape
    measured = torch.bfloat16 if bench.gpu else torch.float32
    operations = 2.0 * batch * heads * length * length * width * products
    return {"operations": operations, "moved": moved} if q.dtype == measured else {}


def ours(bench, dtype, width, run, **options):
    """``run`` of the operator by each implementation."""
    return {
        impl: run(lambda *qkv, impl=impl: diagonal_attention(*qkv, impl=impl, **options))
        for impl in bench.implementations(ops, dtype, width=width, value_width=width)
    }


def peers(bench, eager, run, q, *, rows=None, differentiable=False):
    """``run`` of the formula; on a GPU of all that gives a logsumexp too, and one compiled elementwise product."""
    functions = {"eager": eager, "compiled": bench.compiled(eager)}
    if bench.gpu and rows is None:
        functions["flex"] = bench.compiled(baselines.flex_diagonal)
    if bench.gpu and not differentiable:
        finish = bench.compiled(baselines.diagonal_from_logsumexp)

        def from_logsumexp(kernel):
            def function(q, k, v):
                if rows is None:
                    return finish(q, k, v, kernel(q, k, v))
                some_q, some_k, some_v = (baselines.take_rows(x, rows) for x in (q, k, v))
                return finish(some_q, some_k, some_v, kernel(some_q, k, v))

            return function

        if q.shape[3] <= 256:
            functions["flash"] = from_logsumexp(baselines.flash_logsumexp)
        functions["efficient"] = from_logsumexp(baselines.efficient_logsumexp)
    return {name: run(function) for name, function in functions.items()}


@contest(cpu=([*ON_CPU, "native fp32"], CPU_CASES), cuda=([*ON_GPU, "flex", "flash", "efficient"], GPU_CASES))
def test_forward(bench, case):
    qkv, dtype = inputs(bench, case)
    exact = [bench.exact(x) for x in qkv]

    def run(function):
        return lambda: function(*qkv)

    others = peers(bench, baselines.full_attention, run, qkv[0])
    if not bench.gpu and dtype == torch.bfloat16:
        others["native fp32"] = lambda: diagonal_attention(*exact, impl="native")
    return Case(
        "diagonal_attention",
        f"forward {case[1]} {case[0]}",
        ours(bench, dtype, qkv[0].shape[3], run),
        others,
        expected=lambda: baselines.full_attention(*exact),
        **ceiling(bench, qkv[0], 1, 4.0 * qkv[0].nbytes),
    )


@contest(cpu=(ON_CPU, CPU_BACKWARD), cuda=([*ON_GPU, "flex"], GPU_CASES[:-1]))
def test_forward_and_backward(bench, case):
    qkv, dtype = inputs(bench, case)
    qkv = [x.requires_grad_() for x in qkv]
    gradient = torch.randn_like(qkv[0])

    def run(function, qkv=qkv, gradient=gradient):
        def with_gradients():
            out = function(*qkv)
            return out, *torch.autograd.grad(out, qkv, gradient)

        return with_gradients

    exact = [bench.exact(x.detach()).requires_grad_() for x in qkv]
    products = 3 if keeps_exponentials(qkv[0], None, None) else 4  # without them Q·Kᵀ is made twice
    return Case(
        "diagonal_attention",
        f"forward + backward {case[1]} {case[0]}",
        ours(bench, dtype, qkv[0].shape[3], run),
        peers(bench, baselines.full_attention, run, qkv[0], differentiable=True),
        expected=run(baselines.full_attention, exact, bench.exact(gradient)),
        # Forward: q, k, v in, out. Backward: those three and the gradient of out in, three gradients out.
        **ceiling(bench, qkv[0], products, 11.0 * qkv[0].nbytes),
    )


@contest(
    cpu=([*ON_CPU, "native all rows"], [(SHAPE, "fp32"), (HEADS, "fp32")]),
    cuda=([*ON_GPU, "flash", "efficient"], GPU_CASES[:-1]),
)
def test_rows(bench, case):
    qkv, dtype = inputs(bench, case)
    batch, _, length, width = qkv[0].shape
    rows = torch.stack([torch.randperm(length)[: length // 4] for _ in range(batch)]).to(bench.device)
    share = rows.shape[1] / length

    def run(function):
        return lambda: function(*qkv)

    def eager(q, k, v):
        return baselines.attention_of_rows(q, k, v, rows)

    others = peers(bench, eager, run, qkv[0], rows=rows)
    others["native all rows"] = lambda: diagonal_attention(*qkv, impl="native")
    return Case(
        "diagonal_attention",
        f"rows N/4 {case[1]} {case[0]}",
        ours(bench, dtype, width, run, rows=rows),
        others,
        expected=lambda: eager(*(bench.exact(x) for x in qkv)),
        expected_of={"native all rows": lambda: baselines.full_attention(*qkv)},
        # All keys; queries, values and out of the rows.
        **ceiling(bench, qkv[0], share, (1 + 3 * share) * qkv[0].nbytes + rows.nbytes),
    )
