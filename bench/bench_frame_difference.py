import ceilings
import torch
from timing import Case, contest
from timing_cpu import rotating

from micron_kernels import frame_difference
from micron_kernels.frame_difference import ops
from micron_kernels.testing import eager_frame_difference


def cases(dtypes, *sizes):
    return [(dtype, side, *size) for dtype in dtypes for side in (224, 448) for size in sizes]


@contest(
    cpu=(["native", "eager", "compiled"], cases(["uint8", "float32"], (32, 1), (4, 11))),
    cuda=(["triton", "native", "eager", "compiled"], cases(["uint8"], (256, 1), (32, 11))),
)
def test_forward(bench, case):
    name, side, batch, time = case
    batch, side = (batch, side) if bench.full else (1, 32)
    dtype = getattr(torch, name)
    frames = torch.randint(0, 256, (batch, time, 3, side, side), dtype=torch.uint8, device=bench.device).to(
        dtype
    )
    reference = frames[:, 0].flip(0, -1).contiguous()
    inputs = rotating(frames, reference, total=(96 << 20) * bench.full)

    def eager():
        return eager_frame_difference(*next(inputs), 8)

    compiled = bench.compiled(eager_frame_difference)
    return Case(
        "frame_difference",
        f"{name} {side}² B={batch} T={time}",
        {
            impl: lambda impl=impl: frame_difference(*next(inputs), 8, impl=impl)
            for impl in bench.implementations(ops, dtype)
        },
        {"eager": eager, "compiled": lambda: compiled(*next(inputs), 8)},
        expected=eager,
        moved=frames.nbytes + reference.nbytes + 4.0 * batch * time * (side // 8) ** 2,
        floor=lambda: ceilings.read(*next(inputs)),
    )
