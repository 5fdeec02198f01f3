"""Finds the CUDA toolkit, and says whether the CUDA half is built."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from find_torch import CannotBuild, Torch

#: Code for 8.0 serves 8.6 and 8.9 too, and its PTX every chip that has none here: PTX for an "a" runs nowhere else.
DEFAULT_CUDA_ARCHITECTURES = "8.0+PTX;9.0a;10.0a;12.0a"


class Cuda(NamedTuple):
    """What the CUDA half is built with; without sources it is not built, for ``reason``."""

    sources: list[str]
    home: Path
    runtime: Path
    architectures: list[str]
    reason: str

    @classmethod
    def without(cls, reason: str) -> Cuda:
        return cls([], Path(), Path(), [], reason)


def cuda_home() -> Path | None:
    """The CUDA toolkit: by the environment, by nvcc on the path, or where it is by default."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if named:
        return Path(named)
    on_path = shutil.which("nvcc")
    for home in ([Path(on_path).resolve().parents[1]] if on_path else []) + [Path("/usr/local/cuda")]:
        if (home / "bin" / "nvcc").exists() and cuda_runtime(home) is not None:
            return home
    return None


def cuda_runtime(home: Path) -> Path | None:
    """The folder of libcudart_static.a."""
    folders = [home / "lib64", home / "lib", *home.glob("targets/*/lib")]
    return next((folder for folder in folders if (folder / "libcudart_static.a").exists()), None)


def gpu_is_visible() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()  # the latter: Windows' WSL


def cuda_architectures(home: Path) -> list[str]:
    """TORCH_CUDA_ARCH_LIST as a list, or of the default what this nvcc knows."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(",", " ").replace(";", " ").split()
    for architecture in wanted:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", architecture):
            raise CannotBuild(
                f"TORCH_CUDA_ARCH_LIST holds {architecture!r}; architectures are numbers such as 8.0, 9.0a, 10.0f "
                "or 8.0+PTX"
            )
    if wanted:
        return wanted
    listed = subprocess.run([home / "bin" / "nvcc", "--list-gpu-code"], capture_output=True, text=True).stdout
    known = set(re.findall(r"sm_(\d+)", listed))
    default = DEFAULT_CUDA_ARCHITECTURES.split(";")
    return [x for x in default if not known or re.sub(r"\D", "", x) in known]


def find_cuda(sources: list[str], wanted: str, torch: Torch) -> Cuda:
    """What is needed to build ``sources`` as MICRON_BUILD asks: auto builds them for a torch with CUDA, and where a
    GPU is visible; where wheels are made there often is none."""
    if wanted == "cpu":
        return Cuda.without("left out by MICRON_BUILD=cpu")
    if wanted == "auto" and not torch.cuda and not gpu_is_visible():
        return Cuda.without(
            f"torch {torch.version} has no CUDA and no GPU was visible; MICRON_BUILD=cuda builds it all the same"
        )
    home = cuda_home()
    if home is None or not (home / "bin" / "nvcc").exists():
        reason = f"nvcc was not found{f' in {home}' if home else ''}; set CUDA_HOME"
    elif (runtime := cuda_runtime(home)) is None:
        reason = f"libcudart_static.a was not found in {home}"
    else:
        try:
            return Cuda(sources, home, runtime, cuda_architectures(home), "")
        except CannotBuild as why:
            reason = str(why)
    if wanted == "cuda":
        raise CannotBuild(f"MICRON_BUILD=cuda, but {reason}")
    return Cuda.without(reason)


def gencode(architectures: list[str]) -> list[str]:
    """nvcc's flags for architectures such as 8.0, 9.0a and 8.0+PTX."""
    flags = []
    for architecture in architectures:
        number = architecture.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if architecture.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags
