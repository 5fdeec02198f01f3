"""Every instruction set of the native kernels, against the oracle; the rest of the suite runs the best one."""

import pytest
import test_diagonal_attention
import test_frame_difference
import test_poi_topk
import test_swap_patches
import torch

import harness
from micron_kernels import _extension, frame_difference, mask_tokens, swap_patches, topk_mask
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


def test_the_number_of_threads_changes_no_bit():
    inputs = test_diagonal_attention.make((1, 3, 300, 40), 40, rows=200, masked=True)
    gradients = [torch.randn(1, 3, 200, 40), torch.randn(1, 3, 200)]
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
