"""The extension when it is there, when it is not, and when its file is broken."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

import fresh
import micron_kernels
from micron_kernels import _extension, diagonal_attention, frame_difference, swap_patches, topk_mask
from micron_kernels.info import describe

built = pytest.mark.skipif(_extension.module is None, reason=f"no native kernels: {_extension.reason}")


def run_copy(tmp_path, extension: bytes | None, code: str) -> str:
    """Run ``code`` on a copy of the package with this extension file, or with none."""
    copy = tmp_path / "micron_kernels"
    ignore = shutil.ignore_patterns("__pycache__", "_native*")
    shutil.copytree(Path(micron_kernels.__file__).parent, copy, ignore=ignore)
    if extension is not None:
        suffix = ".so" if sys.platform != "win32" else ".pyd"
        (copy / f"_native{suffix}").write_bytes(extension)
    # An editable install would lend the copy its own extension.
    alone = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f)]\n"
    warnings = ("error", "always:micron_kernels runs in plain PyTorch")
    return fresh.output_of(alone + code, folder=tmp_path, warnings=warnings)


USE_AND_DESCRIBE = """
import torch, micron_kernels, micron_kernels.info
print(micron_kernels.topk_mask(torch.rand(1, 4), 2)[0].sum().item(), "kept")
print(micron_kernels.info.describe())
"""


def test_the_package_works_without_the_extension(tmp_path):
    output = run_copy(tmp_path, None, USE_AND_DESCRIBE)
    assert "2 kept" in output
    assert "none: the extension was not built" in output
    assert (
        output.count("UserWarning: micron_kernels runs in plain PyTorch, which is slower: the extension ")
        == 1
    )
    assert output.count("To build it: ") == 1


@pytest.mark.parametrize("content", [b"", b"not a library"], ids=["empty", "garbage"])
def test_the_package_works_with_an_extension_that_does_not_load(tmp_path, content):
    output = run_copy(tmp_path, content, USE_AND_DESCRIBE)
    assert "2 kept" in output
    assert "none: the extension does not load: " in output
    assert (
        output.count("UserWarning: micron_kernels runs in plain PyTorch, which is slower: the extension ")
        == 1
    )
    assert output.count("To build it: ") == 1


def test_a_missing_extension_does_not_break_compilation_and_is_not_blamed_for_fp64(tmp_path):
    code = """
import torch, micron_kernels
compiled = torch.compile(lambda x: micron_kernels.topk_mask(x, 2)[0], fullgraph=True, backend="eager")
print(micron_kernels.topk_mask(torch.rand(1, 4).double(), 2)[0].sum().item(), "kept")
print(compiled(torch.rand(1, 4)).sum().item(), "kept", compiled(torch.rand(1, 4)).sum().item())
"""
    output = run_copy(tmp_path, None, code)
    assert output.count("2 kept") == 2
    assert output.count("UserWarning: micron_kernels runs in plain PyTorch") == 1


def test_an_extension_for_another_python_is_named(tmp_path):
    name = "_native.cpython-39-riscv.so"
    code = f"""
import pathlib, importlib, sys
pathlib.Path("micron_kernels/{name}").touch()
from micron_kernels import _extension
print(_extension.reason)
"""
    assert f"built for another Python: {name}" in run_copy(tmp_path, None, code)


def test_a_missing_extension_is_named_when_it_is_asked_for(tmp_path):
    code = """
import torch, micron_kernels
try:
    micron_kernels.topk_mask(torch.rand(1, 4), 2, impl="native")
except RuntimeError as error:
    print(error)
"""
    output = run_copy(tmp_path, None, code)
    assert "needs the compiled extension (the extension was not built)" in output


@built
def test_info_tells_how_the_extension_was_built():
    text = describe()
    for fact in (_extension.module.compiler, _extension.module.flags, _extension.module.instruction_set()):
        assert fact in text
    assert "CUDA" in text


@built
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("diagonal_attention", lambda d, **x: diagonal_attention(*torch.randn(3, 1, 1, 4, 4, dtype=d), **x)),
        ("frame_difference", lambda d, **x: frame_difference(*torch.rand(2, 1, 3, 4, 4, dtype=d), 2, **x)),
        ("poi_topk", lambda d, **x: topk_mask(torch.rand(1, 4, dtype=d), 2, **x)),
        (
            "swap_patches",
            lambda d, **x: swap_patches(
                *torch.rand(2, 1, 3, 4, 4, dtype=d), torch.zeros(1, 4, dtype=torch.bool), 2, **x
            ),
        ),
    ],
)
def test_fp64_falls_back_unless_native_is_asked_for(name, call):
    call(torch.float64)
    call(torch.float32, impl="native")
    with pytest.raises(
        RuntimeError, match=f"{name}: impl='native' computes in .*, not in float64; impl=None"
    ):
        call(torch.float64, impl="native")


@built
@pytest.mark.parametrize(
    ("capability", "expected"), [("default", "portable"), ("avx2", "avx2"), ("avx512", "avx512")]
)
def test_the_environment_limits_the_instruction_set(capability, expected):
    code = "from micron_kernels import _extension; print(_extension.module.instruction_set())"
    found = fresh.output_of(code, environment={"ATEN_CPU_CAPABILITY": capability}).strip()
    supported = _extension.module.supported_instruction_sets()
    if expected in supported:
        assert found.startswith(expected)
    else:
        assert found in supported


@built
def test_positions_outside_are_refused_by_the_kernel_itself():
    from micron_kernels.diagonal_attention import native
    from micron_kernels.diagonal_attention.arguments import Inputs

    x = torch.randn(1, 1, 4, 4)
    with pytest.raises(RuntimeError, match="rows holds a position outside"):
        native.forward(Inputs(x, x, x, 1.0, rows=torch.tensor([[4]])), keep=False)


@built
@pytest.mark.skipif(
    _extension.module is None or not _extension.module.cuda_architectures, reason="built without CUDA"
)
def test_every_cuda_kernel_is_registered():
    csrc = Path(__file__).parents[2] / "csrc"
    if not csrc.exists():
        pytest.skip("the source is not at hand")
    operators = set(re.findall(r'm\.def\(\s*"(\w+)\(', (csrc / "schemas.h").read_text()))
    expected = set()
    for source in csrc.glob("*/cuda.cu"):
        expected |= set(re.findall(r'm\.impl\("(\w+)"', source.read_text()))
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert expected
    assert {x for x in operators if has_kernel(f"micron_native::{x}", "CUDA")} == expected


def test_setuptools_keeps_its_distutils():
    pytest.importorskip("setuptools")
    code = "import micron_kernels, setuptools, distutils; print(distutils.__file__)"
    assert "setuptools" in fresh.output_of(code), (
        "torch.compile imports setuptools, which then warns of distutils"
    )
