"""Derivatives of every kind and order through the public calls, held to autograd through the plain formulas."""

import functools

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import harness
import micron_kernels
from micron_kernels import testing
from micron_kernels.info import OPERATORS

ROWS = torch.tensor([[1, 1, 3], [0, 2, 1]])
MASK = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0]]).bool()
SWAP = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 0]]).bool()
SCALE = torch.tensor([1.0, 2.0], dtype=torch.float64)
MEAN, STD = torch.tensor([0.1, 0.2], dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64)

_ATTENTION = [(2, 2, 4, 3), (2, 2, 4, 3), (2, 2, 4, 2)]
#: name: operator, shapes of the differentiable arguments, what else is passed. ``k`` and ``patch_size`` are small.
CASES = {
    "attention": ("diagonal_attention", _ATTENTION, {}),
    "attention-weight": ("diagonal_attention", [*_ATTENTION, (2, 4)], {}),
    "attention-rows": ("diagonal_attention", [*_ATTENTION, (2, 2, 4)], {"rows": ROWS}),
    "attention-mask": ("diagonal_attention", [*_ATTENTION, (2, 4)], {"rows": ROWS, "key_mask": MASK}),
    "difference-l1": ("frame_difference", [(2, 2, 4, 4)] * 2, {"norm": "l1"}),
    "difference-l2": ("frame_difference", [(2, 2, 2, 4, 4), (2, 2, 4, 4)], {"norm": "l2", "channel_scale": SCALE}),
    "mask": ("mask_tokens", [(2, 5, 3), (2, 5)], {"weighted": False}),
    "mask-weighted": ("mask_tokens", [(2, 5, 3), (2, 5)], {"weighted": True}),
    "select": ("select_tokens", [(2, 5, 3), (2, 5)], {"weighted": False}),
    "select-weighted": ("select_tokens", [(2, 5, 3), (2, 5)], {"weighted": True}),
    "swap": ("swap_patches", [(2, 2, 4, 4)] * 2, {"mean": MEAN, "std": STD}),
}  # fmt: skip
POSITIONAL = {
    "frame_difference": (2,),
    "mask_tokens": (2,),
    "select_tokens": (2,),
    "swap_patches": (SWAP, 2),
}
every_case = pytest.mark.parametrize("case", CASES)
#: The largest case of each formula, where a test is slow.
some_cases = pytest.mark.parametrize(
    "case", ["attention-mask", "difference-l2", "mask-weighted", "select-weighted", "swap"]
)


def inputs_of(case, dtype=torch.float64):
    torch.manual_seed(0)
    return tuple(torch.randn(shape, dtype=torch.float64).to(dtype) for shape in CASES[case][1])


def _call(function, case, options, *inputs, **more):
    name, _, own = CASES[case]
    if name == "diagonal_attention":
        if len(inputs) == 4:
            more["row_weight"] = inputs[3]
        return function(*inputs[:3], **own, **more, **options)
    result = function(*inputs, *POSITIONAL[name], **own, **more)
    return result[0] if isinstance(result, tuple) else result


def ours(case, **options):
    """The public call as a function of its differentiable arguments."""
    weights = {"return_weights": True} if CASES[case][0] == "diagonal_attention" else {}
    return functools.partial(_call, getattr(micron_kernels, CASES[case][0]), case, weights, **options)


def plain(case):
    return functools.partial(_call, getattr(testing, f"eager_{CASES[case][0]}"), case, {})


