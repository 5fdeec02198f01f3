import pytest
import torch
from torch import nn

from micron_kernels.nn import DiagonalMicroAttention, replace_diagonal_attention


class ForeignAttention(nn.Module):
    """A cross-attention as found in the wild: one argument, the full matrix, its diagonal."""

    def __init__(self, dim, num_heads=1, diag_att=True, dropout=0.0):
        super().__init__()
        self.num_heads, self.diag_att = num_heads, diag_att
        self.scale = 0.3
        self.to_q, self.to_k, self.to_v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.drop = nn.Dropout(dropout)

    def forward(self, qkv):
        heads = lambda x: x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # noqa: E731
        q, k, v = heads(self.to_q(qkv[0])), heads(self.to_k(qkv[1])), heads(self.to_v(qkv[2]))
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1).diagonal(dim1=-2, dim2=-1)[..., None]
        return self.proj((weights * v).transpose(1, 2).flatten(2)), weights


class Foreign(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Identity())
        self.att = ForeignAttention(8, **options)
        self.also_att = self.att  # shared: must stay shared

    def forward(self, x, y):
        x = self.body(x)
        return self.att([x, y, x])


def tokens(n=3, dim=8):
    return [torch.randn(2, 7, dim) for _ in range(n)]


@pytest.mark.parametrize("heads", [1, 2])
def test_the_module_is_the_formula(heads):
    module = DiagonalMicroAttention(8, heads)
    foreign = ForeignAttention(8, heads)
    foreign.load_state_dict(module.state_dict())
    foreign.scale = module.scale
    query, key, value = tokens()
    out, weights = module(query, key, value, return_weights=True)
    expected, expected_weights = foreign([query, key, value])
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(weights, expected_weights[..., 0])


def test_rows_and_row_weight_pass_through():
    module = DiagonalMicroAttention(8, 2)
    query, key, value = tokens()
    row_weight, rows = torch.rand(2, 7), torch.tensor([[0, 3], [6, 5]])
    some = module(query, key, value, row_weight, rows)
    every = module(query, key, value, row_weight)
    torch.testing.assert_close(some, torch.stack([every[b, rows[b]] for b in range(2)]))


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_folding_keeps_the_function(qkv_bias):
    module = DiagonalMicroAttention(8, qkv_bias=qkv_bias).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    folded = module.fold()
    query, key, value = (x.double() for x in tokens())
    options = {"row_weight": torch.rand(2, 7).double(), "rows": torch.tensor([[0, 3], [6, 5]])}
    for x, y in zip(
        folded(query, key, value, **options, return_weights=True),
        module(query, key, value, **options, return_weights=True),
        strict=True,
    ):
        torch.testing.assert_close(x, y)
    linears = [m for m in folded.modules() if isinstance(m, nn.Linear)]
    assert len(linears) == 2
    assert not any(p.requires_grad for p in folded.parameters())


def test_several_heads_cannot_be_folded():
    with pytest.raises(ValueError, match="num_heads=2; only a single head"):
        DiagonalMicroAttention(8, 2).fold()


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="num_heads=3 does not divide dim=8"):
        DiagonalMicroAttention(8, 3)


@pytest.mark.parametrize("heads", [1, 4])
def test_replacing_keeps_weights_results_and_gradients(heads):
    model = Foreign(num_heads=heads)
    parameters = dict(model.named_parameters())
    x, y = tokens(2)
    expected = model(x, y)
    expected_gradients = torch.autograd.grad(expected[0].sum(), list(parameters.values()))
    assert replace_diagonal_attention(model) == ["att", "also_att"]
    result = model(x, y)
    gradients = torch.autograd.grad(result[0].sum(), list(parameters.values()))
    assert isinstance(model.att, DiagonalMicroAttention)
    assert model.att is model.also_att
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(p is parameters[name] for name, p in model.named_parameters())
    for a, b in zip((*result, *gradients), (*expected, *expected_gradients), strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b)


def test_replacing_says_when_there_is_nothing_to_replace():
    for model in (nn.Linear(3, 3), Foreign(diag_att=False)):
        with pytest.raises(ValueError, match="there is nothing to replace"):
            replace_diagonal_attention(model)


def test_replacing_refuses_what_it_would_change():
    with pytest.raises(ValueError, match=r"att.drop drops out with p=0.1"):
        replace_diagonal_attention(Foreign(dropout=0.1))
    with pytest.raises(ValueError, match="model is itself a diagonal attention"):
        replace_diagonal_attention(ForeignAttention(8))
