"""On a GPU: kernels go to the current stream, can be captured in a graph, and never wait for the device."""

import pytest
import torch

from micron_kernels import diagonal_attention, frame_difference, mask_tokens, swap_patches
from micron_kernels._implementation import why_not
from micron_kernels.info import OPERATORS

pytestmark = pytest.mark.gpu
HALF = torch.bfloat16


def attend(q, k, v, impl):
    rows = torch.arange(0, 130, 2, device=q.device).expand(2, -1)
    mask = torch.arange(130, device=q.device).expand(2, -1) % 7 > 0
    out, weights = diagonal_attention(q, k, v, rows=rows, key_mask=mask, return_weights=True, impl=impl)
    return out.float().sum(-1) + weights


def differ(frames, reference, impl):
    return frame_difference(frames, reference, 8, impl=impl)


def mask(tokens, scores, impl):
    return mask_tokens(tokens, scores, 33, weighted=True, impl=impl)


def swap(frame, other, impl):
    chosen = torch.arange(25, device=frame.device).expand(2, -1) % 3 > 0
    return swap_patches(frame, other, chosen, 8, std=torch.full((3,), 0.5, device=frame.device), impl=impl)


CALLS = {
    "diagonal_attention": (attend, [(2, 1, 130, 72)] * 3),
    "frame_difference": (differ, [(2, 3, 3, 40, 40), (2, 3, 40, 40)]),
    "poi_topk": (mask, [(2, 130, 40), (2, 130)]),
    "swap_patches": (swap, [(2, 3, 40, 40)] * 2),
}


@pytest.fixture(
    params=[(operator, impl) for operator in CALLS for impl in ("triton", "native")], ids="-".join
)
def call(request):
    """(a call, forward and backward; its inputs, which it reads where they lie)."""
    operator, impl = request.param
    why = why_not(OPERATORS[operator].IMPLEMENTATIONS, impl, torch.device("cuda"), (HALF,))
    if why is not None:
        pytest.skip(f"{impl} {why}")
    function, shapes = CALLS[operator]
    inputs = [torch.randn(shape, device="cuda").to(HALF).requires_grad_() for shape in shapes]

    def run():
        out = function(*inputs, impl)
        return [out.detach(), *torch.autograd.grad(out, inputs, torch.ones_like(out))]

    run()  # compiled and tuned
    torch.cuda.synchronize()
    return run, [x.detach() for x in inputs]


def test_a_graph_captures_the_call(call):
    run, inputs = call
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = run()
    for x in inputs:
        x.normal_()
    expected = run()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(x, y) for x, y in zip(captured, expected, strict=True))


def test_the_call_goes_to_the_current_stream(call):
    run, inputs = call
    later = [torch.randn_like(x) for x in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        for x, y in zip(inputs, later, strict=True):
            x.copy_(y)
        results = run()  # on another stream it would not wait for the copies
    stream.synchronize()
    assert all(torch.equal(x, y) for x, y in zip(results, run(), strict=True))


def test_the_call_does_not_wait_for_the_device(call):
    run, _ = call
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
