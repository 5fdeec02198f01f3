"""Linear layers and attention by oneDNN against fp64, by the rule of the operators."""

import pytest
import torch
import torch.nn.functional as F

from micron_kernels.testing import assert_within_rounding
from micron_model.models import onednn
from micron_model.models.vit import Attention, Encoder

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()),
    reason="torch was built without oneDNN or MKL",
)


@pytest.fixture(autouse=True)
def _on_any_cpu(monkeypatch):
    monkeypatch.setattr(onednn, "IS_FASTER", True)
    monkeypatch.setattr(onednn, "SMALLEST_HEAD", 0)


def gradients(function, *inputs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape).flip(-1)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]


def check(ours, plain, *inputs):
    oracle = gradients(plain, *(x.double() for x in inputs))
    eager, tested = gradients(plain, *inputs), gradients(ours, *inputs)
    for i, (x, wanted, usual) in enumerate(zip(tested, oracle, eager, strict=True)):
        assert_within_rounding(f"result {i}", x, wanted, plain_error=usual.double() - wanted)


def sliced(x):
    """The same values in memory with gaps."""
    return torch.cat([x, x], -1)[..., : x.shape[-1]]


@pytest.mark.parametrize("rows", [(300,), (5, 61), (2, 3, 50)])
@pytest.mark.parametrize(("k", "n"), [(96, 200), (200, 96), (7, 130)])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, sliced])
def test_linear(k, n, rows, layout):
    x, weight, bias = layout(torch.randn(*rows, k)), torch.randn(n, k), torch.randn(n)
    check(onednn.linear, F.linear, x, weight, bias)
    check(lambda x, w: onednn.linear(x, w), F.linear, x, weight)


def test_linear_of_one_channel():
    x, weight, bias = torch.randn(300, 1), torch.randn(1, 1), torch.randn(1)
    for ours, plain in zip(*(gradients(f, x, weight, bias) for f in (onednn.linear, F.linear)), strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize(
    ("batch", "length", "heads", "width"), [(2, 65, 4, 32), (1, 197, 2, 128), (3, 1, 2, 8), (2, 33, 3, 20)]
)
def test_attention(batch, length, heads, width):
    def plain(qkv):
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) * width**-0.5).softmax(-1)
        return (weights @ value).transpose(1, 2).flatten(2)

    check(onednn.attention, plain, torch.randn(batch, length, 3, heads, width))


def test_large_scores_give_no_nan():
    qkv = 100 * torch.randn(1, 40, 3, 2, 16)
    assert all(x.isfinite().all() for x in gradients(onednn.attention, qkv))


def test_gradients_of_gradients():
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((6, 5), (4, 5), (4,)))

    def penalty(function):
        (grad,) = torch.autograd.grad(function(x, weight, bias).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), (x, weight))

    for ours, plain in zip(penalty(onednn.linear), penalty(F.linear), strict=True):
        torch.testing.assert_close(ours, plain)


def test_opcheck():
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((2, 6, 5), (4, 5), (4,)))
    torch.library.opcheck(torch.ops.micron_model.onednn_linear, (x, weight, bias))
    qkv = torch.randn(2, 9, 3, 2, 8, requires_grad=True)
    torch.library.opcheck(torch.ops.micron_model.onednn_attention, (qkv,))


@pytest.mark.parametrize("kind", ["autocast", "fp64", "empty", "meta", "another cpu", "small"])
def test_torch_serves_the_rest(kind, monkeypatch):
    def forbidden(*_):
        raise AssertionError("oneDNN was called")

    monkeypatch.setattr(onednn, "_product", forbidden)
    dtype = torch.float64 if kind == "fp64" else torch.float32
    device = "meta" if kind == "meta" else "cpu"
    if kind == "another cpu":
        monkeypatch.setattr(onednn, "IS_FASTER", False)
    if kind == "small":
        monkeypatch.setattr(onednn, "SMALLEST_HEAD", 1000)
    rows = 0 if kind == "empty" else 3
    x, weight = (
        torch.randn(rows, 4, dtype=dtype, device=device),
        torch.randn(5, 4, dtype=dtype, device=device),
    )
    with torch.autocast("cpu", enabled=kind == "autocast"):
        if kind != "small":
            assert onednn.linear(x, weight).shape == (rows, 5)
        assert onednn.attention(x.new_zeros(1, rows, 3, 2, 4)).shape == (1, rows, 8)


def test_attention_gives_the_scores_of_the_first_token():
    module = Attention(32, 4).double()
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    query, key, _ = module.qkv(x).unflatten(2, (3, 4, 8)).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-2, -1) * 8**-0.5).softmax(-1)
    out, scores = module.with_scores(x)
    torch.testing.assert_close(scores, weights[:, :, 0].mean(1))
    assert torch.equal(module(x), out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_contextual_token_alone_is_the_same_token(small_config, dtype):
    encoder = Encoder(small_config).to(dtype)
    frames = torch.randn(2, 3, 32, 32, dtype=dtype)
    whole, alone = (encoder(frames, contextual_only=only)[0] for only in (False, True))
    torch.testing.assert_close(alone, whole)
    grads = [
        torch.autograd.grad(x.square().sum(), encoder.blocks[-1].attn.qkv.weight)[0] for x in (whole, alone)
    ]
    torch.testing.assert_close(*grads)
