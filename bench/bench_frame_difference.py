import ceilings
import torch
from timing import Case, contest
from timing_cpu import rotating

from micron_kernels import frame_difference
from micron_kernels.frame_difference import ops
from micron_kernels.testing import eager_frame_difference

CPU_CASES = [("uint8", 224, 32, 1), ("uint8", 224, 4, 11), ("uint8", 448, 32, 1), ("uint8", 448, 4, 11),
             ("float32", 224, 32, 1), ("float32", 224, 4, 11)]  # fmt: skip
GPU_CASES = [("uint8", 224, 256, 1), ("uint8", 224, 32, 11), ("uint8", 448, 256, 1), ("uint8", 448, 32, 11)]


@contest(
    cpu=(["native", "eager", "compiled"], CPU_CASES),
    cuda=(["triton", "eager", "compiled"], GPU_CASES),
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
