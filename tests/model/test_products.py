"""Linear layers and attention, by whichever library, against fp64 by the rule of the operators; and the choice."""

import pytest
import torch
import torch.nn.functional as F

from micron_kernels.testing import assert_within_rounding
from micron_model.models import attention_products, products
from micron_model.models.attention_products import ATTENTION, plain_attention, split
from micron_model.models.vit import Attention, Encoder

ONEDNN = pytest.param(
    "onednn", marks=pytest.mark.skipif(not products.has_onednn(), reason="built without oneDNN or MKL")
)
LINEAR_BY = ["torch", ONEDNN]
ATTENTION_BY = ["flash", "matrices", ONEDNN]


@pytest.fixture(autouse=True)
def undecided(monkeypatch):
    """Nothing has been chosen, nobody asked for anything, and no size is too small to choose for."""
    monkeypatch.setattr(products, "_choices", {})
    monkeypatch.setattr(products, "SMALLEST_LINEAR", 1)
    monkeypatch.setattr(products, "SMALLEST_HEAD", 0)
    monkeypatch.delenv("MICRON_PRODUCTS", raising=False)


@pytest.fixture
def computed_by():
    """A function that chooses by name."""

    def choose(linear="torch", attention="flash"):
        names = dict.fromkeys([p for p in products.PRODUCTS if p.startswith("linear")], linear)
        assert products.use(names | {"attention": attention}, "the test") == []

    return choose


def plain(qkv):
    return plain_attention(*split(qkv)).transpose(1, 2).flatten(2)


def gradients(function, *inputs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape).flip(-1)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]


