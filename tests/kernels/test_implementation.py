"""Which implementation serves a call, on devices that need not be there."""

import importlib.util
import logging
import textwrap
from types import SimpleNamespace

import pytest
import torch

import fresh
from micron_kernels import _extension, _implementation
from micron_kernels._implementation import Chooser, TritonModule, choose

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch):
    """A function that makes this process believe in a GPU and in a build of the extension."""

    def pretend(capability=(9, 0), architectures="8.0+PTX;9.0a;10.0a;12.0a", triton=True, interpret=False):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        facts = SimpleNamespace(cuda_architectures=architectures, no_cuda_reason="nvcc was not found")
        monkeypatch.setattr(_extension, "module", facts)
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: triton or None if name == "triton" else found(name)
        )
        monkeypatch.setenv("TRITON_INTERPRET", "1" if interpret else "0")
        return {
            "reference": SimpleNamespace(),
            "triton": TritonModule("anything", torch.float32, torch.bfloat16, width=512),
            "native": SimpleNamespace(DTYPES=(torch.float32, torch.bfloat16), why_not=_extension.why_not),
        }

    return pretend


def attention():
    from micron_kernels.diagonal_attention import native

    return native


@pytest.mark.parametrize(
    ("device", "dtype", "chosen"),
    [
        (CPU, torch.float32, "native"),
        (CPU, torch.float64, "reference"),
        (CUDA, torch.bfloat16, "triton"),
        (CUDA, torch.float64, "reference"),
        (torch.device("meta"), torch.float32, "reference"),
    ],
    ids=str,
)
def test_without_a_name_the_first_that_can(machine, device, dtype, chosen):
    assert choose("op", None, machine(), device, dtype) == chosen


def test_a_fallback_is_logged_with_its_reason(machine, caplog):
    with caplog.at_level(logging.DEBUG, "micron_kernels"):
        assert choose("op", None, machine(triton=False), CUDA, torch.float32) == "native"
    assert "op: falling back from 'triton', which needs the triton package" in caplog.text


def test_a_gpu_without_triton_is_told(machine, monkeypatch):
    """Of the operators that are not written in CUDA C++."""
    monkeypatch.setattr(_extension, "_has_warned", False)
    available = machine(triton=False)
    available["native"].why_not = _extension.why_not_on_cpu_alone
    with pytest.warns(
        UserWarning, match=r"plain PyTorch.*on a GPU op needs the triton package.*pip install triton"
    ):
        assert choose("op", None, available, CUDA, torch.float32) == "reference"


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 0), "8.0", True),
        ((8, 6), "8.0", True),
        ((8, 0), "8.6", False),
        ((9, 0), "8.0", False),
        ((9, 0), "8.0+PTX", True),
        ((7, 5), "8.0+PTX", False),
        ((10, 0), "10.0f", True),
        ((10, 3), "10.0f", True),
        ((10, 0), "10.3f", False),
        ((12, 0), "10.0f+PTX", False),
        ((9, 0), "Hopper", False),
        ((9, 0), "9.0a", True),
        ((9, 0), "8.9;9.0a", True),
        ((10, 0), "9.0a", False),
        ((10, 3), "10.0a+PTX", False),
        ((12, 0), "8.0+PTX;9.0a;10.0a;12.0a", True),
    ],
)
def test_machine_code_runs_where_the_chip_can_read_it(machine, capability, architectures, runs):
    why = machine(capability, architectures)["native"].why_not(CUDA)
    assert (why is None) == runs
    if why:
        assert f"was built for {architectures.replace(';', ', ')}" in why
        assert ".".join(map(str, capability)) in why


def test_a_build_without_cuda_says_why(machine):
    with pytest.raises(
        RuntimeError, match=r"impl='native' has no CUDA kernels in this build \(nvcc was not found"
    ):
        choose("op", "native", machine(architectures=""), CUDA, torch.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"triton": False}, "needs the triton package, which is not installed: pip install triton"),
        ({"capability": (7, 5)}, "needs compute capability 8.0 or higher; this GPU has 7.5"),
    ],
)
def test_triton_says_what_it_needs(machine, options, message):
    with pytest.raises(RuntimeError, match=message):
        choose("op", "triton", machine(**options), CUDA, torch.float32)


