import pytest
import torch

import harness
from micron_kernels import diagonal_attention
from micron_kernels.diagonal_attention import ops, reference
from micron_kernels.diagonal_attention.by_scores import heads_at_a_time, rows_at_a_time
from micron_kernels.testing import eager_diagonal_attention
from property_based import given, settings, st

WRT = ("query", "key", "value", "row_weight")
target = pytest.mark.parametrize("target", harness.targets(ops))


def both(**inputs):
    return diagonal_attention(**inputs, return_weights=True)


def make(
    shape=(2, 3, 13, 8),
    value_width=6,
    dtype=torch.float32,
    device="cpu",
    *,
    rows=None,
    masked=False,
    weight_dims=2,
    size=1.0,
    layout="contiguous",
):
    """Inputs of ``diagonal_attention``: ``rows`` is how many, ``masked`` hides about a third of the keys."""
    batch, heads, length, _ = shape
    query = torch.randn(shape, device=device) * size
    inputs = {
        "query": query,
        "key": query * 0.5 + torch.randn(shape, device=device) * size,  # as two frames of one face would be
        "value": torch.randn(batch, heads, length, value_width, device=device),
        "row_weight": torch.rand((batch, length) if weight_dims == 2 else shape[:3], device=device),
    }
    inputs = {name: harness.in_layout(x.to(dtype), layout) for name, x in inputs.items()}
    if rows is not None:
        inputs["rows"] = torch.randint(length, (batch, rows), device=device)
    if masked:
        inputs["key_mask"] = torch.rand(batch, length, device=device) > 0.3
    return inputs


@target
@pytest.mark.parametrize("dtype", harness.DTYPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"rows": 5}, {"masked": True}, {"rows": 5, "masked": True, "weight_dims": 3}],
    ids=["all", "rows", "masked", "rows-masked"],
)
def test_stays_within_the_rounding_budget(target, dtype, options):
    impl, device = target
    harness.check(
        both,
        eager_diagonal_attention,
        lambda: make((2, 3, 65, 24), 17, dtype, device, **options),
        WRT,
        impl,
    )


@target
@pytest.mark.parametrize("length", [1, 2, 13, 31, 32, 33, 127, 128, 129])
@pytest.mark.parametrize(
    ("width", "dtype"),
    [(1, torch.float16), (3, torch.float32), (7, torch.float32), (64, torch.float32), (64, torch.float16)],
    ids=str,
)
def test_every_length_and_width(target, length, width, dtype):
    impl, device = target
    harness.check(
        both,
        eager_diagonal_attention,
        lambda: make((1, 2, length, width), width + 1, dtype, device),
        WRT,
        impl,
    )


@target
@pytest.mark.parametrize("layout", harness.LAYOUTS)
def test_every_memory_layout(target, layout):
    impl, device = target
    harness.check(
        both,
        eager_diagonal_attention,
        lambda: make((3, 2, 33, 16), device=device, dtype=harness.a_dtype(ops, impl, device), layout=layout),
        WRT,
        impl,
        gradient_layout=layout,
    )


@target
@pytest.mark.parametrize("options", [{}, {"rows": 200, "masked": True}], ids=["all", "rows-masked"])
def test_more_tiles_than_are_in_flight(target, options):
    impl, device = target
    harness.check(
        both,
        eager_diagonal_attention,
        lambda: make((1, 1, 300, 200), 9, harness.a_dtype(ops, impl, device), device, **options),
        WRT,
        impl,
    )


@target
@pytest.mark.parametrize("dtype", [torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"rows": 40}], ids=["all", "rows"])
def test_small_gradients_keep_their_bits(target, options, dtype):
    """At p of about 1/N, gradients of scores are below the numbers that fp16 holds in full."""
    impl, device = target
    inputs = make((1, 1, 300, 16), 16, dtype, device, **options)
    gradient = (torch.randn(diagonal_attention(**inputs).shape, device=device) * 1e-3).to(dtype)
    wrt = ("query", "key")
    result, expected = (
        harness.run(diagonal_attention, {**x, "impl": of}, wrt, [gradient])
        for of, x in ((impl, inputs), ("reference", {k: harness._promote(v) for k, v in inputs.items()}))
    )
    for name in wrt:
        exact = expected[f"gradient of {name}"]
        error = (result[f"gradient of {name}"].double() - exact).abs().max() / exact.abs().max()
        assert error < 1e-3, (name, error)


@target
def test_scores_of_some_heads_at_a_time(target):
    impl, device = target
    dtype, shape = harness.a_dtype(ops, impl, device), (2, 3, 33, 8)
    assert heads_at_a_time(torch.empty(shape, dtype=dtype)) == 2
    harness.check(both, eager_diagonal_attention, lambda: make(shape, dtype=dtype, device=device), WRT, impl)


