"""No operator takes torch's default device or dtype for that of its arguments."""

import contextlib

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


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def attention(x):
    rows, key_mask = x.new_tensor([[2, 0]], dtype=torch.int64), x[0, 0, :, 0].new_ones((1, 5)) > 0
    out, weights = diagonal_attention(x, x.flip(2), x, row_weight=weights_of(x), return_weights=True)
    some = diagonal_attention(x, x.flip(2), x, row_weight=weights_of(x), rows=rows, key_mask=key_mask)
    return out.sum() + weights.sum() + some.sum()


def weights_of(x):
    return x[:, :, :, 0]


CALLS = {
    "diagonal_attention": ((1, 1, 5, 8), attention),
    "frame_difference": (
        (1, 3, 3, 8, 8),
        lambda x: frame_difference(x, x[:, 0].flip(-1), 4, norm="l2", channel_scale=(1, 2, 3)).sum(),
    ),
    "topk": (
        (1, 9, 4),
        lambda x: (
            mask_tokens(x, x[..., 0], 0.5, weighted=True).sum()
            + select_tokens(x, x[..., 0], 3, weighted=True)[0].sum()
            + topk_mask(x[..., 0], 2)[1].sum()
        ),
    ),
    "swap_patches": (
        (1, 3, 8, 8),
        lambda x: swap_patches(
            x, x.flip(-1), x[:, 0, :2, :2].flatten(1) > 0, 4, mean=(0, 1, 2), std=(1, 2, 3)
        ).sum(),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "default", [lambda: torch.device("meta"), lambda: default_dtype(torch.float64)], ids=["device", "dtype"]
)
@pytest.mark.parametrize("call", CALLS)
def test_a_call_does_not_depend_on_torchs_defaults(call, default, dtype):
    shape, function = CALLS[call]
    x = torch.randn(shape).to(dtype).requires_grad_()
    expected = function(x)
    (gradient,) = torch.autograd.grad(expected, x)
    with default():
        result = function(x)
        (result_gradient,) = torch.autograd.grad(result, x)
    assert torch.equal(result, expected)
    assert torch.equal(result_gradient, gradient)
