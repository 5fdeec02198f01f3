"""The machine's own ceilings, by a small C++ module that is compiled on first use."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

HERE = Path(__file__).parent


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