def summed(function, like):
    """A number that no output drops out of."""
    outputs = like if isinstance(like, tuple) else (like,)
    factors = [torch.arange(1.0, x.numel() + 1).cos().reshape(x.shape) for x in outputs]

    def total(*inputs):
        results = function(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        return sum((x.sin() * factor.to(x.dtype)).sum() for x, factor in zip(results, factors, strict=True))

    return total


def assert_same(result, expected, **tolerance):
    leaves = torch.utils._pytree.tree_leaves
    for x, y in zip(leaves(result), leaves(expected), strict=True):
        torch.testing.assert_close(x, y, **(tolerance or {"rtol": 1e-10, "atol": 1e-12}))


@every_case
def test_first_derivatives_of_torch_func(case):
    x = inputs_of(case)
    direction = tuple(torch.randn_like(y) for y in x)
    f, g = ours(case), plain(case)
    every = tuple(range(len(x)))
    out, tangent = jvp(f, x, direction)
    assert_same((out, tangent), jvp(g, x, direction))
    assert_same(vjp(f, *x)[1](out), vjp(g, *x)[1](out))
    total, expected = summed(f, out), summed(g, out)
    assert_same(grad(total, every)(*x), grad(expected, every)(*x))
    reverse = jacrev(f, every)(*x)
    assert_same(reverse, jacrev(g, every)(*x))
    assert_same(jacfwd(f, every)(*x), reverse)


@every_case
def test_autograds_own_checks_of_both_orders(case):
    leaves = [x.requires_grad_() for x in inputs_of(case)]

    def f(*inputs):  # squared, or the second order of what is linear would not be seen
        results = ours(case)(*inputs)
        return tuple(x**2 for x in results) if isinstance(results, tuple) else results**2

    options = {"fast_mode": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(
        f, leaves, check_forward_ad=True, check_batched_forward_grad=True, **options
    )
    assert torch.autograd.gradgradcheck(f, leaves, check_fwd_over_rev=True, **options)


@some_cases
@pytest.mark.parametrize("outer", [jacfwd, jacrev])
@pytest.mark.parametrize("inner", [jacfwd, jacrev])
def test_hessians_by_every_pair_of_modes(case, outer, inner):
    x = inputs_of(case)
    last = len(x) - 1
    f, g = summed(ours(case), ours(case)(*x)), summed(plain(case), plain(case)(*x))
    assert_same(outer(inner(f, (0, last)), (0, last))(*x), outer(inner(g, (0, last)), (0, last))(*x))


@some_cases
def test_a_gradient_of_a_gradient_of_a_gradient(case):
    x = inputs_of(case)

    def third(function):
        f = summed(function(case), function(case)(*x))
        second = grad(lambda y: grad(f)(y, *x[1:]).sin().sum())
        return grad(lambda y: second(y).cos().sum())(x[0])

    assert_same(third(ours), third(plain))


@some_cases
def test_second_order_by_create_graph_for_every_implementation(case):
    """As meta-learning does it: the gradient of a step that used a gradient. Native kernels compute in fp32."""
    exact = _after_a_step(plain(case), inputs_of(case))
    single = inputs_of(case, torch.float32)
    in_single = _after_a_step(plain(case), single)
    ops = OPERATORS.get(CASES[case][0], OPERATORS["poi_topk"])
    for impl in [None, *harness.on_cpu(ops)]:
        if impl is not None and harness.cannot(ops, impl, "cpu", torch.float32) is not None:
            continue
        for i, (x, y, z) in enumerate(
            zip(_after_a_step(ours(case, impl=impl), single), exact, in_single, strict=True)
        ):
            scale = max(y.abs().max().item(), 1.0)
            error, budget = (
                (x - y).abs().max(),
                8 * (z - y).abs().max() + 8 * scale * torch.finfo(torch.float32).eps,
            )
            assert error <= budget, f"{impl}, argument {i}: {error:.1e} is more than {budget:.1e}"


def _after_a_step(function, inputs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    total = summed(function, out)
    gradients = torch.autograd.grad(total(*leaves), leaves, create_graph=True, allow_unused=True)
    stepped = [x if g is None else x - 0.1 * g for x, g in zip(leaves, gradients, strict=True)]
    final = torch.autograd.grad(total(*stepped), leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, final, strict=True)]


@every_case
def test_dual_numbers_and_a_gradient_through_them(case):
    x = inputs_of(case)
    direction = torch.randn_like(x[0])
    f = summed(ours(case), ours(case)(*x))
    leaf = x[0].clone().requires_grad_()
    with forward_ad.dual_level():
        result = forward_ad.unpack_dual(f(forward_ad.make_dual(leaf, direction), *x[1:]))
        (second,) = torch.autograd.grad(result.tangent, leaf)
    g = summed(plain(case), plain(case)(*x))
    expected = grad(lambda y: jvp(lambda z: g(z, *x[1:]), (y,), (direction,))[1])
    assert_same(result.tangent, jvp(lambda z: g(z, *x[1:]), (x[0],), (direction,))[1])
    assert_same(second, expected(x[0]))


@some_cases
def test_vmap_over_any_axis_and_twice_equals_a_loop(case):
    f = ours(case)
    mapped = tuple(torch.stack([x, x.flip(-1), 2 * x], 1) for x in inputs_of(case))
    looped = [f(*(x[:, i] for x in mapped)) for i in range(3)]
    stacked = (
        tuple(map(torch.stack, zip(*looped, strict=True)))
        if isinstance(looped[0], tuple)
        else torch.stack(looped)
    )
    assert_same(vmap(f, in_dims=1)(*mapped), stacked)
    twice = tuple(torch.stack([x, 3 * x]) for x in mapped)
    nested = vmap(vmap(f, in_dims=1))(*twice)
    again = vmap(lambda *x: vmap(f, in_dims=1, out_dims=0)(*x), in_dims=0)(*(x.clone() for x in twice))
    assert_same(nested, again)
    leaves = torch.utils._pytree.tree_leaves
    for x, y in zip(leaves(nested), leaves(stacked), strict=True):
        torch.testing.assert_close(x[0], y)


@some_cases
def test_gradients_of_each_sample(case):
    if case == "swap":
        pytest.skip("its mask is of the whole batch")
    x = inputs_of(case)
    case = case.removesuffix("-mask")
    x = x[: len(CASES[case][1])]

    def of_one(function):
        def total(*sample):
            out = function(case)(*(y[None] for y in sample))
            return sum(y.sin().sum() for y in (out if isinstance(out, tuple) else (out,)))

        return grad(total, tuple(range(len(x))))

    assert_same(vmap(of_one(ours))(*x), vmap(of_one(plain))(*x))


def test_a_constant_may_be_mapped_too():
    frames, reference = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    scales = torch.rand(4, 3)

    def f(scale):
        return micron_kernels.frame_difference(frames, reference, 4, channel_scale=scale)

    assert_same(vmap(f)(scales), torch.stack([f(scale) for scale in scales]))


def test_a_hessian_in_blocks_of_rows_holds_no_matrix_of_scores(monkeypatch):
    reference = OPERATORS["diagonal_attention"].reference
    q, k, v = (torch.randn(1, 1, 60, 4, dtype=torch.float64) for _ in range(3))

    def second():
        leaf = q.detach().requires_grad_()
        out = micron_kernels.diagonal_attention(leaf, k, v)
        (gradient,) = torch.autograd.grad(out.sin().sum(), leaf, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), leaf)[0]

    whole = second()
    monkeypatch.setattr(reference, "BLOCK_ELEMENTS", 4 * 60)
    with harness.LargestTensor() as made:
        result = second()
    assert 0 < made.elements <= 4 * 60
    assert_same(result, whole)


def test_the_hessian_of_torch_func_runs_on_native_kernels():
    q, k, v = (torch.randn(1, 1, 5, 4) for _ in range(3))
    result = hessian(lambda x: micron_kernels.diagonal_attention(x, k, v).sin().sum())(q)
    exact = hessian(lambda x: testing.eager_diagonal_attention(x, k.double(), v.double())[0].sin().sum())(
        q.double()
    )
    assert_same(result.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", harness.on_cpu(OPERATORS["diagonal_attention"]))
@pytest.mark.parametrize("wrt", ["value", "row_weight"])
def test_a_gradient_without_scores_multiplies_no_matrices(impl, wrt, monkeypatch):
    ops = OPERATORS["diagonal_attention"]
    x = dict(
        zip(
            ("query", "key", "value", "row_weight"), inputs_of("attention-weight", torch.float32), strict=True
        )
    )
    if harness.cannot(ops, impl, "cpu", torch.float32) is not None:
        x = {name: tensor.half() for name, tensor in x.items()}
    x[wrt].requires_grad_()
    out = micron_kernels.diagonal_attention(**x, impl=impl)
    (expected,) = torch.autograd.grad(testing.eager_diagonal_attention(**x)[0].sum(), x[wrt])

    def refuse(*_args, **_kwargs):
        raise AssertionError("a product of matrices")

    monkeypatch.setattr(torch, "matmul", refuse)
    if impl != "reference":
        monkeypatch.setattr(ops.IMPLEMENTATIONS[impl], "backward", refuse, raising=False)
    (result,) = torch.autograd.grad(out.sum(), x[wrt])
    assert_same(result, expected, rtol=1e-2 if result.dtype == torch.half else 1e-5, atol=1e-3)
