"""The machine's own ceilings: of a CPU by a small C++ module that is compiled on first use, of a GPU by torch."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

HERE = Path(__file__).parent
MATRIX_SIDE = 8192
COPY_BYTES = 1 << 30


@functools.cache
def module() -> ModuleType:
    """The compiled module; built into ``build/`` when its source is newer."""
    source = HERE / "ceilings.cpp"
    library = HERE.parent / "build" / f"ceilings{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        library.parent.mkdir(exist_ok=True)
        torch_headers = Path(torch.__file__).parent / "include"  # with torch's copy of pybind11
        includes = [f"-I{torch_headers}", f"-I{sysconfig.get_paths()['include']}"]
        flags = ["-std=c++17", "-O3", "-fPIC", "-shared", "-ffp-contract=fast"]
        compiler = os.environ.get("CXX", "c++")
        subprocess.run([compiler, *flags, *includes, str(source), "-o", str(library)], check=True)
    spec = importlib.util.spec_from_file_location("ceilings", library)
    assert spec is not None
    assert spec.loader is not None
    result = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(result)
    return result


@functools.cache
def fma_peak(instruction_set: str = "avx512") -> float:
    """Floating-point operations a second of one thread."""
    return module().fma_peak(instruction_set)


def read(*tensors: Tensor) -> None:
    """Read the bytes of contiguous tensors once, on one thread, and do nothing with them."""
    for x in tensors:
        module().read(x.data_ptr(), x.nbytes)


def _seconds(function: Callable[[], object]) -> float:
    """Median time of one call, as torch measures it."""
    return Timer("function()", globals={"function": function}).blocked_autorange().median


@functools.cache
def matrix_rate(device: torch.device) -> float:
    """Operations a second of a large bf16 product. On random data: zeros draw less power and run faster."""
    x, y = (torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=device).bfloat16() for _ in range(2))
    result = torch.empty_like(x)
    return 2.0 * MATRIX_SIDE**3 / _seconds(lambda: torch.mm(x, y, out=result))


@functools.cache
def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written together, of a large copy on the device."""
    source = torch.randint(256, (COPY_BYTES,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * COPY_BYTES / _seconds(lambda: target.copy_(source))