def second_gradients(function, *inputs):
    """Gradients of the sum of the squares of all gradients, as a penalty on them or a step through them takes."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
    return torch.autograd.grad(sum(x.square().sum() for x in first), leaves)


def check(ours, plain, *inputs, of=gradients):
    oracle = of(plain, *(x.double() for x in inputs))
    eager, tested = of(plain, *inputs), of(ours, *inputs)
    for i, (x, wanted, usual) in enumerate(zip(tested, oracle, eager, strict=True)):
        assert_within_rounding(f"result {i}", x, wanted, plain_error=usual.double() - wanted)


def sliced(x):
    """The same values in memory with gaps."""
    return torch.cat([x, x], -1)[..., : x.shape[-1]]


@pytest.mark.parametrize("rows", [(300,), (5, 61), (2, 3, 50)])
@pytest.mark.parametrize(("k", "n"), [(96, 200), (200, 96), (7, 130)])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, sliced])
@pytest.mark.parametrize("library", [ONEDNN])
def test_linear(k, n, rows, layout, library, computed_by):
    computed_by(linear=library)
    x, weight, bias = layout(torch.randn(*rows, k)), torch.randn(n, k), torch.randn(n)
    check(products.linear, F.linear, x, weight, bias)
    check(lambda x, w: products.linear(x, w), F.linear, x, weight)


@pytest.mark.parametrize("library", [ONEDNN])
def test_linear_of_one_channel(library, computed_by):
    computed_by(linear=library)
    x, weight, bias = torch.randn(300, 1), torch.randn(1, 1), torch.randn(1)
    for ours, usual in zip(
        *(gradients(f, x, weight, bias) for f in (products.linear, F.linear)), strict=True
    ):
        torch.testing.assert_close(ours, usual)


@pytest.mark.skipif(not products.has_onednn(), reason="built without oneDNN or MKL")
@pytest.mark.parametrize("by_onednn", ["linear", "linear_grad_input", "linear_grad_weight"])
def test_each_of_the_three_products_is_computed_by_its_own_library(by_onednn, monkeypatch):
    seen = []
    for library, multiply in products.LINEAR.items():
        monkeypatch.setitem(
            products.LINEAR, library, lambda *x, n=library, f=multiply: seen.append(n) or f(*x)
        )
    kinds = ["linear", "linear_grad_input", "linear_grad_weight"]
    products.use({kind: "onednn" if kind == by_onednn else "torch" for kind in kinds}, "the test")
    gradients(products.linear, torch.randn(6, 5), torch.randn(4, 5))
    assert seen == ["onednn" if kind == by_onednn else "torch" for kind in kinds]


@pytest.mark.parametrize("kind", ATTENTION_BY)
@pytest.mark.parametrize(
    ("batch", "length", "heads", "width"),
    [(2, 65, 4, 32), (1, 197, 2, 128), (3, 1, 2, 8), (2, 33, 3, 20), (1, 40, 2, 2)],  # the last keeps no P
)
def test_attention(batch, length, heads, width, kind, computed_by):
    computed_by(attention=kind)
    qkv = torch.randn(batch, length, 3, heads, width)
    check(products.attention, plain, qkv)
    with torch.no_grad():
        assert torch.equal(products.attention(qkv), products.attention(qkv.requires_grad_()))


@pytest.mark.parametrize("group", [1, 3 * 33 * 48, 1 << 20])
def test_attention_in_groups_of_heads_is_the_same(group, computed_by, monkeypatch):
    computed_by(attention="matrices")
    monkeypatch.setattr(attention_products, "GROUP", group)
    check(products.attention, plain, torch.randn(3, 33, 3, 5, 8))


@pytest.mark.parametrize("kind", ATTENTION_BY)
def test_a_backward_with_nothing_kept_gives_the_same_gradient(kind, computed_by):
    computed_by(attention=kind)
    qkv, grad = torch.randn(2, 33, 3, 4, 8), torch.randn(2, 33, 32)
    forward, backward = ATTENTION[kind]
    kept, bare = (backward(grad, qkv, *forward(qkv, keep)) for keep in (True, False))
    torch.testing.assert_close(kept, bare)


@pytest.mark.parametrize("kind", ATTENTION_BY)
def test_large_scores_give_no_nan(kind, computed_by):
    computed_by(attention=kind)
    qkv = 100 * torch.randn(1, 40, 3, 2, 16)
    assert all(x.isfinite().all() for x in gradients(products.attention, qkv))


@pytest.mark.parametrize("library", [ONEDNN])
def test_gradients_of_gradients_of_linear(library, computed_by):
    computed_by(linear=library)
    check(
        products.linear, F.linear, torch.randn(6, 5), torch.randn(4, 5), torch.randn(4), of=second_gradients
    )


@pytest.mark.parametrize("kind", ATTENTION_BY)
def test_gradients_of_gradients_of_attention(kind, computed_by):
    computed_by(attention=kind)
    check(products.attention, plain, torch.randn(2, 17, 3, 2, 8), of=second_gradients)


def test_attention_is_differentiated_twice_in_fp64():
    qkv = torch.randn(1, 5, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(products.attention, qkv)
    assert torch.autograd.gradgradcheck(products.attention, qkv)


@pytest.mark.parametrize("library", [ONEDNN])
def test_transforms_and_forward_mode_are_right(library, computed_by):
    computed_by(linear=library, attention=library)
    x, weight, qkv = torch.randn(3, 6, 5), torch.randn(4, 5), torch.randn(2, 7, 3, 2, 8)
    for ours, usual, inputs in (
        (products.linear, F.linear, (x, weight)),
        (products.attention, plain, (qkv,)),
    ):
        for transformed in (
            lambda f, i=inputs: torch.func.jvp(f, i, i)[1],
            lambda f, i=inputs: torch.func.grad(lambda *a: f(*a).square().sum())(*i),
            lambda f, i=inputs: torch.func.vmap(f, in_dims=(0, *[None] * (len(i) - 1)))(i[0][None], *i[1:]),
        ):
            wanted = transformed(usual)
            assert wanted.abs().max() > 0
            torch.testing.assert_close(transformed(ours), wanted)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(inputs[0], torch.ones_like(inputs[0]))
            tangents = [
                torch.autograd.forward_ad.unpack_dual(f(dual, *inputs[1:])).tangent for f in (ours, usual)
            ]
        torch.testing.assert_close(*tangents)


@pytest.mark.parametrize("library", [ONEDNN])
def test_opcheck_of_linear(library, computed_by):
    computed_by(linear=library)
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((2, 6, 5), (4, 5), (4,)))
    torch.library.opcheck(torch.ops.micron_model.linear, (x, weight, bias, "linear"))


@pytest.mark.parametrize("kept_by", ["", *ATTENTION_BY])
def test_opcheck_of_attention(kept_by, computed_by):
    computed_by()
    qkv = torch.randn(2, 9, 3, 2, 8, requires_grad=True)
    torch.library.opcheck(torch.ops.micron_model.attention, (qkv, kept_by))


@pytest.mark.parametrize("kind", ATTENTION_BY)
def test_compilation_changes_nothing(kind, computed_by):
    computed_by(linear="onednn" if products.has_onednn() else "torch", attention=kind)
    module = Attention(32, 2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (9, 12):
        x = torch.randn(2, rows, 32)
        weights = list(module.parameters())
        usual, ours = (torch.autograd.grad(f(x).square().sum(), weights) for f in (module, compiled))
        for a, b in zip(ours, usual, strict=True):
            torch.testing.assert_close(a, b)


def test_an_exported_program_attends_as_the_process_that_runs_it(computed_by):
    computed_by(attention="flash")
    module, x = Attention(32, 2).eval(), torch.randn(2, 9, 32)
    program = torch.export.export(module, (x,))
    computed_by(attention="matrices")
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(ATTENTION, "flash")
        torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize("kind", ["autocast", "fp64", "empty", "meta", "small"])
def test_torch_serves_the_rest(kind, monkeypatch, computed_by):
    def forbidden(*_):
        raise AssertionError("torch should have served this")

    computed_by(**{"linear": "onednn", "attention": "matrices"} if products.has_onednn() else {})
    monkeypatch.setitem(products.LINEAR, "onednn", forbidden)
    monkeypatch.setitem(ATTENTION, "matrices", (forbidden, forbidden))
    if kind == "small":
        monkeypatch.setattr(products, "SMALLEST_LINEAR", 1000)
        monkeypatch.setattr(products, "SMALLEST_HEAD", 1000)
    rows = 0 if kind == "empty" else 3
    options = {
        "dtype": torch.float64 if kind == "fp64" else torch.float32,
        "device": "meta" if kind == "meta" else "cpu",
    }
    x, weight = torch.randn(rows, 4, **options), torch.randn(5, 4, **options)
    with torch.autocast("cpu", enabled=kind == "autocast"):
        assert products.linear(x, weight).shape == (rows, 5)
        qkv = x.new_zeros(1, rows, 3, 2, 4, dtype=torch.bfloat16 if kind == "autocast" else x.dtype)
        assert products.attention(qkv).shape == (1, rows, 8)


def test_the_choice_is_measured_once_and_disturbs_nothing(monkeypatch):
    seconds = iter([3.0, 2.0, 1.0] * 10)
    monkeypatch.setattr(products, "_seconds", lambda function: function() or next(seconds))
    monkeypatch.setattr(products, "has_onednn", lambda: True)
    measured, trials = [], products._trials

    def few(product, names):
        measured.append(product)
        assert set(trials(product, names)) == set(names)
        return {name: lambda: None for name in names}

    monkeypatch.setattr(products, "_trials", few)
    state = torch.get_rng_state()
    with torch.inference_mode():
        assert products.chosen("attention") == "onednn"
    assert products.chosen("attention") == "onednn"
    assert measured == ["attention"]
    assert torch.equal(torch.get_rng_state(), state)
    assert products.choices() == {"attention": "onednn"}
    assert "attention             onednn" in products.describe()


def test_the_fastest_by_a_margin_is_chosen(monkeypatch):
    monkeypatch.setattr(products, "has_onednn", lambda: True)
    monkeypatch.setattr(products, "_trials", lambda product, names: dict.fromkeys(names))
    times = {"flash": 1.0, "matrices": 0.97, "onednn": 0.9, "torch": 1.0}
    monkeypatch.setattr(products, "_time", lambda trials: {name: times[name] for name in trials})
    assert products.choices(all=True) == dict.fromkeys(products.PRODUCTS, "onednn")
    monkeypatch.setattr(products, "_choices", {})
    times["onednn"] = 0.96
    assert products.choices(all=True) == {
        p: "flash" if p == "attention" else "torch" for p in products.PRODUCTS
    }


def test_each_candidate_is_really_timed():
    for product in products.PRODUCTS:
        trials = products._trials(product, products._candidates(product))
        results = [trial() for trial in trials.values()]
        if product != "attention":
            for x in results[1:]:
                torch.testing.assert_close(x, results[0], rtol=1e-4, atol=1e-4)


def test_slow_candidates_are_not_called_again(monkeypatch):
    calls = {"fast": 0, "slow": 0}
    seconds = {"fast": 1.0, "slow": 2.0}

    def call(name):
        calls[name] += 1
        return name

    monkeypatch.setattr(products, "_seconds", lambda function: seconds[function()])
    assert products._time({name: lambda name=name: call(name) for name in calls}) == seconds
    assert calls == {"fast": 1 + products.ROUNDS, "slow": 1}


def test_the_environment_decides_in_part(monkeypatch):
    monkeypatch.setenv("MICRON_PRODUCTS", "attention=matrices, linear=torch")
    monkeypatch.setattr(products, "_measured", lambda product: products.Choice("torch", "measured"))
    assert products.choices(all=True)["attention"] == "matrices"
    assert "MICRON_PRODUCTS=" in products.describe()
    assert products.use({"attention": "flash"}, "a checkpoint") == [
        "attention=matrices as MICRON_PRODUCTS says, not flash"
    ]
    assert products.chosen("attention") == "matrices"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("matrices", "'matrices' is not product=name; products are linear, linear_grad_input"),
        ("attention=fast", "attention='fast' is not one of flash, matrices, onednn"),
        ("conv=torch", "'conv' is not one of linear, linear_grad_input"),
    ],
)
def test_a_bad_environment_is_named(value, message, monkeypatch):
    monkeypatch.setenv("MICRON_PRODUCTS", value)
    with pytest.raises(ValueError, match=message):
        products.chosen("attention")


def test_what_this_build_has_not_is_told(monkeypatch):
    monkeypatch.setattr(products, "has_onednn", lambda: False)
    assert products.use({"linear": "onednn"}, "a checkpoint") == [
        "linear=onednn is not in this build of torch"
    ]
    assert products.chosen("linear") == "torch"
    monkeypatch.setenv("MICRON_PRODUCTS", "attention=onednn")
    with pytest.raises(RuntimeError, match="this build of torch has not both MKL and oneDNN"):
        products.chosen("attention")


def test_attention_gives_the_scores_of_the_first_token():
    module = Attention(32, 4).double()
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    query, key, _ = module.qkv(x).unflatten(2, (3, 4, 8)).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-2, -1) * 8**-0.5).softmax(-1)
    out, scores = module.with_scores(x)
    torch.testing.assert_close(scores, weights[:, :, 0].mean(1))
    assert torch.equal(module(x), out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_contextual_token_alone_is_the_same_token(small_config, dtype, computed_by):
    computed_by()
    encoder = Encoder(small_config).to(dtype)
    frames = torch.randn(2, 3, 32, 32, dtype=dtype)
    whole, alone = (encoder(frames, contextual_only=only)[0] for only in (False, True))
    torch.testing.assert_close(alone, whole)
    grads = [
        torch.autograd.grad(x.square().sum(), encoder.blocks[-1].attn.qkv.weight)[0] for x in (whole, alone)
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("settings", [{}, {"poi": "hard"}], ids=["soft", "hard"])
def test_the_networks_are_differentiated_twice(small, settings, computed_by):
    """As meta-learning does. The whole attention stands for the diagonal one, whose derivatives are the kernels'."""
    computed_by()
    model = small(diag_att=False, depth=1, **settings).double()
    onset, apex = torch.randn(2, 1, 3, 16, 16, dtype=torch.float64)

    def features(onset):
        return model.extract_features(onset, apex), model.encoder(onset, contextual_only=True)[0]

    assert torch.autograd.gradgradcheck(features, onset.requires_grad_(), fast_mode=True)


def test_names_are_those_of_the_candidates():
    assert set(products.PRODUCTS["attention"]) == set(ATTENTION)
    assert {n for p, names in products.PRODUCTS.items() if p != "attention" for n in names} == set(
        products.LINEAR
    )


def test_the_mark_for_compilers_is_theirs():
    marked = torch.compiler.assume_constant_result(lambda: 0)
    assert vars(marked) == vars(products._constant_to_compilers(lambda: 0))
