"""Every instruction set of the native kernels, against the oracle; the rest of the suite runs the best one."""

import functools

import pytest
import test_diagonal_attention
import test_frame_difference
import test_poi_topk
import test_swap_patches
import torch

import harness
from micron_kernels import _extension, frame_difference, mask_tokens, swap_patches, topk_mask
from micron_kernels.diagonal_attention import native as native_attention
from micron_kernels.diagonal_attention import reference
from micron_kernels.diagonal_attention.arguments import Inputs, Wanted
from micron_kernels.testing import (
    eager_diagonal_attention,
    eager_frame_difference,
    eager_mask_tokens,
    eager_swap_patches,
)

native = _extension.module
if native is None:
    pytest.skip(f"no native kernels: {_extension.reason}", allow_module_level=True)

NATIVE_DTYPES = (torch.float32, *harness.HALVES)
dtypes = pytest.mark.parametrize("dtype", NATIVE_DTYPES, ids=str)


@pytest.fixture(autouse=True, params=native.supported_instruction_sets())
def instruction_set(request):
    before = native.instruction_set()
    native.set_instruction_set(request.param)
    yield request.param
    native.set_instruction_set(before)


def test_wide_scores_round_no_more_than_the_plain_formula():
    """One chain of all products would be a quarter off or more."""
    query, key, value = torch.randn(3, 1, 4, 196, 1024).unbind()
    _, exact = eager_diagonal_attention(query.double(), key.double(), value.double())
    _, plain = eager_diagonal_attention(query, key, value)
    _, saved = native_attention.forward(Inputs(query, key, value, 1024**-0.5), keep=False)
    error, allowed = ((p.double().log() - exact.log()).square().mean().sqrt() for p in (saved.weights, plain))
    assert error <= 1.1 * allowed, f"{error / allowed:.2f} times the plain formula's"


@dtypes
@pytest.mark.parametrize("rows", [None, 70])
@pytest.mark.parametrize("masked", [False, True])
def test_diagonal_attention_stays_within_the_budget(dtype, rows, masked):
    shape = (2, 2, 141, 35)
    harness.check(
        test_diagonal_attention.both,
        eager_diagonal_attention,
        lambda: test_diagonal_attention.make(shape, 19, dtype, rows=rows, masked=masked),
        test_diagonal_attention.WRT,
        "native",
    )


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 1, 290, 21), {}),  # several blocks of rows and of keys, with scores made again and with
        ((1, 1, 290, 145), {"masked": True}),  # exponentials kept
        ((1, 1, 290, 115), {"rows": 230}),
        ((9, 5, 1, 7), {}),  # a few rows of many heads
        ((9, 5, 2, 9), {"masked": True}),
        ((9, 5, 3, 1), {}),
        ((3, 4, 50, 33), {"rows": 1}),
        ((3, 4, 50, 1), {"rows": 3, "masked": True, "weight_dims": 3}),
        ((9, 5, 4, 8), {}),
    ],
    ids=str,
)
def test_every_way_through_diagonal_attention_stays_within_the_budget(shape, options):
    harness.check(
        test_diagonal_attention.both,
        eager_diagonal_attention,
        lambda: test_diagonal_attention.make(shape, 5, **options),
        test_diagonal_attention.WRT,
        "native",
    )


ALL, FIRST, LAST = slice(None), slice(0, 1), slice(-1, None)
#: By what to multiply which rows of a query and a key of ones.
NOT_FINITE = {
    "every score of every row is minus infinity": {"query": (ALL, 1e30), "key": (ALL, -1e30)},
    "every score of one row is minus infinity": {"query": (FIRST, 1e30), "key": (ALL, -1e30)},
    "one score is plus infinity": {"query": (FIRST, 1e30), "key": (LAST, 1e30)},
    "one row is NaN": {"query": (FIRST, torch.nan)},
    "one key is NaN": {"key": (LAST, torch.nan)},
}


@pytest.mark.parametrize("case", NOT_FINITE)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(4, 4, 1, 3), (4, 4, 2, 3), (3, 1, 40, 24), (3, 1, 40, 4)], ids=str)
def test_scores_that_are_not_finite_give_what_the_reference_gives(case, masked, shape):
    inputs = {"query": torch.ones(shape), "key": torch.ones(shape), "value": torch.randn(shape)}
    for name, (positions, factor) in NOT_FINITE[case].items():
        inputs[name][:, :, positions] *= factor
    if masked:
        inputs["key_mask"] = torch.ones(shape[0], shape[2], dtype=torch.bool)
        inputs["key_mask"][0, 0] = False
        inputs["key_mask"][1] = False
    gradients = [torch.randn(shape), torch.randn(shape[:3])]
    results, expected = (
        harness.run(
            functools.partial(test_diagonal_attention.both, impl=impl),
            inputs,
            ("query", "key", "value"),
            gradients,
        )
        for impl in ("native", "reference")
    )
    # Gradients are sums over queries and keys that cancel, so they are as exact as those are large.
    largest = max(inputs[name].nan_to_num().abs().max().item() for name in ("query", "key"))
    for name, result in results.items():
        assert torch.equal(result.isnan(), expected[name].isnan()), name
        atol = 1e-6 * (largest if "gradient" in name else 1)
        torch.testing.assert_close(result, expected[name], rtol=1e-5, atol=atol, equal_nan=True)


