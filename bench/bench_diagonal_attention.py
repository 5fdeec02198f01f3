import baselines
import ceilings
import pytest
import torch
from report import close

from micron_kernels import _extension, diagonal_attention

SHAPES = [(1, 1, 784, 512), (4, 1, 784, 512), (64, 1, 784, 512), (4, 4, 784, 128), (16, 1, 3136, 512)]
OPERATOR = "diagonal_attention"


def inputs(bench, shape, dtype=torch.float32):
    shape = shape if bench.full else (1, shape[1], 49, 32)
    return [torch.randn(shape).to(dtype) for _ in range(3)]


def ours(q, k, v, **options):
    return diagonal_attention(q, k, v, impl="native", **options)


def peak():
    return ceilings.fma_peak(_extension.module.instruction_set())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(bench, shape):
    q, k, v = inputs(bench, shape)
    batch, heads, length, width = q.shape
    rows = torch.stack([torch.randperm(length)[: length // 4] for _ in range(batch)])
    variants = {
        "native": lambda: ours(q, k, v),
        "eager": lambda: baselines.full_attention(q, k, v),
        "native rows N/4": lambda: ours(q, k, v, rows=rows),
    }
    if bench.full:
        compiled = baselines.compiled(baselines.full_attention)
        variants["compiled"] = lambda: compiled(q, k, v)
        halves = [x.bfloat16() for x in (q, k, v)]
        variants["native bf16"] = lambda: ours(*halves)
    bench.compare(
        OPERATOR,
        f"forward {shape}",
        variants,
        check=lambda: close(ours(q, k, v), baselines.full_attention(q, k, v)),
        operations=2.0 * batch * heads * length * length * width,
        peak=peak,
    )


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3]], ids=str)
def test_forward_and_backward(bench, shape):
    q, k, v = (x.requires_grad_() for x in inputs(bench, shape))
    batch, heads, length, width = q.shape
    gradient = torch.randn_like(v)

    def step(function):
        out = function(q, k, v)
        return out, *torch.autograd.grad(out, (q, k, v), gradient)

    def check():
        for tested, expected in zip(step(ours), step(baselines.full_attention), strict=True):
            close(tested, expected)

    variants = {"native": lambda: step(ours), "eager": lambda: step(baselines.full_attention)}
    if bench.full:
        compiled = baselines.compiled(baselines.full_attention)
        variants["compiled"] = lambda: step(compiled)
    bench.compare(
        OPERATOR,
        f"forward + backward {shape}",
        variants,
        check=check,
        operations=8.0 * batch * heads * length * length * width,
        peak=peak,
    )
