import baselines
import pytest
import torch

from micron_kernels import mask_tokens, select_tokens, topk_mask
from micron_kernels.poi_topk import ops

CPU_SHAPES = [(64, 784, 512), (256, 784, 512), (64, 3136, 512)]
GPU_SHAPES = [(256, 784, 512), (1024, 784, 512), (256, 3136, 512)]


def distinct_scores(batch, length, device):
    """Normally distributed, no two of a row equal: torch.topk breaks ties as it pleases."""
    ranks = torch.rand(batch, length, device=device).argsort(1)
    return torch.special.ndtri((ranks + 0.5) / length)


@pytest.mark.cases("shape", cpu=CPU_SHAPES, cuda=GPU_SHAPES)
def test_forward(bench, shape):
    batch, length, width = shape if bench.full else (2, 49, 32)
    tokens = torch.randn(batch, length, width, device=bench.device)
    scores = distinct_scores(batch, length, bench.device)
    k = length // 4
    impls = bench.implementations(ops, torch.float32)
    kept = 4.0 * batch * k * width
    indices = 8.0 * batch * k

    def positions():
        return scores.topk(k, dim=1).indices.sort(dim=1).values

    bench.compare(
        "poi_topk",
        f"topk_mask {shape[:2]}",
        {impl: lambda impl=impl: topk_mask(scores, k, impl=impl) for impl in impls},
        {"torch.topk": lambda: baselines.topk_scatter(scores, k)},
        expected=lambda: (baselines.topk_scatter(scores, k), positions()),
        expected_of={"torch.topk": lambda: baselines.topk_scatter(scores, k)},
        moved=scores.nbytes + batch * length + indices,
    )
    for weighted in (False, True):

        def eager(tokens=tokens, weighted=weighted):
            return baselines.eager_mask_tokens(tokens, scores, k, weighted=weighted)

        bench.compare(
            "poi_topk",
            f"mask_tokens{' weighted' if weighted else ''} {shape}",
            {
                impl: lambda impl=impl, weighted=weighted: mask_tokens(
                    tokens, scores, k, weighted=weighted, impl=impl
                )
                for impl in impls
            },
            {"eager": eager},
            expected=lambda eager=eager: eager(bench.exact(tokens)),
            moved=scores.nbytes + kept + tokens.nbytes + indices,
            rounds=5,
        )
    bench.compare(
        "poi_topk",
        f"select_tokens {shape}",
        {impl: lambda impl=impl: select_tokens(tokens, scores, k, impl=impl) for impl in impls},
        {"torch.topk": lambda: baselines.topk_gather(tokens, scores, k)},
        expected=lambda: (baselines.eager_select_tokens(tokens, scores, k), positions()),
        expected_of={
            "torch.topk": lambda: torch.stack(
                [x[s.argsort(descending=True)[:k]] for x, s in zip(tokens, scores, strict=True)]
            )
        },
        moved=scores.nbytes + 2 * kept + indices,
        floor=lambda: tokens[:, :k].clone(),
        rounds=5,
    )
