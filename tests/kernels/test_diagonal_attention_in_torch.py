"""What torch and its users ask of diagonal attention: the same bits, no memory but its own, compilers, errors."""

import pytest
import torch
from test_diagonal_attention import WRT, both, make, target

import harness
from micron_kernels import diagonal_attention
from micron_kernels.diagonal_attention import ops, reference
from micron_kernels.diagonal_attention.arguments import Inputs, Wanted, keeps_exponentials
from micron_kernels.testing import eager_diagonal_attention, guarded_memory, poisoned_memory


@target
def test_same_bits_run_after_run(target):
    impl, device = target
    harness.check_repeats(
        lambda **x: both(**x, impl=impl),
        make((2, 2, 130, 16), device=device, dtype=harness.a_dtype(ops, impl, device)),
        WRT,
    )


@target
def test_poisoned_memory_changes_nothing(target):
    impl, device = target
    with poisoned_memory():
        harness.check(
            both,
            eager_diagonal_attention,
            lambda: make(device=device, dtype=harness.a_dtype(ops, impl, device), rows=4, masked=True),
            WRT,
            impl,
        )


@target
def test_nothing_is_written_outside_the_outputs(target):
    impl, device = target
    inputs = Inputs(scale=0.3, **make(device=device, dtype=harness.a_dtype(ops, impl, device), masked=True))
    keep = keeps_exponentials(inputs.query, None, impl)
    implementation = ops.IMPLEMENTATIONS[impl]
    with guarded_memory() as guard, torch.no_grad():
        out, saved = implementation.forward(inputs, keep)
        implementation.backward(out, saved.weights, inputs, saved, Wanted())
    assert guard.buffers, "the guard saw no allocation"


def test_no_matrix_of_scores_is_stored(monkeypatch):
    monkeypatch.setattr(reference, "BLOCK_ELEMENTS", 4 * 300)
    inputs = Inputs(scale=0.5, **make((1, 1, 300, 4), 4))
    whole = reference.forward(inputs, keep=False)
    with harness.LargestTensor() as made:
        out, saved = reference.forward(inputs, keep=keeps_exponentials(inputs.query, None, "reference"))
        reference.backward(out, saved.weights, inputs, saved, Wanted())
    assert 0 < made.elements <= 4 * 300
    assert torch.equal(out, whole[0])


@target
@pytest.mark.parametrize("options", [{}, {"rows": 3, "masked": True}], ids=["all", "rows-masked"])
def test_opcheck(target, options):
    impl, device = target
    inputs = make((2, 2, 5, 3), device=device, dtype=harness.a_dtype(ops, impl, device), **options)
    tensors = [inputs[name].requires_grad_() for name in ("query", "key", "value")]
    torch.library.opcheck(
        ops.diagonal_attention.overload,
        (
            *tensors,
            0.5,
            inputs["row_weight"].requires_grad_(),
            inputs.get("rows"),
            inputs.get("key_mask"),
            impl,
            True,
        ),
    )


@target
@pytest.mark.parametrize(("backend", "dynamic"), [("inductor", False), ("aot_eager", True)])
def test_compiles_as_one_graph(target, backend, dynamic):
    impl, device = target
    inputs = make(device=device, dtype=harness.a_dtype(ops, impl, device), rows=4, masked=True)
    harness.check_compiles(lambda **x: both(**x, impl=impl), inputs, WRT, backend, dynamic)


@target
def test_exports(target):
    impl, device = target
    harness.check_exports(
        lambda **x: both(**x, impl=impl), make(device=device, dtype=harness.a_dtype(ops, impl, device))
    )


@target
def test_autocast_casts_the_tensors_and_keeps_statistics_in_fp32(target):
    impl, device = target
    inputs = make(device=device, dtype=harness.a_dtype(ops, impl, device))
    with torch.autocast(device, dtype=torch.bfloat16):
        out, weights = both(**inputs, impl=impl)
    cast = {name: x.bfloat16() if name in WRT[:3] else x for name, x in inputs.items()}
    expected, expected_weights = both(**cast, impl=impl)
    assert out.dtype == torch.bfloat16
    assert weights.dtype == torch.float32
    assert torch.equal(out, expected)
    assert torch.equal(weights, expected_weights)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": 3}, TypeError, "query is a int"),
        ({"query": torch.zeros(2, 3, 13)}, ValueError, r"query has shape \(2, 3, 13\)"),
        ({"query": torch.zeros(2, 3, 13, 8, dtype=torch.int32)}, TypeError, "query has dtype int32"),
        ({"key": torch.zeros(2, 3, 12, 8)}, ValueError, r"key has shape \(2, 3, 12, 8\); it must be"),
        ({"key": torch.zeros(2, 3, 13, 8).half()}, TypeError, "key has dtype torch.float16 but query"),
        ({"value": torch.zeros(2, 2, 13, 8)}, ValueError, "value has shape"),
        ({"scale": float("nan")}, ValueError, "scale=nan"),
        ({"scale": 10**400}, ValueError, "scale=inf"),
        ({"scale": True}, TypeError, "scale=True is a bool; it must be a number, or None for 1/√E"),
        ({"row_weight": torch.zeros(2, 12)}, ValueError, r"row_weight has shape \(2, 12\)"),
        ({"rows": torch.zeros(2, 4)}, TypeError, "rows has dtype float32; it must be one of int64"),
        ({"rows": torch.tensor([[0], [13]])}, ValueError, r"rows holds 13; positions must lie in \[0, N\)"),
        ({"rows": torch.tensor([[-1], [0]])}, ValueError, "rows holds -1"),
        ({"key_mask": torch.zeros(2, 13)}, TypeError, "key_mask has dtype float32"),
        ({"key_mask": torch.zeros(1, 13, dtype=torch.bool)}, ValueError, "key_mask has shape"),
        ({"impl": "fast"}, ValueError, "impl='fast' is not one of"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        diagonal_attention(**(make() | change))