@target
@pytest.mark.parametrize("dtype", [torch.float32], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(
    ("shape", "heads", "rows"),
    [((2, 3, 33, 8), 2, 33), ((1, 2, 300, 33), 0, 132), ((1, 1, 300, 63), 0, 0)],
    ids=["heads", "rows", "neither"],
)
def test_scores_that_are_stored_by_blocks(target, shape, heads, rows, masked, dtype):
    impl, device = target
    query = torch.empty(shape, dtype=dtype)
    assert (heads_at_a_time(query), rows_at_a_time(query)) == (heads, rows)
    harness.check(
        both,
        eager_diagonal_attention,
        lambda: make(shape, dtype=dtype, device=device, masked=masked),
        WRT,
        impl,
    )


@target
def test_offsets_beyond_31_bits(target):
    impl, device = target

    def far_apart():
        inputs = make((2, 1, 8, 4), dtype=torch.float16, device=device)
        return inputs | {"key": harness.in_layout(inputs["key"], "far")}

    harness.check(both, eager_diagonal_attention, far_apart, WRT, impl)


@target
@pytest.mark.parametrize("dtype", harness.DTYPES, ids=str)
def test_large_logits_give_no_nan(target, dtype):
    impl, device = target
    inputs = make((1, 1, 40, 16), dtype=dtype, device=device, size=10.0)
    inputs["scale"] = 25.0  # logits of several thousand: exp of any of them overflows fp32
    gradients = [torch.ones(1, 1, 40, 6, device=device), torch.ones(1, 1, 40, device=device)]
    results = harness.run(lambda **x: both(**x, impl=impl), inputs, WRT, gradients)
    assert all(x.isfinite().all() for x in results.values())


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 2, 1), (4, 4, 2, 3), (1, 1, 40, 24)], ids=str)
def test_a_row_whose_scores_are_all_minus_infinity_has_weight_and_gradient_zero(shape):
    query = torch.full(shape, 1e30)
    inputs = {"query": query, "key": -query, "value": torch.ones(shape)}
    results = harness.run(both, inputs, ("query", "key", "value"), [torch.ones(shape), torch.ones(shape[:3])])
    assert all((x == 0).all() for x in results.values())


@target
def test_masked_positions_are_zero_whatever_they_hold(target):
    impl, device = target
    inputs = make((2, 2, 9, 4), device=device, dtype=harness.a_dtype(ops, impl, device))
    mask = torch.ones(2, 9, dtype=torch.bool, device=device)
    mask[0, 3:5] = False
    mask[1] = False  # a batch entry with every key masked
    clean = harness.run(
        lambda **x: both(**x, key_mask=mask, impl=impl),
        inputs,
        WRT,
        [torch.ones(2, 2, 9, 6, device=device), torch.ones(2, 2, 9, device=device)],
    )
    for name in ("query", "key", "value"):
        inputs[name] = inputs[name].masked_fill(~mask[:, None, :, None], torch.nan)
    dirty = harness.run(
        lambda **x: both(**x, key_mask=mask, impl=impl),
        inputs,
        WRT,
        [torch.ones(2, 2, 9, 6, device=device), torch.ones(2, 2, 9, device=device)],
    )
    for name, result in dirty.items():
        assert torch.equal(result, clean[name]), name
    hidden = ~mask[:, None, :].expand(2, 2, 9)
    for name in ("output 0", "output 1", "gradient of query", "gradient of key", "gradient of value"):
        assert (dirty[name][hidden] == 0).all(), name
    assert (dirty["gradient of row_weight"][~mask] == 0).all()


@target
def test_rows_equal_those_positions_of_the_whole(target):
    impl, device = target
    inputs = make(device=device, dtype=harness.a_dtype(ops, impl, device))
    rows = torch.tensor([[12, 0, 5], [1, 1, 7]], device=device)
    out, weights = both(**inputs, rows=rows, impl=impl)
    all_out, all_weights = both(**inputs, impl=impl)
    for b in range(2):
        torch.testing.assert_close(out[b], all_out[b][:, rows[b]])
        torch.testing.assert_close(weights[b], all_weights[b][:, rows[b]])


@target
def test_a_row_named_twice_counts_twice(target):
    impl, device = target
    inputs = make((1, 1, 6, 4), device=device, dtype=harness.a_dtype(ops, impl, device))
    gradient = torch.ones(1, 1, 1, 6, device=device)

    def gradients(rows):
        leaf = inputs["query"].detach().requires_grad_()
        out = diagonal_attention(leaf, inputs["key"], inputs["value"], rows=rows, impl=impl)
        return torch.autograd.grad(out, leaf, gradient.expand_as(out))[0]

    once = gradients(torch.tensor([[2]], device=device))
    twice = gradients(torch.tensor([[2, 2]], device=device))
    torch.testing.assert_close(twice, 2 * once)


