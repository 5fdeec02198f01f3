"""Every CUDA source, by nvcc, without a GPU: registers, spills, shared memory, and what wgmma became."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc").glob("*/cuda.cu"))


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which(str(Path(home) / "bin" / "nvcc"))


def disassembled(cubin: Path) -> str:
    """SASS by the tools of the triton package, or by those of CUDA."""
    spec = importlib.util.find_spec("triton")
    folder = Path(spec.origin).parent / "backends/nvidia/bin" if spec and spec.origin else None
    tool = shutil.which("nvdisasm", path=str(folder) if folder else None) or shutil.which("nvdisasm")
    if tool is None:
        pytest.skip("there is no nvdisasm")
    return subprocess.run([tool, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(nvcc() is None, reason="nvcc was not found")
@pytest.mark.skipif(not SOURCES, reason="the source is not at hand")
@pytest.mark.parametrize("architecture", ["80", "90a", "100a", "120a"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.parent.name)
def test_kernels_compile_without_spills(source, architecture, tmp_path):
    cubin = tmp_path / "kernels.cubin"
    command = [
        str(nvcc()), f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-cubin", "-O3", "-std=c++17",
        "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-Xptxas", "-v",
        "-isystem", str(Path(torch.__file__).parent / "include"), str(source), "-o", str(cubin),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    log = result.stdout + result.stderr
    assert result.returncode == 0, log
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", log)
    assert spills
    assert not [x for x in spills if x != ("0", "0")], log
    assert not re.findall(r"C75\d\d.*", log), "wgmma was serialised, or setmaxnreg ignored"
    limit = 227 if architecture in ("90a", "100a") else 163 if architecture == "80" else 99
    assert all(int(x) <= limit * 1024 for x in re.findall(r"(\d+) bytes smem", log)), log
    if source.parent.name == "diagonal_attention" and architecture == "90a":
        sass = disassembled(cubin)
        for instruction in (
            "HGMMA",
            "UTMALDG",
            "SYNCS",
        ):  # products, tensor copies, barriers of shared memory
            assert instruction in sass, instruction
    elif source.parent.name in ("frame_difference", "swap_patches"):
        assert "LDG.E.128" in re.sub(r"LDG\.E(\.\w+)*\.128", "LDG.E.128", disassembled(cubin))
