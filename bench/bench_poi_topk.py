import itertools

import baselines
import torch
from timing import Case, contest

from micron_kernels import mask_tokens, select_tokens, topk_mask
from micron_kernels.poi_topk import ops
from micron_kernels.testing import eager_mask_tokens, eager_select_tokens

CPU_SHAPES = [(64, 784, 512), (64, 3136, 512)]
GPU_SHAPES = [(256, 784, 512), (1024, 784, 512), (256, 3136, 512)]
TOPK = ["native", "torch.topk", "compiled"]
MASK = ["native", "eager", "compiled"]


def inputs(bench, shape):
    """tokens; scores, no two of a row equal, since torch.topk breaks ties as it pleases; k"""
    batch, length, width = shape if bench.full else (2, 49, 32)
    ranks = torch.rand(batch, length, device=bench.device).argsort(1)
    scores = torch.special.ndtri((ranks + 0.5) / length)
    return torch.randn(batch, length, width, device=bench.device), scores, length // 4


def ours(bench, function):
    return {impl: lambda impl=impl: function(impl=impl) for impl in bench.implementations(ops, torch.float32)}


def positions(scores, k):
    return scores.topk(k, dim=1).indices.sort(dim=1).values


def bytes_of_scores(scores, k):
    """Read, and the indices written."""
    return scores.nbytes + 8.0 * len(scores) * k


@contest(cpu=(TOPK, CPU_SHAPES), cuda=(["triton", *TOPK], GPU_SHAPES))
def test_topk_mask(bench, shape):
    _, scores, k = inputs(bench, shape)
    compiled = bench.compiled(baselines.topk_scatter)
    mask = baselines.topk_scatter(scores, k)
    return Case(
        "poi_topk",
        f"topk_mask {tuple(scores.shape)}",
        ours(bench, lambda impl: topk_mask(scores, k, impl=impl)),
        {"torch.topk": lambda: baselines.topk_scatter(scores, k), "compiled": lambda: compiled(scores, k)},
        expected=lambda: (mask, positions(scores, k)),
        expected_of=dict.fromkeys(("torch.topk", "compiled"), lambda: mask),
        moved=bytes_of_scores(scores, k) + mask.nbytes,
    )


@contest(
    cpu=(MASK, list(itertools.product(CPU_SHAPES, [False, True]))),
    cuda=(["triton", *MASK], list(itertools.product(GPU_SHAPES, [False, True]))),
)
def test_mask_tokens(bench, case):
    shape, weighted = case
    tokens, scores, k = inputs(bench, shape)
    compiled = bench.compiled(eager_mask_tokens)
    return Case(
        "poi_topk",
        f"mask_tokens{' weighted' if weighted else ''} {tuple(tokens.shape)}",
        ours(bench, lambda impl: mask_tokens(tokens, scores, k, weighted=weighted, impl=impl)),
        {
            "eager": lambda: eager_mask_tokens(tokens, scores, k, weighted=weighted),
            "compiled": lambda: compiled(tokens, scores, k, weighted=weighted),
        },
        expected=lambda: eager_mask_tokens(bench.exact(tokens), scores, k, weighted=weighted),
        moved=bytes_of_scores(scores, k) + 4.0 * len(tokens) * k * tokens.shape[2] + tokens.nbytes,
    )


@contest(cpu=(TOPK, CPU_SHAPES), cuda=(["triton", *TOPK], GPU_SHAPES))
def test_select_tokens(bench, shape):
    tokens, scores, k = inputs(bench, shape)
    compiled = bench.compiled(baselines.topk_gather)
    in_order_of_scores = [x[s.argsort(descending=True)[:k]] for x, s in zip(tokens, scores, strict=True)]
    return Case(
        "poi_topk",
        f"select_tokens {tuple(tokens.shape)}",
        ours(bench, lambda impl: select_tokens(tokens, scores, k, impl=impl)),
        {
            "torch.topk": lambda: baselines.topk_gather(tokens, scores, k),
            "compiled": lambda: compiled(tokens, scores, k),
        },
        expected=lambda: (eager_select_tokens(tokens, scores, k), positions(scores, k)),
        expected_of=dict.fromkeys(("torch.topk", "compiled"), lambda: torch.stack(in_order_of_scores)),
        moved=bytes_of_scores(scores, k) + 2 * 4.0 * len(tokens) * k * tokens.shape[2],
        floor=lambda: tokens[:, :k].clone(),
    )