@pytest.mark.parametrize("rows", [None, 2, 30])
def test_only_the_gradients_that_are_wanted_are_made_and_they_are_the_same(rows):
    inputs = test_diagonal_attention.make((2, 3, 60, 31), rows=rows, weight_dims=3)
    inputs = Inputs(**{"rows": None, "key_mask": None, "scale": 0.2} | inputs)
    out, saved = native_attention.forward(inputs, keep=False)
    whole = native_attention.backward(out, saved.weights, inputs, saved, Wanted())
    for only in range(4):
        wanted = Wanted(*(i == only for i in range(4)))
        gradients = native_attention.backward(out, saved.weights, inputs, saved, wanted)
        assert [x is not None for x in gradients] == list(wanted)
        assert torch.equal(gradients[only], whole[only])


def test_gradients_of_value_and_weight_alone_make_no_scores():
    inputs = test_diagonal_attention.make((1, 1, 200, 16))
    inputs = Inputs(**{"rows": None, "key_mask": None, "scale": 0.2} | inputs)
    out, saved = native_attention.forward(inputs, keep=False)
    native.take_scratch_peak()
    native_attention.backward(out, None, inputs, saved, Wanted(query=False, key=False))
    assert native.take_scratch_peak() <= 4 * 200 + 192


@pytest.mark.parametrize("shape", [(2, 3, 1, 4), (3, 4, 2, 3), (2, 2, 45, 23)], ids=str)
def test_kept_exponentials_are_those_of_the_reference(shape):
    inputs = test_diagonal_attention.make(shape, masked=True)
    inputs = Inputs(**{"rows": None, "scale": 0.2} | inputs)
    (_, result), (_, expected) = (x.forward(inputs, keep=True) for x in (native_attention, reference))
    for x, y in zip(result, expected, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("dtype", [torch.uint8, *NATIVE_DTYPES], ids=str)
@pytest.mark.parametrize("patch_size", [8, 7])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_frame_difference_stays_within_the_budget(dtype, patch_size, norm):
    shape = (2, 3, 3, 2 * patch_size, 11 * patch_size)
    harness.check(
        frame_difference,
        eager_frame_difference,
        lambda: test_frame_difference.make(shape, dtype, patch_size=patch_size, norm=norm),
        () if dtype == torch.uint8 else test_frame_difference.WRT,
        "native",
    )


@dtypes
@pytest.mark.parametrize("weighted", [False, True])
def test_mask_tokens_stays_within_the_budget(dtype, weighted):
    harness.check(
        mask_tokens,
        eager_mask_tokens,
        lambda: test_poi_topk.make((2, 77, 37), 30, dtype, weighted=weighted),
        test_poi_topk.wrt(weighted),
        "native",
    )


def test_ties_and_nan_rank_alike_in_every_length():
    for length in (1, 3, 4, 5, 15, 16, 17, 63, 64, 65):
        scores = torch.randint(-2, 3, (3, length)).float()
        scores[scores == 2] = torch.nan
        for k in range(length + 1):
            mask, indices = topk_mask(scores, k, impl="native")
            expected_mask, expected = topk_mask(scores, k, impl="reference")
            assert torch.equal(indices, expected)
            assert torch.equal(mask, expected_mask)


@pytest.mark.parametrize("dtype", [torch.uint8, *NATIVE_DTYPES], ids=str)
@pytest.mark.parametrize("patch_size", [8, 3])
def test_swap_patches_stays_within_the_budget(dtype, patch_size):
    harness.check(
        swap_patches,
        eager_swap_patches,
        lambda: test_swap_patches.make((2, 3, 2 * patch_size, 7 * patch_size), dtype, patch_size=patch_size),
        test_swap_patches.wrt(dtype),
        "native",
    )


@pytest.mark.parametrize(
    ("shape", "rows"), [((1, 3, 300, 40), 200), ((1, 3, 300, 40), 60), ((9, 3, 2, 5), 2)], ids=str
)
def test_the_number_of_threads_changes_no_bit(shape, rows):
    inputs = test_diagonal_attention.make(shape, 40, rows=rows, masked=True)
    gradients = [torch.randn(*shape[:2], rows, 40), torch.randn(*shape[:2], rows)]
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(
            harness.run(
                lambda **x: test_diagonal_attention.both(**x, impl="native"),
                inputs,
                test_diagonal_attention.WRT,
                gradients,
            )
        )
    torch.set_num_threads(before)
    for other in results[1:]:
        for name, result in results[0].items():
            assert torch.equal(result, other[name]), name
