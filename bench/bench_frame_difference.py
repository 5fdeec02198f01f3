import baselines
import ceilings
import pytest
import torch
from report import close, rotating

from micron_kernels import frame_difference


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("side", [224, 448])
@pytest.mark.parametrize("time", [1, 11])
def test_forward(bench, dtype, side, time):
    batch = (32 if time == 1 else 4) if bench.full else 1
    side = side if bench.full else 32
    frames = torch.randint(0, 256, (batch, time, 3, side, side), dtype=torch.uint8).to(dtype)
    reference = frames[:, 0].flip(0, -1).contiguous()

    inputs = rotating(frames, reference)

    def ours():
        return frame_difference(*next(inputs), 8, impl="native")

    def eager():
        return baselines.eager_frame_difference(*next(inputs), 8)

    variants = {"native": ours, "eager": eager}
    if bench.full:
        compiled = baselines.compiled(baselines.eager_frame_difference)
        variants["compiled"] = lambda: compiled(*next(inputs), 8)
    name = str(dtype).removeprefix("torch.")
    bench.compare(
        "frame_difference",
        f"{name} {side}² B={batch} T={time}",
        variants,
        check=lambda: close(ours(), eager()),  # copies: the same values
        floor=lambda: ceilings.read(*next(inputs)),
        rounds=31 if frames.nbytes < 16 << 20 else 9,
    )
