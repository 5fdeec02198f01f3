import numpy as np
import pytest
import torch

import harness
from micron_kernels import mask_tokens, select_tokens, topk_mask
from micron_kernels.poi_topk import api, ops
from micron_kernels.testing import (
    eager_mask_tokens,
    eager_select_tokens,
    guarded_memory,
    poisoned_memory,
)
from property_based import assume, given, settings, st

WRT = ("tokens", "scores")
BOTH = [(mask_tokens, eager_mask_tokens), (select_tokens, eager_select_tokens)]
target = pytest.mark.parametrize("target", harness.targets(ops))
both = pytest.mark.parametrize(("function", "eager"), BOTH, ids=["mask", "select"])


def make(shape=(3, 21, 10), k=7, dtype=torch.float32, device="cpu", *, weighted=True, layout="contiguous"):
    """Inputs of ``mask_tokens``; no two scores of a row are equal, so that the plain formula agrees."""
    batch, length, _width = shape
    scores = torch.stack([torch.randperm(length, device=device) for _ in range(max(batch, 1))])[:batch]
    scores = (scores - length // 2).to(dtype) / 8  # exact in every dtype up to 256 positions
    tokens = torch.randn(shape, device=device).to(dtype)
    return {
        "tokens": harness.in_layout(tokens, layout),
        "scores": harness.in_layout(scores, layout),
        "k": k,
        "weighted": weighted,
    }


def wrt(weighted):
    return WRT if weighted else WRT[:1]


def rank(row):
    """The specification, one row at a time, on Python numbers: positions from best to worst."""
    return sorted(range(len(row)), key=lambda i: (row[i] != row[i], -row[i] if row[i] == row[i] else 0, i))


@target
@pytest.mark.parametrize("dtype", harness.DTYPES, ids=str)
def test_the_k_highest_in_order_of_position(target, dtype):
    impl, device = target
    scores = torch.randn(5, 40, device=device).to(dtype)
    mask, indices = topk_mask(scores, 11, impl=impl)
    for b in range(5):
        assert indices[b].tolist() == sorted(rank(scores[b].tolist())[:11])
    assert mask.sum(1).tolist() == [11] * 5
    assert mask.gather(1, indices).all()


@target
def test_ties_go_to_the_lower_position(target):
    impl, device = target
    scores = torch.tensor([[1.0, 2.0, 1.0, 1.0, 2.0], [0.0, -0.0, 0.0, -0.0, 0.0]], device=device)
    assert topk_mask(scores, 3, impl=impl)[1].tolist() == [[0, 1, 4], [0, 1, 2]]


@target
def test_nan_ranks_below_minus_infinity(target):
    impl, device = target
    inf, nan = torch.inf, torch.nan
    scores = torch.tensor([[nan, -inf, nan, 0.0, inf, -inf]], device=device)
    for k, expected in ((1, [4]), (2, [3, 4]), (4, [1, 3, 4, 5]), (5, [0, 1, 3, 4, 5])):
        assert topk_mask(scores, k, impl=impl)[1].tolist() == [expected]


@target
@pytest.mark.parametrize("dtype", harness.DTYPES, ids=str)
def test_subnormal_numbers_are_above_zero(target, dtype):
    impl, device = target
    tiny = torch.finfo(dtype).smallest_normal / 2
    scores = torch.tensor([[0.0, tiny, -tiny, -0.0, 2 * tiny]], dtype=torch.float64, device=device).to(dtype)
    for k, expected in ((1, [4]), (2, [1, 4]), (3, [0, 1, 4]), (4, [0, 1, 3, 4])):
        assert topk_mask(scores, k, impl=impl)[1].tolist() == [expected]


@settings(max_examples=60)
@given(
    rows=st.integers(1, 40).flatmap(
        lambda n: st.lists(
            st.lists(
                st.sampled_from(
                    [0.0, -0.0, 1.0, -1.0, 2.5, float("nan"), float("inf"), -float("inf"), 1e-40]
                ),
                min_size=n,
                max_size=n,
            ),
            min_size=1,
            max_size=3,
        )
    ),
    share=st.floats(0, 1),
    dtype=st.sampled_from(harness.DTYPES),
    impl=st.sampled_from(harness.on_cpu(ops)),
)
def test_any_scores_rank_as_specified(rows, share, dtype, impl):
    assume(harness.cannot(ops, impl, "cpu", dtype) is None)
    scores = torch.tensor(rows).to(dtype)
    k = round(share * scores.shape[1])
    mask, indices = topk_mask(scores, k, impl=impl)
    for b, row in enumerate(scores.tolist()):
        expected = sorted(rank(row)[:k])
        assert indices[b].tolist() == expected
        assert mask[b].nonzero().flatten().tolist() == expected


@pytest.mark.parametrize(
    ("k", "length", "count"),
    [
        (0, 5, 0),
        (5, 5, 5),
        (np.int64(3), 5, 3),
        (0.07, 100, 7),
        (np.float32(0.07), 100, 7),
        (0.5, 5, 3),
        (1.0, 5, 5),
        (1e-12, 5, 1),
        (5e-324, 5, 1),
        (0.5 + 1e-12, 4, 3),
    ],
)
def test_a_ratio_is_rounded_up(k, length, count):
    assert topk_mask(torch.rand(2, length), k)[1].shape == (2, count)


@given(length=st.integers(1, 10**6), data=st.data(), kind=st.sampled_from((float, np.float32)))
def test_the_share_of_a_count_is_that_count(length, data, kind):
    count = data.draw(st.integers(1, min(length, 10**4)))
    assert api.count(kind(count / length), length) == count


def test_a_ratio_may_be_symbolic():
    compiled = torch.compile(topk_mask, fullgraph=True, dynamic=True, backend="aot_eager")
    for length, count in ((100, 7), (50, 4)):
        assert compiled(torch.rand(2, length), 0.07)[1].shape == (2, count)


@target
@both
@pytest.mark.parametrize("dtype", harness.DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_stays_within_the_rounding_budget(target, function, eager, dtype, weighted):
    impl, device = target
    harness.check(
        function,
        eager,
        lambda: make((3, 200, 17), 50, dtype, device, weighted=weighted),
        wrt(weighted),
        impl,
    )


@target
@both
@pytest.mark.parametrize("layout", harness.LAYOUTS)
def test_every_memory_layout(target, function, eager, layout):
    impl, device = target
    harness.check(
        function, eager, lambda: make(device=device, layout=layout), WRT, impl, gradient_layout=layout
    )


@target
@both
@pytest.mark.parametrize(("length", "k"), [(1, 0), (1, 1), (13, 0), (13, 13), (31, 30), (32, 1), (33, 2)])
def test_every_length_and_count(target, function, eager, length, k):
    impl, device = target
    harness.check(function, eager, lambda: make((2, length, 5), k, device=device), WRT, impl)


@target
@both
def test_offsets_beyond_31_bits(target, function, eager):
    impl, device = target

    def far_apart():
        inputs = make((2, 9, 4), 3, torch.float16, device)
        return inputs | {"tokens": harness.in_layout(inputs["tokens"], "far")}

    harness.check(function, eager, far_apart, WRT, impl)


@target
@both
def test_what_is_not_kept_is_not_read(target, function, eager):
    impl, device = target
    inputs = make(device=device)
    expected = function(**inputs, impl=impl)
    mask, _ = topk_mask(inputs["scores"], inputs["k"], impl=impl)
    inputs["tokens"] = inputs["tokens"].masked_fill(~mask[..., None], torch.nan)
    result = function(**inputs, impl=impl)
    for x, y in zip(harness._floating_outputs(result), harness._floating_outputs(expected), strict=True):
        assert torch.equal(x, y)


@target
def test_scores_of_tokens_not_kept_have_zero_gradient(target):
    impl, device = target
    inputs = make(device=device)
    scores = inputs["scores"].requires_grad_()
    out = mask_tokens(**inputs, impl=impl)
    (gradient,) = torch.autograd.grad(out.sum(), scores)
    mask, _ = topk_mask(scores, inputs["k"], impl=impl)
    assert (gradient[~mask] == 0).all()
    torch.testing.assert_close(gradient[mask], inputs["tokens"].sum(2)[mask])


@target
def test_unweighted_scores_have_no_gradient(target):
    impl, device = target
    inputs = make(device=device, weighted=False)
    tokens, scores = inputs["tokens"].requires_grad_(), inputs["scores"].requires_grad_()
    out = mask_tokens(**inputs, impl=impl)
    d_tokens, d_scores = torch.autograd.grad(out.sum(), (tokens, scores), allow_unused=True)
    assert d_scores is None
    assert d_tokens.sum() == inputs["k"] * 3 * 10


@target
@both
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("shape", "k"), [((0, 5, 3), 2), ((2, 0, 3), 0), ((2, 5, 0), 2), ((2, 5, 3), 0)], ids=str
)
def test_a_size_of_zero(target, function, eager, weighted, shape, k):
    impl, device = target
    harness.check_empty(function, make(shape, k, device=device, weighted=weighted), wrt(weighted), impl)


@target
@both
def test_same_bits_run_after_run(target, function, eager):
    impl, device = target
    harness.check_repeats(lambda **x: function(**x, impl=impl), make(device=device), WRT)


@target
@both
def test_poisoned_memory_changes_nothing(target, function, eager):
    impl, device = target
    with poisoned_memory():
        harness.check(function, eager, lambda: make(device=device), WRT, impl)


@target
@pytest.mark.parametrize("name", ["mask_tokens", "select_tokens"])
def test_nothing_is_written_outside_the_outputs(target, name):
    impl, device = target
    implementation = ops.IMPLEMENTATIONS[impl]
    inputs = make(device=device)
    with guarded_memory():
        out, indices = getattr(implementation, name)(**inputs)
        backward = getattr(implementation, f"{name}_backward")
        backward(out, inputs["tokens"], inputs["scores"], indices, weighted=True)


@both
@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(function, eager, weighted):
    inputs = make((2, 6, 3), 3, torch.float64, weighted=weighted)
    tokens = inputs.pop("tokens").requires_grad_()
    scores = inputs.pop("scores").requires_grad_(weighted)

    def floating(tokens, scores):
        return harness._floating_outputs(function(tokens, scores, **inputs))[0]

    assert torch.autograd.gradcheck(floating, (tokens, scores))


@target
def test_opcheck(target):
    impl, device = target
    inputs = make(device=device)
    tokens, scores = inputs["tokens"].requires_grad_(), inputs["scores"].requires_grad_()
    torch.library.opcheck(ops.topk_mask.overload, (scores.detach(), 4, impl))
    torch.library.opcheck(ops.mask_tokens.overload, (tokens, scores, 4, True, impl))
    torch.library.opcheck(ops.select_tokens.overload, (tokens, scores, 4, True, impl))


@target
@both
@pytest.mark.parametrize(("backend", "dynamic"), [("inductor", False), ("aot_eager", True)])
def test_compiles_as_one_graph(target, function, eager, backend, dynamic):
    impl, device = target
    inputs = make(device=device)
    harness.check_compiles(lambda **x: function(**x, impl=impl), inputs, WRT, backend, dynamic)


@target
@both
def test_exports(target, function, eager):
    impl, device = target
    tensors = {name: x for name, x in make(device=device).items() if name in WRT}
    harness.check_exports(lambda **x: function(**x, k=0.3, weighted=True, impl=impl), tensors)


@target
@both
def test_autocast_leaves_it_alone(target, function, eager):
    impl, device = target
    inputs = make(device=device)
    expected = harness._floating_outputs(function(**inputs, impl=impl))[0]
    with torch.autocast(device, dtype=torch.bfloat16):
        assert torch.equal(harness._floating_outputs(function(**inputs, impl=impl))[0], expected)


@pytest.mark.parametrize("impl", harness.tested_on_cpu(ops))
@settings(max_examples=harness.EXAMPLES)
@given(data=st.data())
def test_any_shape_dtype_and_layout(impl, data):
    draw = data.draw
    function, eager = draw(st.sampled_from(BOTH))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 50)), draw(st.integers(1, 40)))
    k = draw(st.integers(0, shape[1]))
    dtype = draw(st.sampled_from((torch.float32, *harness.HALVES)))
    weighted = draw(st.booleans())
    layout = draw(st.sampled_from(harness.LAYOUTS))
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    harness.check(
        function,
        eager,
        lambda: make(shape, k, dtype, weighted=weighted, layout=layout),
        wrt(weighted),
        impl,
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 22}, ValueError, "k=22 is more than the N=21 tokens of a row"),
        ({"k": -1}, ValueError, "k=-1 is too small"),
        ({"k": 0.0}, ValueError, "k=0.0 is a float, hence a ratio"),
        ({"k": 1.5}, ValueError, r"k=1.5 is a float, hence a ratio, which must lie in \(0, 1\]"),
        ({"k": float("nan")}, ValueError, "k=nan is a float, hence a ratio"),
        ({"k": float("inf")}, ValueError, "k=inf is a float, hence a ratio"),
        ({"k": True}, TypeError, "k=True is a bool"),
        (
            {"k": torch.tensor(3)},
            TypeError,
            r"k=tensor\(3\) is a Tensor; it must be an int: pass its .item\(\)",
        ),
        ({"k": "3"}, TypeError, "k='3' is a str"),
        ({"scores": torch.zeros(3, 20)}, ValueError, r"scores has shape \(3, 20\); it must be \(3, 21\)"),
        ({"scores": torch.zeros(3, 21).long()}, TypeError, "scores has dtype int64"),
        ({"tokens": torch.zeros(3, 21)}, ValueError, r"tokens has shape \(3, 21\)"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    for function in (mask_tokens, select_tokens):
        with pytest.raises(error, match=message):
            function(**(make() | change))
