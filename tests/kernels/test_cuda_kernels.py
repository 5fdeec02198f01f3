"""What the CUDA kernels do at sizes where they choose another path, in the emulator and on a GPU."""

import signal
import sys
from pathlib import Path

import pytest
import torch

import fresh
from micron_kernels import diagonal_attention, mask_tokens, select_tokens, topk_mask
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


@target
@pytest.mark.parametrize("width", [64, 128])  # up to 64 some of the exponentials are polynomials
def test_weights_are_exact_where_products_are(target, width):
    impl, device = target
    query, key = (torch.randint(-2, 3, (1, 1, 200, width), device=device).bfloat16() for _ in range(2))
    p = diagonal_attention(query, key, key, scale=0.25, return_weights=True, impl=impl)[1]
    scores = 0.25 * query.double() @ key.double().mT
    torch.testing.assert_close(
        p.double(), scores.softmax(-1).diagonal(dim1=-2, dim2=-1), rtol=5e-6, atol=1e-30
    )


@target
@pytest.mark.parametrize("width", [64, 128])
def test_one_key_of_nan_is_in_every_sum(target, width):
    impl, device = target
    query, key = (torch.randn(1, 32, 70, width, device=device).bfloat16() for _ in range(2))
    for head in range(32):
        key[0, head, head, 3] = torch.nan
    assert diagonal_attention(query, key, key, return_weights=True, impl=impl)[1].isnan().all()


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


ATTENTION = """
import torch, conftest, micron_kernels as mk
q, k, v = (torch.randn(1, 1, 70, 64).half().requires_grad_() for _ in range(3))
out = mk.diagonal_attention(q, k, v, rows=torch.arange(70)[None], impl="emulated")
out.float().sum().backward()
"""
SELECTION = """
import torch, conftest, micron_kernels as mk
mk.topk_mask(torch.randn(1, 12000), 5, impl="emulated")
"""


@pytest.mark.skipif(
    "emulated" not in OPERATORS["diagonal_attention"].IMPLEMENTATIONS,
    reason="the CUDA kernels cannot be emulated here",
)
@pytest.mark.parametrize(
    ("fault", "code", "found"),
    [
        # The pass kernel's products take more registers than the block was launched with.
        ("registers_down", ATTENTION, "deadlock"),
        ("alignment", ATTENTION, "data must be aligned to 16 bytes"),
        # The keys alone would fit into 48 KB, beside the 788 bytes that the kernel has anyway they do not.
        ("opt_in", SELECTION, "more than 48 KB of shared memory"),
    ],
)
def test_the_emulator_ends_the_process_of_a_planted_fault(fault, code, found):
    paths = [str(Path(__file__).parent), *sys.path]
    ended = fresh.run(
        f"import sys; sys.path[:0] = {paths}" + code, environment={"MICRON_EMULATOR_WITHOUT": fault}
    )
    assert ended.status == -signal.SIGABRT, ended.output
    assert found in ended.output
