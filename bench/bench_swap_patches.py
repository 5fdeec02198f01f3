import baselines
import ceilings
import pytest
import torch
from report import close, rotating

from micron_kernels import blockwise_mask, swap_patches

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.mark.parametrize("batch", [32, 256])
def test_forward(bench, batch):
    batch, side = (batch, 224) if bench.full else (2, 32)
    frame = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    other = frame.flip(-1).contiguous()
    grid = side // 8
    swap = blockwise_mask(batch, (grid, grid), 0.5, torch.Generator().manual_seed(0))

    inputs = rotating(frame, other, swap)

    def ours():
        return swap_patches(*next(inputs), 8, mean=MEAN, std=STD, impl="native")

    def eager():
        return baselines.eager_swap_patches(*next(inputs), 8, mean=MEAN, std=STD)

    variants = {"native": ours, "eager": eager}
    if bench.full:
        compiled = baselines.compiled(baselines.eager_swap_patches)
        variants["compiled"] = lambda: compiled(*next(inputs), 8, mean=MEAN, std=STD)
    bench.compare(
        "swap_patches",
        f"uint8 {side}² B={batch}",
        variants,
        check=lambda: close(ours(), eager()),
        floor=lambda: (ceilings.read(next(inputs)[0]), torch.ones(frame.shape)),
        rounds=5,
    )