def test_triton_takes_cpu_tensors_in_its_interpreter_alone(machine):
    with pytest.raises(RuntimeError, match="runs on cuda, not on cpu, unless TRITON_INTERPRET=1"):
        choose("op", "triton", machine(), CPU, torch.float32)
    assert choose("op", "triton", machine(interpret=True), CPU, torch.float32) == "triton"


def test_a_size_beyond_the_limit_is_refused_by_name(machine):
    available = machine()
    with pytest.raises(RuntimeError, match="impl='triton' takes width up to 512, not 513; impl=None takes"):
        choose("op", "triton", available, CUDA, torch.float32, width=513)
    del available["native"]
    assert choose("op", None, available, CUDA, torch.float32, width=513) == "reference"


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "why"),
    [
        ((9, 0), torch.bfloat16, 512, None),
        ((9, 0), torch.float32, 512, "computes in bfloat16 and float16 on CUDA"),
        ((9, 0), torch.bfloat16, 520, "takes width up to 512 on CUDA, not 520"),
        ((8, 0), torch.bfloat16, 64, "was built for 9.0a; this GPU is 8.0"),
        ((10, 0), torch.bfloat16, 64, "was built for 9.0a; this GPU is 10.0"),
    ],
)
def test_attention_in_cuda_is_for_hopper_and_halves(machine, capability, dtype, width, why):
    machine(capability)
    assert attention().why_not(CUDA, dtype, width=width, value_width=8) == why
    assert attention().why_not(CPU, torch.float32, width=width, value_width=8) is None


def test_a_hip_build_has_no_cuda_kernels(machine, monkeypatch):
    native = machine()["native"]
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert native.why_not(CUDA) == "runs on cpu and on CUDA, not on ROCm"


def test_every_order_ends_with_the_reference():
    own = [order for of_device in _implementation.ORDER_OF.values() for order in of_device.values()]
    for order in (*_implementation.ORDER.values(), *own):
        assert order[-1] == "reference"
        assert set(order) <= set(_implementation.NAMES)


def test_a_remembered_choice_follows_what_decides_it(machine, monkeypatch):
    available = machine()
    chosen = Chooser("op", available)
    assert chosen(None, CPU, torch.float32) is available["native"]
    assert chosen(None, CPU, torch.float64) is available["reference"]
    assert chosen(None, CUDA, torch.float32) is available["triton"]
    with pytest.raises(RuntimeError, match="runs on cuda, not on cpu, unless TRITON_INTERPRET=1"):
        chosen("triton", CPU, torch.float32)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert chosen("triton", CPU, torch.float32) is available["triton"]
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match="runs on cuda, not on cpu"):
        chosen("triton", CPU, torch.float32)
    del available["native"]
    assert chosen(None, CPU, torch.float32) is available["reference"]


def test_a_remembered_choice_asks_once(machine, monkeypatch):
    available = machine()
    chosen = Chooser("op", available)
    asked = []
    monkeypatch.setattr(_implementation, "choose", lambda *a, **k: asked.append(a) or "native")
    for _ in range(3):
        chosen(None, CPU, torch.float32)
    assert len(asked) == 1


def test_the_warning_of_a_missing_extension_names_who_called():
    script = """
        import sys, warnings
        sys.modules["micron_kernels._native"] = None  # its import raises ModuleNotFoundError
        import torch, micron_kernels
        x = torch.rand(1, 1, 2, 8)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                micron_kernels.diagonal_attention(x, x, x)
        (warning,) = [w for w in caught if "runs in plain PyTorch" in str(w.message)]
        assert warning.category is UserWarning
        assert warning.filename == "<string>", warning.filename
    """
    fresh.output_of(textwrap.dedent(script))
