"""Every Triton kernel, for every architecture that is claimed, without a GPU: see compile_triton.py."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

OPERATORS = ("diagonal_attention", "frame_difference", "poi_topk", "swap_patches")
TENSOR_CORES = {
    "sm_80": "HMMA",
    "sm_86": "HMMA",
    "sm_90": "HGMMA",
    "sm_100": "UTCHMMA",
    "sm_120": "HMMA",
    "gfx942": "v_mfma",
}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("target", TENSOR_CORES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_kernels_fit_the_chip(operator, target):
    dtypes = ["bfloat16"]
    if operator in ("frame_difference", "swap_patches"):
        dtypes.append("uint8")
    if target in ("sm_86", "sm_90"):
        dtypes.append("float32")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_triton.py")
    result = subprocess.run(
        [sys.executable, str(script), operator, target, *dtypes],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    kernels = json.loads(result.stdout)
    assert {kernel["dtype"] for kernel in kernels} == set(dtypes)
    for kernel in kernels:
        assert kernel["spilled"] == 0, kernel
        assert kernel["shared"] <= kernel["limit"], kernel
        if "BLOCK_M" in kernel["constants"] and kernel["dtype"] == "bfloat16":
            # A row of 512 with rows or a mask leaves registers for 32 rows at a time, and wgmma wants 64.
            small = kernel["constants"]["BLOCK_M"] < 64
            expected = "HMMA" if small and target in ("sm_90", "sm_100") else TENSOR_CORES[target]
            assert any(name.startswith(expected) for name in kernel["tensor_core"]), kernel
