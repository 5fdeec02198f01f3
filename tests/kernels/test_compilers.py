"""The public calls under compilers, and where there is no data."""

import textwrap

import pytest
import torch
from torch._subclasses import FakeTensorMode

import fresh
from micron_kernels import (
    diagonal_attention,
    frame_difference,
    mask_tokens,
    select_tokens,
    swap_patches,
    topk_mask,
)
from micron_kernels.nn import DiagonalMicroAttention


def attention(x):
    rows, key_mask = torch.arange(2).expand(len(x), 2), x[:, 0, :, 0] < torch.inf
    some = diagonal_attention(x, x.flip(2), x, row_weight=x[..., 0], rows=rows, key_mask=key_mask)
    return diagonal_attention(x, x.flip(2), x, scale=0.3).sum() + some.sum()


def of_tokens(x):
    scores = x[..., 0]
    kept, indices = select_tokens(x, scores, 3, weighted=True)
    mask, _ = topk_mask(scores, 2)
    return mask_tokens(x, scores, 0.5, weighted=True).sum() + kept.sum() + (indices.sum() + mask.sum())


CALLS = {
    "attention": ((2, 1, 5, 8), attention),
    "difference": ((2, 3, 2, 8, 8), lambda x: frame_difference(x, x[:, 0], 4, norm="l2").sum()),
    "topk": ((2, 9, 4), of_tokens),
    "swap": (
        (2, 3, 8, 8),
        lambda x: swap_patches(
            x, x.flip(-1), x[:, 0, :2, :2].flatten(1) > 0, 4, mean=(0, 1, 2), std=(1, 2, 3)
        ).sum(),
    ),
}
every_call = pytest.mark.parametrize("call", CALLS)


@every_call
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_call_without_impl_is_one_graph_also_where_it_falls_back(call, dynamic, dtype):
    torch._dynamo.reset()
    shape, function = CALLS[call]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (2, 3):
        x = torch.randn(batch, *shape[1:], dtype=dtype).requires_grad_()
        expected, result = function(x), compiled(x)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(torch.autograd.grad(result, x), torch.autograd.grad(expected, x))


def test_a_symbolic_scale_is_not_asked_for_its_value():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, scale: diagonal_attention(x, x.flip(2), x, scale=scale),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    x = torch.randn(1, 1, 4, 8)
    for scale in (0.3, 0.5, 2.0):
        torch.testing.assert_close(compiled(x, scale), diagonal_attention(x, x.flip(2), x, scale=scale))


def test_the_module_compiles_for_any_number_of_patches():
    torch._dynamo.reset()
    module = DiagonalMicroAttention(8, 2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for patches in (3, 5, 9):
        x = torch.randn(2, patches, 8, requires_grad=True)
        torch.testing.assert_close(compiled(x, x, x), module(x, x, x))
        compiled(x, x, x).sum().backward()


@pytest.mark.parametrize(
    ("call", "transform"),
    [
        ("attention", "jvp"),
        ("attention", "grad"),
        ("attention", "vmap"),
        ("difference", "jvp"),
        ("swap", "jvp"),
    ],
)
def test_transforms_of_torch_func_compile(call, transform):
    shape, function = CALLS[call]
    torch._dynamo.reset()
    x, direction = torch.randn(shape), torch.randn(shape)
    transformed = {
        "jvp": lambda x: torch.func.jvp(function, (x,), (direction,))[1],
        "grad": torch.func.grad(function),
        "vmap": lambda x: torch.vmap(function)(torch.stack([x, direction])),
    }[transform]
    compiled = torch.compile(transformed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), transformed(x))


@every_call
@pytest.mark.parametrize("without_data", [lambda: torch.device("meta"), FakeTensorMode], ids=["meta", "fake"])
def test_shapes_follow_without_data(call, without_data):
    shape, function = CALLS[call]
    with without_data():
        x = torch.randn(shape).requires_grad_()
        result = function(x)
        (gradient,) = torch.autograd.grad(result, x)
    assert result.shape == ()
    assert result.device.type == x.device.type
    assert gradient.shape == x.shape


def test_an_exported_program_runs_where_the_extension_is_missing(tmp_path):
    class Model(torch.nn.Module):
        def forward(self, x, frames):
            mask = topk_mask(x[:, 0, :, 0], 2)[0]
            out = diagonal_attention(x, x.flip(2), x, key_mask=mask)
            swapped = swap_patches(frames, frames.flip(0), mask[:, :4], 4)
            difference = frame_difference(frames, swapped, 4)
            return select_tokens(mask_tokens(out[:, 0], difference, 3), difference, 2, weighted=True)[0]

    x, frames = torch.randn(2, 1, 4, 8), torch.randn(2, 3, 8, 8)
    program = torch.export.export(Model(), (x, frames))
    torch.export.save(program, tmp_path / "program.pt2")
    torch.save((x, frames, Model()(x, frames)), tmp_path / "example.pt")
    script = f"""
        import sys
        sys.modules["micron_kernels._native"] = None  # its import raises ModuleNotFoundError
        import torch, micron_kernels
        from micron_kernels.info import OPERATORS
        assert all("native" not in ops.IMPLEMENTATIONS for ops in OPERATORS.values())
        x, frames, expected = torch.load({str(tmp_path / "example.pt")!r})
        result = torch.export.load({str(tmp_path / "program.pt2")!r}).module()(x, frames)
        torch.testing.assert_close(result, expected)
    """
    fresh.output_of(textwrap.dedent(script), warnings=["ignore"])
