import numpy as np
import pytest
import torch

import harness
from micron_kernels import blockwise_mask, swap_patches
from micron_kernels.swap_patches import ops
from micron_kernels.testing import eager_swap_patches, guarded_memory, poisoned_memory
from property_based import given, settings, st

WRT = ("frame", "other")
target = pytest.mark.parametrize("target", harness.targets(ops))


def make(
    shape=(3, 3, 16, 24),
    dtype=torch.float32,
    device="cpu",
    *,
    patch_size=8,
    normalised=True,
    out=None,
    layout="contiguous",
):
    batch, channels, height, width = shape

    def image():
        x = torch.rand(shape, device=device)
        return (x * 255.99).to(torch.uint8) if dtype == torch.uint8 else x.to(dtype)

    inputs = {name: harness.in_layout(image(), layout) for name in WRT}
    inputs["swap"] = torch.rand(batch, (height // patch_size) * (width // patch_size), device=device) < 0.5
    inputs["patch_size"] = patch_size
    if normalised:
        inputs["mean"] = torch.rand(channels, device=device)
        inputs["std"] = torch.rand(channels, device=device) + 0.2
    if out is not None:
        inputs["dtype"] = out
    return inputs


def wrt(dtype):
    return () if dtype == torch.uint8 else WRT


@target
@pytest.mark.parametrize("dtype", [torch.uint8, *harness.DTYPES], ids=str)
@pytest.mark.parametrize("normalised", [False, True])
def test_stays_within_the_rounding_budget(target, dtype, normalised):
    impl, device = target
    harness.check(
        swap_patches,
        eager_swap_patches,
        lambda: make(dtype=dtype, device=device, normalised=normalised),
        wrt(dtype),
        impl,
    )


@target
@pytest.mark.parametrize("out", harness.HALVES, ids=str)
def test_uint8_to_half(target, out):
    impl, device = target
    inputs = make(dtype=torch.uint8, device=device, out=out)
    result = swap_patches(**inputs, impl=impl)
    exact = eager_swap_patches(**{n: x.double() if n in ("mean", "std") else x for n, x in inputs.items()})
    assert result.dtype == out
    torch.testing.assert_close(result, exact.to(out))


@target
@pytest.mark.parametrize("patch_size", [1, 3, 8, 31])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_patch_size_and_channel_count(target, patch_size, channels):
    impl, device = target
    shape = (2, channels, 2 * patch_size, 3 * patch_size)
    harness.check(
        swap_patches, eager_swap_patches, lambda: make(shape, device=device, patch_size=patch_size), WRT, impl
    )


@target
@pytest.mark.parametrize("layout", harness.LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_every_memory_layout(target, layout, dtype):
    impl, device = target
    harness.check(
        swap_patches,
        eager_swap_patches,
        lambda: make(dtype=dtype, device=device, layout=layout),
        wrt(dtype),
        impl,
        gradient_layout=layout,
    )


@target
def test_channels_last_in_contiguous_out(target):
    impl, device = target
    inputs = make(device=device)
    expected = swap_patches(**inputs, impl=impl)
    for name in WRT:
        inputs[name] = inputs[name].to(memory_format=torch.channels_last)
    result = swap_patches(**inputs, impl=impl)
    assert torch.equal(result, expected)
    assert result.is_contiguous()


@target
def test_offsets_beyond_31_bits(target):
    impl, device = target

    def far_apart():
        inputs = make((2, 1, 16, 16), torch.uint8, device)
        return inputs | {name: harness.in_layout(inputs[name], "far") for name in WRT}

    harness.check(swap_patches, eager_swap_patches, far_apart, (), impl)


@target
def test_each_patch_comes_from_the_frame_that_swap_names(target):
    impl, device = target
    frame, other = torch.zeros(1, 1, 4, 4, device=device), torch.ones(1, 1, 4, 4, device=device)
    swap = torch.tensor([[False, True, False, False]], device=device)
    result = swap_patches(frame, other, swap, 2, impl=impl)
    assert result[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


@target
def test_the_inputs_are_left_as_they_were(target):
    impl, device = target
    inputs = make(device=device, normalised=False)
    before = {name: inputs[name].clone() for name in WRT}
    result = swap_patches(**inputs, impl=impl)
    result.zero_()
    assert all(torch.equal(inputs[name], before[name]) for name in WRT)


@target
def test_a_pixel_that_is_not_taken_is_not_read(target):
    impl, device = target
    frame, other = torch.ones(1, 3, 8, 8, device=device), torch.full((1, 3, 8, 8), torch.nan, device=device)
    swap = torch.zeros(1, 4, dtype=torch.bool, device=device)
    leaf = other.requires_grad_()
    result = swap_patches(frame, leaf, swap, 4, impl=impl)
    assert (result == 1).all()
    assert (torch.autograd.grad(result.sum(), leaf)[0] == 0).all()


@target
@pytest.mark.parametrize("shape", [(0, 3, 16, 16), (2, 0, 16, 16), (2, 3, 0, 16), (2, 3, 16, 0)], ids=str)
def test_a_size_of_zero(target, shape):
    impl, device = target
    harness.check_empty(swap_patches, make(shape, device=device), WRT, impl)


@target
def test_same_bits_run_after_run(target):
    impl, device = target
    harness.check_repeats(lambda **x: swap_patches(**x, impl=impl), make(device=device), WRT)


@target
def test_poisoned_memory_changes_nothing(target):
    impl, device = target
    with poisoned_memory():
        harness.check(swap_patches, eager_swap_patches, lambda: make(device=device), WRT, impl)


@target
def test_nothing_is_written_outside_the_outputs(target):
    impl, device = target
    inputs = make((2, 3, 9, 15), device=device, patch_size=3) | {"dtype": torch.float32}
    implementation = ops.IMPLEMENTATIONS[impl]
    with guarded_memory():
        out = implementation.forward(**inputs)
        implementation.backward(out, inputs["swap"], 3, inputs["std"], torch.float32)


def test_gradcheck():
    inputs = make((2, 3, 4, 4), torch.float64, patch_size=2)
    leaves = [inputs.pop(name).requires_grad_() for name in WRT]
    assert torch.autograd.gradcheck(lambda x, y: swap_patches(x, y, **inputs), leaves)


@target
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_opcheck(target, dtype):
    impl, device = target
    x = make(dtype=dtype, device=device)
    tensors = [x[name].requires_grad_(dtype != torch.uint8) for name in WRT]
    torch.library.opcheck(
        ops.swap_patches.overload, (*tensors, x["swap"], 8, x["mean"], x["std"], torch.float32, impl)
    )


@target
@pytest.mark.parametrize(("backend", "dynamic"), [("inductor", False), ("aot_eager", True)])
def test_compiles_as_one_graph(target, backend, dynamic):
    impl, device = target
    inputs = make(device=device)
    harness.check_compiles(lambda **x: swap_patches(**x, impl=impl), inputs, WRT, backend, dynamic)


@target
def test_exports(target):
    impl, device = target
    tensors = {name: x for name, x in make(device=device).items() if isinstance(x, torch.Tensor)}
    harness.check_exports(lambda **x: swap_patches(**x, patch_size=8, impl=impl), tensors)


@target
def test_autocast_leaves_it_alone(target):
    impl, device = target
    inputs = make(device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        result = swap_patches(**inputs, impl=impl)
    assert torch.equal(result, swap_patches(**inputs, impl=impl))


@pytest.mark.parametrize("impl", harness.tested_on_cpu(ops))
@settings(max_examples=harness.EXAMPLES)
@given(data=st.data())
def test_any_shape_dtype_and_layout(impl, data):
    draw = data.draw
    patch_size = draw(st.integers(1, 9))
    batch, channels, rows, columns = (draw(st.integers(1, 4)) for _ in range(4))
    shape = (batch, channels, rows * patch_size, columns * patch_size)
    dtype = draw(st.sampled_from((torch.uint8, torch.float32, *harness.HALVES)))
    options = {
        "patch_size": patch_size,
        "normalised": draw(st.booleans()),
        "layout": draw(st.sampled_from(harness.LAYOUTS)),
    }
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    harness.check(swap_patches, eager_swap_patches, lambda: make(shape, dtype, **options), wrt(dtype), impl)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"frame": None}, TypeError, "frame is a NoneType"),
        ({"other": torch.zeros(3, 3, 16, 16)}, ValueError, r"other has shape \(3, 3, 16, 16\)"),
        ({"other": torch.zeros(3, 3, 16, 24).half()}, TypeError, "other has dtype torch.float16 but frame"),
        ({"swap": torch.zeros(3, 6)}, TypeError, "swap has dtype float32; it must be one of bool"),
        ({"swap": torch.zeros(3, 5, dtype=torch.bool)}, ValueError, r"swap has shape \(3, 5\); it must be"),
        ({"patch_size": 7}, ValueError, r"patch_size=7 does not divide the frame \(16×24\)"),
        ({"mean": [0.5]}, ValueError, r"mean has shape \(1\); it must be \(3\)"),
        ({"std": [1.0, 0.0, 1.0]}, ValueError, "holds 0"),
        ({"dtype": torch.uint8}, TypeError, "dtype=torch.uint8; it must be a floating dtype"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        swap_patches(**(make() | change))


@settings(max_examples=60)
@given(
    batch=st.integers(0, 5),
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    ratio=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_masks_cover_exactly_the_ratio(batch, grid, ratio, seed):
    mask = blockwise_mask(batch, grid, ratio, torch.Generator().manual_seed(seed))
    assert mask.shape == (batch, grid[0] * grid[1])
    assert mask.sum(1).tolist() == [round(ratio * grid[0] * grid[1])] * batch


def test_masks_are_blocks_and_repeat_with_the_generator():
    first, again = (blockwise_mask(64, (28, 28), 0.5, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert len({tuple(m.tolist()) for m in first}) == 64
    grid = first.view(64, 28, 28)
    neighbours_agree = (grid[:, 1:] == grid[:, :-1]).float().mean()
    assert neighbours_agree > 0.8  # half of them would, if patches were drawn one by one


def test_masks_do_not_depend_on_torchs_defaults():
    def draw():
        return blockwise_mask(2, (5, 7), 0.5, torch.Generator("cpu").manual_seed(7))

    expected = draw()
    with torch.device("meta"):
        assert torch.equal(draw(), expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(draw(), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_masks_take_the_numbers_of_numpy():
    expected = blockwise_mask(2, (5, 7), 0.5, torch.Generator().manual_seed(7), min_area=3, aspect=(0.5, 2))
    grid, aspect = np.array([5, 7]), (np.float32(0.5), np.int64(2))
    generator = torch.Generator().manual_seed(7)
    result = blockwise_mask(
        np.int64(2), grid, np.float32(0.5), generator, min_area=np.int32(3), aspect=aspect
    )
    assert torch.equal(result, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch": -1}, ValueError, "batch=-1"),
        ({"batch": 2.0}, TypeError, "batch=2.0 is a float"),
        ({"grid": (0, 4)}, ValueError, r"grid\[0\]=0"),
        ({"grid": (4, True)}, TypeError, r"grid\[1\]=True is a bool"),
        ({"grid": (4, 4, 4)}, ValueError, r"grid=\(4, 4, 4\) has length 3; it must be two numbers"),
        ({"grid": 4}, TypeError, "grid=4 is a int; it must be two numbers"),
        ({"ratio": 1.5}, ValueError, r"ratio=1.5; it must lie in \[0, 1\]"),
        ({"ratio": float("nan")}, ValueError, "ratio=nan"),
        ({"ratio": "0.5"}, TypeError, "ratio='0.5' is a str"),
        ({"min_area": 0}, ValueError, "min_area=0 is too small"),
        ({"aspect": (0, 1)}, ValueError, r"aspect=\(0, 1\); it must be \(lowest, highest\) with 0 < lowest"),
        ({"aspect": (-1, 1)}, ValueError, r"aspect=\(-1, 1\)"),
        ({"aspect": (2, 1)}, ValueError, r"aspect=\(2, 1\)"),
        ({"aspect": (1, float("inf"))}, ValueError, r"aspect=\(1, inf\)"),
        ({"aspect": (float("nan"), 1)}, ValueError, r"aspect=\(nan, 1\)"),
        ({"aspect": (1,)}, ValueError, r"aspect=\(1,\) has length 1"),
        ({"aspect": 1.0}, TypeError, "aspect=1.0 is a float"),
    ],
)
def test_bad_masks_are_named(change, error, message):
    with pytest.raises(error, match=message):
        blockwise_mask(**({"batch": 2, "grid": (4, 4), "ratio": 0.5} | change))