@target
def test_empty_batch_and_no_rows(target):
    impl, device = target
    for shape, rows in (((0, 2, 5, 4), None), ((2, 2, 5, 4), 0)):
        harness.check(
            both,
            eager_diagonal_attention,
            lambda shape=shape, rows=rows: make(
                shape, device=device, dtype=harness.a_dtype(ops, impl, device), rows=rows
            ),
            WRT,
            impl,
        )


@target
@pytest.mark.parametrize(
    ("shape", "value_width", "options"),
    [
        ((0, 2, 5, 4), 3, {}),
        ((2, 0, 5, 4), 3, {}),
        ((2, 2, 0, 4), 3, {}),
        ((2, 2, 5, 0), 3, {"scale": 1.0}),
        ((2, 2, 5, 0), 3, {"scale": 1.0, "masked": True}),
        ((2, 2, 5, 4), 0, {}),
        ((2, 2, 5, 4), 0, {"masked": True}),
        ((2, 2, 5, 4), 3, {"rows": 0}),
        ((2, 2, 5, 0), 0, {"scale": 1.0, "rows": 2}),
    ],
    ids=str,
)
def test_a_size_of_zero(target, shape, value_width, options):
    impl, device = target
    scale = {name: options[name] for name in options if name == "scale"}
    others = {name: x for name, x in options.items() if name != "scale"}
    harness.check_empty(
        both,
        make(shape, value_width, device=device, dtype=harness.a_dtype(ops, impl, device), **others) | scale,
        WRT,
        impl,
    )


@target
def test_weights_alone_can_be_differentiated(target):
    impl, device = target
    inputs = make(device=device, dtype=torch.float64)
    leaf = inputs["key"].requires_grad_()
    _, weights = both(**inputs, impl=impl if impl == "reference" else None)
    _, expected = eager_diagonal_attention(**inputs)
    (gradient,) = torch.autograd.grad(weights.square().sum(), leaf)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), leaf)[0])


def test_blocks_of_rows_do_not_change_the_result(monkeypatch):
    inputs = make((2, 2, 37, 8), dtype=torch.float64, masked=True)
    gradients = [torch.ones(2, 2, 37, 6), torch.ones(2, 2, 37)]
    whole = harness.run(both, inputs, WRT, gradients)
    monkeypatch.setattr(reference, "BLOCK_ELEMENTS", 5 * 4 * 37)
    for name, result in harness.run(both, inputs, WRT, gradients).items():
        torch.testing.assert_close(result, whole[name], rtol=1e-12, atol=1e-14)


def test_reference_equals_the_plain_formula_in_fp64():
    for options in ({}, {"rows": 5}, {"masked": True, "weight_dims": 3}):
        inputs = make((2, 3, 21, 8), dtype=torch.float64, **options)
        gradients = [torch.randn(x.shape).double() for x in both(**inputs)]
        expected = harness.run(eager_diagonal_attention, inputs, WRT, gradients)
        for name, result in harness.run(both, inputs, WRT, gradients).items():
            torch.testing.assert_close(result, expected[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"rows": 3}, {"masked": True, "weight_dims": 3}], ids=str)
def test_gradcheck(options):
    inputs = make((2, 2, 5, 3), 2, torch.float64, **options)
    leaves = [inputs.pop(name).requires_grad_() for name in WRT]
    assert torch.autograd.gradcheck(
        lambda q, k, v, w: both(query=q, key=k, value=v, row_weight=w, **inputs), leaves
    )


@pytest.mark.parametrize("impl", harness.tested_on_cpu(ops))
@settings(max_examples=harness.EXAMPLES)
@given(data=st.data())
def test_any_shape_dtype_and_layout(impl, data):
    draw = data.draw
    shape = (
        draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(3, 20)),
    )  # fmt: skip
    value_width = draw(st.integers(1, 20))
    dtypes = (torch.float32, *harness.HALVES)
    dtype = draw(st.sampled_from([x for x in dtypes if harness.cannot(ops, impl, "cpu", x) is None]))
    options = {
        "rows": draw(st.none() | st.integers(1, 9)),
        "masked": draw(st.booleans()),
        "weight_dims": draw(st.sampled_from((2, 3))),
        "size": draw(st.sampled_from((0.1, 1.0, 4.0))),
        "layout": draw(st.sampled_from(harness.LAYOUTS)),
    }
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    harness.check(
        both, eager_diagonal_attention, lambda: make(shape, value_width, dtype, **options), WRT, impl
    )
