"""Every Triton kernel, for every architecture that is claimed, without a GPU: see compile_triton.py."""

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

OPERATORS = ("diagonal_attention", "frame_difference", "poi_topk", "swap_patches")
TENSOR_CORES = {
    "sm_80": "mma.sync",
    "sm_86": "mma.sync",
    "sm_90": "wgmma",
    "sm_100": "tcgen05",
    "sm_120": "mma.sync",
    "gfx942": "v_mfma",
}
#: Kernels that clamp scores under their exponentials.
EXPONENTIALS = (
    "forward_kernel",
    "rows_of_scores_kernel",
    "gradients_of_scores_kernel",
    "query_gradients_kernel",
    "key_gradients_kernel",
)


def dtypes_of(operator, target):
    dtypes = ["bfloat16"]
    if operator in ("frame_difference", "swap_patches"):
        dtypes.append("uint8")
    if target in ("sm_86", "sm_90"):
        dtypes.append("float32")
    return dtypes


def compile_kernels(target, operators):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_triton.py")
    wanted = [f"{operator}={','.join(dtypes_of(operator, target))}" for operator in operators]
    command = [sys.executable, str(script), target, *wanted]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def results(request):
    """What will come of compiling all that the tests here ask for: by target, a process of its own, side by side."""
    wanted = {}
    for item in request.session.items:
        if item.module is request.module:
            wanted.setdefault(item.callspec.params["target"], []).append(item.callspec.params["operator"])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {
            target: pool.submit(compile_kernels, target, operators) for target, operators in wanted.items()
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("target", TENSOR_CORES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_kernels_fit_the_chip(operator, target, results):
    result = results[target].result()
    assert result.returncode == 0, result.stderr
    kernels = json.loads(result.stdout)[operator]
    assert {kernel["dtype"] for kernel in kernels} == set(dtypes_of(operator, target))
    for kernel in kernels:
        assert kernel["spilled"] == 0, kernel
        assert kernel["shared"] <= kernel["limit"], kernel
        if "BLOCK_M" in kernel["constants"] and kernel["dtype"] == "bfloat16":
            # A row of 512 with rows or a mask leaves registers for 32 rows at a time, and wgmma wants 64.
            small = kernel["constants"]["BLOCK_M"] < 64
            expected = "mma.sync" if small and target in ("sm_90", "sm_100") else TENSOR_CORES[target]
            assert any(name.startswith(expected) for name in kernel["tensor_core"]), kernel
        if (operator, kernel["dtype"]) == ("diagonal_attention", "float32") and kernel[
            "kernel"
        ] in EXPONENTIALS:
            assert kernel["maximum_keeps_nan"], (
                kernel
            )  # max.f32 drops a NaN; the interpreter keeps it either way
