import baselines
import pytest
import torch
from report import close

from micron_kernels import mask_tokens, select_tokens, topk_mask

SHAPES = [(64, 784, 512), (256, 784, 512), (64, 3136, 512)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(bench, shape):
    shape = shape if bench.full else (2, 49, 32)
    tokens, scores = torch.randn(shape), torch.randn(shape[:2])
    k = shape[1] // 4
    bench.compare(
        "poi_topk",
        f"topk_mask {shape[:2]}",
        {
            "native": lambda: topk_mask(scores, k, impl="native"),
            "torch.topk": lambda: baselines.topk_scatter(scores, k),
        },
        check=lambda: close(topk_mask(scores, k, impl="native")[0], baselines.topk_scatter(scores, k)),
    )
    for weighted in (False, True):

        def ours(weighted=weighted):
            return mask_tokens(tokens, scores, k, weighted=weighted, impl="native")

        def eager(weighted=weighted):
            return baselines.eager_mask_tokens(tokens, scores, k, weighted=weighted)

        bench.compare(
            "poi_topk",
            f"mask_tokens{' weighted' if weighted else ''} {shape}",
            {"native": ours, "eager": eager},
            check=lambda ours=ours, eager=eager: close(ours(), eager()),
            rounds=5,
        )
    bench.compare(
        "poi_topk",
        f"select_tokens {shape}",
        {
            "native": lambda: select_tokens(tokens, scores, k, impl="native"),
            "torch.topk": lambda: baselines.topk_gather(tokens, scores, k),
        },
        check=lambda: close(
            select_tokens(tokens, scores, k, impl="native")[0],
            baselines.eager_select_tokens(tokens, scores, k),
        ),
        floor=lambda: tokens[:, :k].clone(),
        rounds=5,
    )
