import baselines
import ceilings
import pytest
import torch
from timing import rotating

from micron_kernels import frame_difference
from micron_kernels.frame_difference import ops

CPU_SIZES, GPU_SIZES = [(32, 1), (4, 11)], [(256, 1), (32, 11)]


@pytest.mark.cases("dtype", cpu=[torch.uint8, torch.float32], cuda=[torch.uint8])
@pytest.mark.parametrize("side", [224, 448])
@pytest.mark.cases("size", cpu=CPU_SIZES, cuda=GPU_SIZES)
def test_forward(bench, dtype, side, size):
    batch, time = size if bench.full else (1, size[1])
    side = side if bench.full else 32
    frames = torch.randint(0, 256, (batch, time, 3, side, side), dtype=torch.uint8, device=bench.device)
    frames = frames.to(dtype)
    reference = frames[:, 0].flip(0, -1).contiguous()
    inputs = rotating(frames, reference)

    def eager():
        return baselines.eager_frame_difference(*next(inputs), 8)

    peers = {"eager": eager}
    if bench.full:
        compiled = baselines.compiled(baselines.eager_frame_difference)
        peers["compiled"] = lambda: compiled(*next(inputs), 8)
    name = str(dtype).removeprefix("torch.")
    bench.compare(
        "frame_difference",
        f"{name} {side}² B={batch} T={time}",
        {
            impl: lambda impl=impl: frame_difference(*next(inputs), 8, impl=impl)
            for impl in bench.implementations(ops, dtype)
        },
        peers,
        expected=eager,
        moved=frames.nbytes + reference.nbytes + 4.0 * batch * time * (side // 8) ** 2,
        floor=lambda: ceilings.read(*next(inputs)),
        rounds=31 if frames.nbytes < 16 << 20 else 9,
    )
