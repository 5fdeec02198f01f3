import pytest
import torch
from torch import nn

from micron_kernels.nn import (
    DiagonalMicroAttention,
    FoldedDiagonalMicroAttention,
    replace_diagonal_attention,
)


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


def test_folding_draws_no_numbers():
    module = DiagonalMicroAttention(8)
    before = torch.get_rng_state()
    module.fold()
    assert torch.equal(torch.get_rng_state(), before)


def variants(dim=8, heads=1):
    module = DiagonalMicroAttention(dim, heads).double()
    return (module, module.fold()) if heads == 1 else (module,)


@pytest.mark.parametrize("heads", [1, 2])
def test_masked_positions_are_as_if_they_were_not_there(heads):
    key_mask = torch.ones(2, 7, dtype=torch.bool)
    key_mask[:, 5:] = False
    inputs = [x.double() for x in tokens()]
    for module in variants(heads=heads):
        result = module(*inputs, key_mask=key_mask)
        torch.testing.assert_close(result[:, :5], module(*(x[:, :5] for x in inputs)))
        torch.testing.assert_close(result[:, 5:], module.output_bias.expand(2, 2, -1))


@pytest.mark.parametrize("heads", [1, 2])
def test_tokens_without_a_batch(heads):
    row_weight, rows = torch.rand(2, 7).double(), torch.tensor([[0, 3], [6, 5]])
    key_mask = torch.rand(2, 7) < 0.7
    inputs = [x.double() for x in tokens()]
    for module in variants(heads=heads):
        expected = module(*inputs, row_weight, rows, key_mask, return_weights=True)
        result = module(*(x[1] for x in inputs), row_weight[1], rows[1], key_mask[1], return_weights=True)
        for x, y in zip(result, expected, strict=True):
            torch.testing.assert_close(x, y[1])


def test_device_and_dtype_are_those_of_the_parameters():
    for kind in (
        DiagonalMicroAttention(8, device="meta", dtype=torch.bfloat16),
        FoldedDiagonalMicroAttention(8, 0.5, device="meta", dtype=torch.bfloat16),
    ):
        assert {(p.device.type, p.dtype) for p in kind.parameters()} == {("meta", torch.bfloat16)}


def test_the_layers_may_be_of_another_kind():
    made = []

    class Counted(nn.Linear):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    module = DiagonalMicroAttention(8, linear=Counted)
    assert [module.to_q, module.to_k, module.to_v, module.proj] == made


def test_a_module_says_what_it_is():
    module = DiagonalMicroAttention(8, 2)
    assert "dim=8, num_heads=2, scale=0.5" in repr(module)
    assert "dim=8, scale=0.353553" in repr(DiagonalMicroAttention(8).fold())


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"query": torch.zeros(8)},
            ValueError,
            r"query has shape \(8\); it must be \(B, N, 8\), or \(N, 8\)",
        ),
        ({"key": torch.zeros(2, 7, 9)}, ValueError, r"key has shape \(2, 7, 9\); it must be \(2, 7, 8\)"),
        ({"value": torch.zeros(2, 6, 8)}, ValueError, r"value has shape \(2, 6, 8\); it must be \(2, 7, 8\)"),
        ({"key": torch.zeros(7, 8)}, ValueError, r"key has shape \(7, 8\); it must be \(2, 7, 8\)"),
        ({"query": None}, TypeError, "query is a NoneType"),
        ({"key_mask": torch.ones(2, 7)}, TypeError, "key_mask has dtype float32; it must be one of bool"),
        ({"key_mask": torch.ones(7, dtype=torch.bool)}, ValueError, r"key_mask has shape \(7\)"),
    ],
)
def test_bad_tokens_are_named(folded, change, error, message):
    module = DiagonalMicroAttention(8)
    inputs = dict(zip(("query", "key", "value"), tokens(), strict=True))
    with pytest.raises(error, match=message):
        (module.fold() if folded else module)(**(inputs | change))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "dim=0 is too small"),
        ((8.0,), TypeError, "dim=8.0 is a float"),
        ((8, 0), ValueError, "num_heads=0 is too small"),
        ((8, True), TypeError, "num_heads=True is a bool"),
    ],
)
def test_bad_sizes_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        DiagonalMicroAttention(*arguments)


def test_the_module_compiles_for_any_length():
    module = DiagonalMicroAttention(8)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (7, 11):
        inputs = [torch.randn(2, length, 8) for _ in range(3)]
        torch.testing.assert_close(compiled(*inputs), module(*inputs))


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


def test_a_replaced_module_takes_a_mask_and_tokens_without_a_batch():
    model = Foreign(num_heads=2)
    replace_diagonal_attention(model)
    key_mask = torch.tensor([True] * 5 + [False] * 2)
    query, key, value = (x[0] for x in tokens())
    out, weights = model.att([query, key, value], key_mask=key_mask)
    assert out.shape == (7, 8)
    assert weights.shape == (2, 7, 1)
    assert (weights[:, 5:] == 0).all()
    with pytest.raises(TypeError, match=r"it must be the list \[query, key, value\]"):
        model.att(query)


def test_replacing_says_when_there_is_nothing_to_replace():
    for model in (nn.Linear(3, 3), Foreign(diag_att=False)):
        with pytest.raises(ValueError, match="there is nothing to replace"):
            replace_diagonal_attention(model)


def test_replacing_refuses_what_it_would_change():
    with pytest.raises(ValueError, match=r"att.drop drops out with p=0.1"):
        replace_diagonal_attention(Foreign(dropout=0.1))
    with pytest.raises(ValueError, match="model is itself a diagonal attention"):
        replace_diagonal_attention(ForeignAttention(8))
