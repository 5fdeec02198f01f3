"""The CUDA kernels on a CPU: ``csrc/*/cuda.cu`` compiled by the C++ compiler against ``emulator/emulator.h``."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from micron_kernels._extension import CompiledOperators

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "emulator"
SOURCES = sorted((ROOT / "csrc").glob("*/cuda.cu"))
OPERATORS = [source.parent.name for source in SOURCES]


def cuda_headers() -> Path | None:
    """Where the headers of CUDA lie: the kernels use its types."""
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    for home in homes:
        if home and (Path(home) / "include" / "cuda_fp16.h").exists():
            return Path(home) / "include"
    return None


def why_not() -> str | None:
    """Why there can be no emulation here."""
    if not (ROOT / "csrc").exists():
        return "the source is not at hand"
    if cuda_headers() is None:
        return "the headers of CUDA are not installed"
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        return "there is no C++ compiler"
    return None


def _ninja() -> str:
    beside_python = Path(sys.executable).with_name("ninja")
    return str(beside_python) if beside_python.exists() else "ninja"


@functools.cache
def operators() -> Any:
    """The emulated operators; compiles what has changed."""
    import fcntl  # not on Windows, which has no emulation

    build = ROOT / "build" / "emulated"
    build.mkdir(parents=True, exist_ok=True)
    torch_folder = Path(torch.__file__).parent
    flags = [
        "-std=c++17 -O2 -g0 -fPIC -fno-strict-aliasing -DMICRON_EMULATED -w",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        f"-I{FOLDER} -I{ROOT / 'csrc'} -isystem {cuda_headers()} -isystem {torch_folder / 'include'}",
    ]
    sources = [
        FOLDER / "schemas.cpp",
        ROOT / "csrc/cpu/common.cpp",
        *SOURCES,
    ]
    lines = [
        f"cxx = {os.environ.get('CXX', 'c++')}",
        "rule compile",
        f"  command = $cxx -x c++ -MMD -MF $out.d {' '.join(flags)} -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = $cxx -shared $in -o $out -L{torch_folder / 'lib'} -ltorch -ltorch_cpu -lc10",
    ]
    objects = [f"{source.parent.name}_{source.stem}.o" for source in sources]
    lines += [f"build {o}: compile {source}" for o, source in zip(objects, sources, strict=True)]
    lines.append(f"build emulated.so: link {' '.join(objects)}")
    with (build / "lock").open("w") as lock:  # of the processes that share out the tests, one builds
        fcntl.flock(lock, fcntl.LOCK_EX)
        (build / "build.ninja").write_text("\n".join(lines) + "\n")
        subprocess.run([_ninja(), "-C", str(build), "--quiet"], check=True)
    torch.ops.load_library(build / "emulated.so")
    return CompiledOperators("micron_emulated")


class Emulated:
    """An operator's ``native`` module, with the emulated kernels behind it."""

    def __init__(self, native: ModuleType):
        self._native = getattr(native, "on_cuda", native)
        self.DTYPES = self._native.DTYPES

    @functools.cached_property
    def _module(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location(
            f"{self._native.__name__}_emulated", self._native.__file__
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.operators = operators()
        return module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "why_not":
            raise AttributeError(name)
        return getattr(self._module, name)
