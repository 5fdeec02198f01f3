"""What the CUDA kernels do at sizes where they choose another path, in the emulator and on a GPU."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from micron_kernels import (
    diagonal_attention,
    frame_difference,
    mask_tokens,
    select_tokens,
    swap_patches,
    topk_mask,
)
from micron_kernels.frame_difference import ops as frame_difference_ops
from micron_kernels.info import OPERATORS
from micron_kernels.testing import poisoned_memory

emulated = pytest.param(
    ("emulated", "cpu"),
    id="emulated-cpu",
    marks=pytest.mark.skipif(
        "emulated" not in OPERATORS["poi_topk"].IMPLEMENTATIONS,
        reason="the CUDA kernels cannot be emulated here",
    ),
)
on_gpu = pytest.param(("native", "cuda"), id="native-cuda", marks=pytest.mark.gpu)
target = pytest.mark.parametrize("target", [emulated, on_gpu])


def image(shape, dtype, device):
    x = torch.randint(0, 256, shape, device=device)
    return x.to(torch.uint8) if dtype == torch.uint8 else (x / 255).to(dtype)


def close(result, expected):
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


@target
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("channels", "patch_size", "rows", "columns"),
    [
        (3, 8, 2, 12),  # uint8: two patches a vector
        (3, 4, 2, 200),  # several groups of patches a strip
        (1, 600, 1, 2),  # patches wider than a block of threads
        (4, 150, 1, 4),
        (2, 12, 1, 8),  # vectors that straddle patches
    ],
)
def test_frame_difference_at_every_split(target, dtype, channels_last, channels, patch_size, rows, columns):
    impl, device = target
    shape = (channels, rows * patch_size, columns * patch_size)
    time = 5 if patch_size < 100 else 1
    frames, reference = image((1, time, *shape), dtype, device), image((1, *shape), dtype, device)
    if channels_last:
        frames, reference = (x.movedim(-3, -1).contiguous().movedim(-1, -3) for x in (frames, reference))
    scale = torch.rand(channels, device=device) + 0.5
    for norm in ("l1", "l2"):
        arguments = (frames, reference, patch_size)
        result = frame_difference(*arguments, norm=norm, channel_scale=scale, impl=impl)
        close(result, frame_difference(*arguments, norm=norm, channel_scale=scale, impl="reference"))


@target
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("width", [16, 10])
def test_gradients_of_frames_in_channels_last_memory(target, squared, width):
    impl, device = target
    native = frame_difference_ops.IMPLEMENTATIONS[impl]
    frames, reference = (
        torch.rand(2, 6, 3, 4, width, device=device),
        torch.rand(2, 3, 4, width, device=device),
    )
    grad = torch.randn(2, 6, width, device=device)
    norm = "l2" if squared else "l1"
    expected = native.backward(grad, frames, reference, 2, norm, None)
    inputs = [x.movedim(-3, -1).contiguous().movedim(-1, -3) for x in (frames, reference)]
    with poisoned_memory():
        results = native.operators.frame_difference_backward(
            grad, *inputs, 2, squared, torch.ones(3, device=device), True
        )
    for result, x, planar in zip(results, inputs, expected, strict=True):
        assert torch.equal(result, planar)
        assert result.stride() == x.stride()


@target
@pytest.mark.parametrize(
    ("dtype", "out"), [(torch.uint8, torch.bfloat16), (torch.float16, torch.float32)], ids=str
)
def test_swapping_across_blocks_and_channels(target, dtype, out):
    impl, device = target
    shape = (2, 6, 16, 1200)
    frame, other = (image(shape, dtype, device) for _ in range(2))
    swap = torch.rand(2, 2 * 150, device=device) < 0.5
    result = swap_patches(frame, other, swap, 8, dtype=out, impl=impl)
    by_element = swap_patches(
        frame.transpose(2, 3).contiguous().transpose(2, 3), other, swap, 8, dtype=out, impl=impl
    )
    assert torch.equal(result, by_element)
    torch.testing.assert_close(result, swap_patches(frame, other, swap, 8, dtype=out, impl="reference"))


@target
@pytest.mark.parametrize("length", [5000, 12000, 23000])  # with its keys in shared memory, and without
def test_selecting_from_long_rows(target, length):
    impl, device = target
    scores = torch.randint(-50, 50, (2, length), device=device) / 8  # many ties
    for k in (1, length // 3, length - 1):
        for result, expected in zip(
            topk_mask(scores, k, impl=impl), topk_mask(scores, k, impl="reference"), strict=True
        ):
            assert torch.equal(result, expected)


@target
@pytest.mark.parametrize("width", [64, 33])
def test_moving_many_tokens(target, width):
    impl, device = target
    tokens, scores = torch.randn(2, 1500, width, device=device), torch.randn(2, 1500, device=device)
    for function in (mask_tokens, select_tokens):
        leaves = [x.clone().requires_grad_() for x in (tokens, scores)]
        results = []
        for name in (impl, "reference"):
            out = function(*leaves, 1200, weighted=True, impl=name)
            out = out if isinstance(out, torch.Tensor) else out[0]
            results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
        for result, expected in zip(*results, strict=True):
            torch.testing.assert_close(result, expected)


@target
def test_positions_outside_are_ignored(target):
    impl, device = target
    native = OPERATORS["poi_topk"].IMPLEMENTATIONS[impl]
    tokens, scores = torch.randn(1, 40, 8, device=device), torch.randn(1, 40, device=device)
    indices = torch.tensor([[-7, 3, 40, 2**62]], device=device)
    selected = torch.randn(1, 4, 8, device=device)
    expected = torch.zeros_like(tokens)
    expected[0, 3] = selected[0, 1]
    with poisoned_memory():
        d_tokens, _ = native.select_tokens_backward(selected, tokens, scores, indices, False)
    assert torch.equal(d_tokens, expected)
    with poisoned_memory():
        d_tokens, _ = native.mask_tokens_backward(tokens, tokens, scores, indices, False)
    expected[0, 3] = tokens[0, 3]
    assert torch.equal(d_tokens, expected)


@pytest.mark.skipif(
    "emulated" not in OPERATORS["diagonal_attention"].IMPLEMENTATIONS,
    reason="the CUDA kernels cannot be emulated here",
)
@pytest.mark.parametrize("options", ["rows", "key_mask"])
def test_the_emulator_shows_a_missing_proxy_fence(options, monkeypatch):
    """Rows that are gathered, and dS in the passes, get to wgmma by ordinary stores."""
    query, key, value = (torch.randn(1, 1, 70, 64).half().requires_grad_() for _ in range(3))
    given = (
        {"rows": torch.arange(70)[None]} if options == "rows" else {"key_mask": torch.arange(70)[None] > 0}
    )

    def gradient():
        out = diagonal_attention(query, key, value, impl="emulated", **given)
        return torch.autograd.grad(out.float().sum(), query)[0]

    assert gradient().isfinite().all()
    monkeypatch.setenv("MICRON_EMULATOR_WITHOUT", "proxy_fence")
    assert not gradient().isfinite().all()


@pytest.mark.skipif(
    "emulated" not in OPERATORS["diagonal_attention"].IMPLEMENTATIONS,
    reason="the CUDA kernels cannot be emulated here",
)
def test_the_emulator_shows_registers_that_nobody_gave_up():
    """The pass kernel's products take more than the block was launched with. The emulator ends the process."""
    code = (
        "import torch, conftest, micron_kernels as mk\n"
        "q, k, v = (torch.randn(1, 1, 70, 64).half().requires_grad_() for _ in range(3))\n"
        "out = mk.diagonal_attention(q, k, v, rows=torch.arange(70)[None], impl='emulated')\n"
        "out.float().sum().backward()"
    )
    environment = os.environ | {
        "MICRON_EMULATOR_WITHOUT": "registers_down",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGABRT, ended.stderr
    assert "deadlock" in ended.stderr
