import pytest
import torch

import harness
from micron_kernels import frame_difference
from micron_kernels.frame_difference import ops
from micron_kernels.testing import eager_frame_difference, guarded_memory, poisoned_memory
from property_based import given, settings, st

WRT = ("frames", "reference")
target = pytest.mark.parametrize("target", harness.targets(ops))


def make(
    shape=(2, 3, 3, 16, 24),
    dtype=torch.float32,
    device="cpu",
    *,
    patch_size=8,
    norm="l1",
    scaled=False,
    layout="contiguous",
):
    """Inputs of ``frame_difference``; the second half of the reference equals the first frame."""

    def image(*size):
        x = torch.randint(0, 256, size, device=device)
        return (
            x.to(torch.uint8)
            if dtype == torch.uint8
            else (x / 255 + torch.rand(size, device=device) / 255).to(dtype)
        )

    frames = image(*shape)
    reference = image(shape[0], *shape[-3:])
    half = shape[-1] // 2
    reference[..., half:] = (frames[:, 0] if len(shape) == 5 else frames)[..., half:]
    inputs = {
        "frames": harness.in_layout(frames, layout),
        "reference": harness.in_layout(reference, layout),
        "patch_size": patch_size,
        "norm": norm,
    }
    if scaled:
        inputs["channel_scale"] = torch.rand(shape[-3], device=device) * 4 + 1
    return inputs


def wrt(inputs):
    return () if inputs["frames"].dtype == torch.uint8 else WRT


@target
@pytest.mark.parametrize("dtype", [torch.uint8, *harness.DTYPES], ids=str)
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("scaled", [False, True])
def test_stays_within_the_rounding_budget(target, dtype, norm, scaled):
    impl, device = target
    harness.check(
        frame_difference,
        eager_frame_difference,
        lambda: make(dtype=dtype, device=device, norm=norm, scaled=scaled),
        () if dtype == torch.uint8 else WRT,
        impl,
    )


@target
@pytest.mark.parametrize("patch_size", [1, 3, 7, 8, 31])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_patch_size_and_channel_count(target, patch_size, channels):
    impl, device = target
    shape = (2, channels, 2 * patch_size, 3 * patch_size)
    harness.check(
        frame_difference,
        eager_frame_difference,
        lambda: make(shape, device=device, patch_size=patch_size),
        WRT,
        impl,
    )


@target
@pytest.mark.parametrize("layout", harness.LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_every_memory_layout(target, layout, dtype):
    impl, device = target
    harness.check(
        frame_difference,
        eager_frame_difference,
        lambda: make(dtype=dtype, device=device, layout=layout),
        () if dtype == torch.uint8 else WRT,
        impl,
        gradient_layout=layout,
    )


@target
def test_channels_last_memory(target):
    impl, device = target
    inputs = make((2, 3, 16, 16), device=device)
    expected = frame_difference(**inputs, impl=impl)
    for name in WRT:
        inputs[name] = inputs[name].to(memory_format=torch.channels_last)
    torch.testing.assert_close(frame_difference(**inputs, impl=impl), expected)


@target
def test_offsets_beyond_31_bits(target):
    impl, device = target

    def far_apart():
        inputs = make((2, 1, 16, 16), torch.uint8, device)
        return inputs | {name: harness.in_layout(inputs[name], "far") for name in WRT}

    harness.check(frame_difference, eager_frame_difference, far_apart, (), impl)


@target
def test_equal_frames_differ_by_zero_and_have_zero_gradient(target):
    impl, device = target
    frames = torch.rand(1, 3, 8, 8, device=device, requires_grad=True)
    result = frame_difference(frames, frames.detach().clone(), 4, impl=impl)
    (gradient,) = torch.autograd.grad(result.sum(), frames)
    assert (result == 0).all()
    assert (gradient == 0).all()


@target
def test_a_grey_level_is_one_255th(target):
    impl, device = target
    reference = torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device=device)
    frames = reference.clone()
    frames[:, :, :4, 4:] = 1
    result = frame_difference(frames, reference, 4, impl=impl)
    torch.testing.assert_close(result, torch.tensor([[0, 1 / 255, 0, 0]], device=device))


@target
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_integer_sums_over_large_patches_do_not_overflow(target, norm):
    impl, device = target
    white = torch.full((1, 1, 258, 516), 255, dtype=torch.uint8, device=device)
    result = frame_difference(white, torch.zeros_like(white), 258, norm=norm, impl=impl)
    torch.testing.assert_close(result, torch.ones(1, 2, device=device))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_sum_of_more_than_32_bits(memory_format):
    side = 4105  # the first of which 255 · side² does not fit
    white = torch.full((1, 2, side, side), 255, dtype=torch.uint8).to(memory_format=memory_format)
    torch.testing.assert_close(frame_difference(white, torch.zeros_like(white), side), torch.ones(1, 1))


@target
def test_float_sums_over_large_patches_do_not_drift(target):
    impl, device = target
    frames = torch.full((1, 1, 1024, 1024), 0.1, device=device)
    result = frame_difference(frames, torch.zeros_like(frames), 1024, impl=impl)
    assert abs(result.item() / frames[0, 0, 0, 0].item() - 1) < 3e-6  # summed term by term: 1e-5


@target
def test_a_nan_pixel_marks_its_patch_only(target):
    impl, device = target
    frames, reference = torch.rand(2, 1, 3, 8, 8, device=device)
    frames[0, 1, 5, 2] = torch.nan
    result = frame_difference(frames, reference, 4, impl=impl)
    assert result.isnan().tolist() == [[False, False, True, False]]


