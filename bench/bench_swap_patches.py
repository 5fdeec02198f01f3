import ceilings
import torch
from timing import Case, contest
from timing_cpu import rotating

from micron_kernels import blockwise_mask, swap_patches
from micron_kernels.swap_patches import ops
from micron_kernels.testing import eager_swap_patches


@contest(
    cpu=(["native", "eager", "compiled"], [32, 256]),
    cuda=(["triton", "eager", "compiled"], [256, 1024]),
)
def test_forward(bench, batch):
    batch, side = (batch, 224) if bench.full else (2, 32)
    frame = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=bench.device)
    other = frame.flip(-1).contiguous()
    grid = side // 8
    swap = blockwise_mask(batch, (grid, grid), 0.5, torch.Generator().manual_seed(0)).to(bench.device)
    mean = torch.tensor([0.485, 0.456, 0.406], device=bench.device)
    std = torch.tensor([0.229, 0.224, 0.225], device=bench.device)
    inputs = rotating(frame, other, swap, total=(96 << 20) * bench.full)

    def eager():
        return eager_swap_patches(*next(inputs), 8, mean=mean, std=std)

    compiled = bench.compiled(eager_swap_patches)
    return Case(
        "swap_patches",
        f"uint8 {side}² B={batch}",
        {
            impl: lambda impl=impl: swap_patches(*next(inputs), 8, mean=mean, std=std, impl=impl)
            for impl in bench.implementations(ops, torch.uint8, torch.float32)
        },
        {"eager": eager, "compiled": lambda: compiled(*next(inputs), 8, mean=mean, std=std)},
        expected=eager,
        moved=5.0 * frame.nbytes + swap.nbytes,  # of two pixels one is read, a byte; one is written, four
        floor=lambda: (ceilings.read(next(inputs)[0]), torch.ones(frame.shape)),
    )