@target
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 3, 8, 8), (2, 3, 0, 8), (2, 3, 8, 0)], ids=str)
def test_a_size_of_zero(target, shape):
    impl, device = target
    inputs = {
        "frames": torch.rand(shape, device=device),
        "reference": torch.rand((shape[0], *shape[-3:]), device=device),
        "patch_size": 4,
    }
    harness.check_empty(frame_difference, inputs, WRT, impl)


@target
def test_of_no_channels_there_is_no_mean(target):
    impl, device = target
    frames, reference = (torch.empty(2, 0, 8, 8, device=device, requires_grad=True) for _ in range(2))
    result = frame_difference(frames, reference, 4, impl=impl)
    assert result.shape == (2, 4)
    assert result.isnan().all()
    result.sum().backward()
    assert frames.grad.shape == reference.grad.shape == (2, 0, 8, 8)


@target
def test_same_bits_run_after_run(target):
    impl, device = target
    harness.check_repeats(lambda **x: frame_difference(**x, impl=impl), make(device=device), WRT)


@target
def test_poisoned_memory_changes_nothing(target):
    impl, device = target
    with poisoned_memory():
        harness.check(frame_difference, eager_frame_difference, lambda: make(device=device), WRT, impl)


@target
def test_nothing_is_written_outside_the_outputs(target):
    impl, device = target
    inputs = make((2, 3, 3, 9, 15), device=device, patch_size=3) | {"channel_scale": None}
    implementation = ops.IMPLEMENTATIONS[impl]
    with guarded_memory():
        out = implementation.forward(**inputs)
        implementation.backward(out, **inputs)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_gradcheck(norm):
    inputs = make((2, 2, 3, 4, 4), torch.float64, patch_size=2, norm=norm, scaled=True)
    inputs["reference"] = torch.rand(2, 3, 4, 4).double()  # no x = r, where "l1" has a kink
    leaves = [inputs.pop(name).requires_grad_() for name in WRT]
    assert torch.autograd.gradcheck(lambda x, r: frame_difference(x, r, **inputs), leaves)


@target
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_opcheck(target, dtype):
    impl, device = target
    inputs = make(dtype=dtype, device=device, scaled=True)
    tensors = [inputs[name].requires_grad_(dtype != torch.uint8) for name in WRT]
    torch.library.opcheck(ops.frame_difference.overload, (*tensors, 8, "l1", inputs["channel_scale"], impl))


@target
@pytest.mark.parametrize(("backend", "dynamic"), [("inductor", False), ("aot_eager", True)])
def test_compiles_as_one_graph(target, backend, dynamic):
    impl, device = target
    inputs = make(device=device)
    harness.check_compiles(lambda **x: frame_difference(**x, impl=impl), inputs, WRT, backend, dynamic)


@target
def test_exports(target):
    impl, device = target
    tensors = {name: x for name, x in make(device=device).items() if name in WRT}
    harness.check_exports(lambda **x: frame_difference(**x, patch_size=8, impl=impl), tensors)


@target
def test_autocast_leaves_it_alone(target):
    impl, device = target
    inputs = make(device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        result = frame_difference(**inputs, impl=impl)
    assert torch.equal(result, frame_difference(**inputs, impl=impl))


@pytest.mark.parametrize("impl", harness.tested_on_cpu(ops))
@settings(max_examples=harness.EXAMPLES)
@given(data=st.data())
def test_any_shape_dtype_and_layout(impl, data):
    draw = data.draw
    patch_size = draw(st.integers(1, 9))
    time = draw(st.none() | st.integers(1, 3))
    rows, columns, channels = (draw(st.integers(1, 4)) for _ in range(3))
    image = (channels, rows * patch_size, columns * patch_size)
    shape = (draw(st.integers(1, 3)), *(() if time is None else (time,)), *image)
    dtype = draw(st.sampled_from((torch.uint8, torch.float32, *harness.HALVES)))
    options = {
        "patch_size": patch_size,
        "norm": draw(st.sampled_from(("l1", "l2"))),
        "scaled": draw(st.booleans()),
        "layout": draw(st.sampled_from(harness.LAYOUTS)),
    }
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    harness.check(
        frame_difference,
        eager_frame_difference,
        lambda: make(shape, dtype, **options),
        () if dtype == torch.uint8 else WRT,
        impl,
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"frames": [1]}, TypeError, "frames is a list"),
        ({"frames": torch.zeros(3, 16, 24)}, ValueError, r"frames has shape \(3, 16, 24\)"),
        ({"frames": torch.zeros(2, 3, 3, 16, 24).int()}, TypeError, "frames has dtype int32"),
        ({"reference": torch.zeros(2, 3, 16, 24).half()}, TypeError, "reference has dtype torch.float16"),
        ({"reference": torch.zeros(1, 3, 16, 24)}, ValueError, r"reference has shape \(1, 3, 16, 24\)"),
        (
            {"patch_size": 10},
            ValueError,
            r"patch_size=10 does not divide the frame \(16×24\); divisors near it",
        ),
        ({"patch_size": 0}, ValueError, "patch_size=0 is too small"),
        ({"patch_size": 4.0}, TypeError, "patch_size=4.0 is a float"),
        ({"norm": "l3"}, ValueError, "norm='l3'; it must be 'l1' or 'l2'"),
        ({"channel_scale": [1.0]}, ValueError, r"channel_scale has shape \(1\); it must be \(3\)"),
        ({"channel_scale": "x"}, TypeError, "channel_scale='x'"),
        ({"channel_scale": torch.ones(3, requires_grad=True)}, ValueError, "channel_scale requires grad"),
        ({"impl": "native?"}, ValueError, "is not one of"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        frame_difference(**(make() | change))
