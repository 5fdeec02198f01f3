"""Compiles every Triton kernel as it would be launched, for chips that need not be there: prints JSON.

A process of its own, without TRITON_INTERPRET: python compile_triton.py <target> <operator>=<dtype>,<dtype>...
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import micron_kernels._triton
from micron_kernels.diagonal_attention.arguments import Inputs, Wanted

KB = 1024
#: Target and the shared memory that a block may have there.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * KB),
    "sm_86": (GPUTarget("cuda", 86, 32), 99 * KB),
    "sm_90": (GPUTarget("cuda", 90, 32), 227 * KB),
    "sm_100": (GPUTarget("cuda", 100, 32), 227 * KB),
    "sm_120": (GPUTarget("cuda", 120, 32), 99 * KB),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * KB),
}
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.bool: "*i1",
    torch.int64: "*i64",
    torch.int32: "*i32",
}


def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def call_diagonal_attention(module: Any, dtype: torch.dtype) -> None:
    cases = [(512, ""), (512, "rows masked"), (64, "rows masked")]
    if dtype == torch.float32:
        cases.append((512, "masked"))  # other kernels: of scores that are stored
    for width, options in cases:
        query, key, value = (new(64, 1, 784, width, dtype=dtype) for _ in range(3))
        weight = rows = mask = None
        if "masked" in options:
            weight, mask = new(64, 784, dtype=dtype), new(64, 784, dtype=torch.bool)
        if "rows" in options:
            rows = new(64, 196, dtype=torch.int64)
        inputs = Inputs(query, key, value, 0.1, weight, rows, mask)
        out, saved = module.forward(inputs, True)
        module.backward(out, saved.weights, inputs, saved, Wanted())


def call_frame_difference(module: Any, dtype: torch.dtype) -> None:
    frames, reference = new(32, 11, 3, 224, 224, dtype=dtype), new(32, 3, 224, 224, dtype=dtype)
    for norm in ("l1", "l2"):
        grad = module.forward(frames, reference, 8, norm, new(3))
        if dtype != torch.uint8:
            module.backward(grad, frames, reference, 8, norm, new(3))


def call_poi_topk(module: Any, dtype: torch.dtype) -> None:
    tokens, scores = new(64, 784, 512, dtype=dtype), new(64, 784, dtype=dtype)
    module.topk_mask(scores, 196)
    module.topk_mask(new(2, 100_000, dtype=dtype), 196)
    for name in ("mask_tokens", "select_tokens"):
        for weighted in (False, True):
            out, indices = getattr(module, name)(tokens, scores, 196, weighted)
            getattr(module, f"{name}_backward")(out, tokens, scores, indices, weighted)


def call_swap_patches(module: Any, dtype: torch.dtype) -> None:
    frame = new(32, 3, 224, 224, dtype=dtype)
    swap = new(32, 784, dtype=torch.bool)
    out_dtype = torch.float32 if dtype == torch.uint8 else dtype
    out = module.forward(frame, frame, swap, 8, new(3), new(3), out_dtype)
    if dtype != torch.uint8:
        module.backward(out, swap, 8, new(3), dtype)


def source_of(kernel: Any, arguments: tuple, constants: dict[str, Any]) -> tuple[ASTSource, dict[str, Any]]:
    """What Triton would compile for this launch, and the options."""
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list] = {}
    values = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
    for i, name in enumerate(kernel.arg_names):
        value = values[name]
        if name in constants or value is None or (type(value) is int and value == 1):
            signature[name] = "constexpr"
            constants[name] = value
            continue
        if isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
        elif isinstance(value, bool):
            signature[name] = "i1"
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        else:
            signature[name] = "fp32"
        if isinstance(value, Tensor) or (type(value) is int and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes), options


def launches(operator: str, dtype: torch.dtype, shared: int, hopper: bool) -> list[tuple]:
    """(kernel, arguments, constants) of everything that an operator launches."""
    recorded: list[tuple] = []

    def launch(kernel, grid, *arguments, **constants):
        recorded.append((kernel, arguments, constants))

    module = importlib.import_module(f"micron_kernels.{operator}.triton")
    for name, function in {
        "launch": launch,
        "shared_bytes": lambda device: shared,
        "is_hopper": lambda device: hopper,
    }.items():
        setattr(micron_kernels._triton, name, function)
        if hasattr(module, name):
            setattr(module, name, function)
    globals()[f"call_{operator}"](module, dtype)
    return recorded


def resources(compiled: Any, target: GPUTarget) -> dict[str, Any]:
    """Registers, bytes spilled, and the tensor-core instructions of a compiled kernel."""
    if target.backend == "hip":
        text = compiled.asm["amdgcn"]
        spilled = sum(int(x) for x in re.findall(r"\.vgpr_spill_count:\s*(\d+)", text))
        registers = max(int(x) for x in re.findall(r"\.vgpr_count:\s*(\d+)", text))
        return {
            "registers": registers,
            "spilled": spilled,
            "tensor_core": sorted(set(re.findall(r"v_mfma\w*", text))),
        }
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    found = re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", usage.stdout + usage.stderr)
    assert found, usage.stdout + usage.stderr
    return {
        "registers": int(found[1]),
        "spilled": max(int(found[2]), int(found[3])),
        "maximum_keeps_nan": "max.NaN.f32" in compiled.asm["ptx"],
        # In PTX: each is one instruction of SASS, and disassembling takes longer than compiling.
        "tensor_core": sorted(
            set(re.findall(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma", compiled.asm["ptx"]))
        ),
    }


def compile_operator(operator: str, name: str, dtypes: list[str]) -> list[dict[str, Any]]:
    target, shared = TARGETS[name]
    results: dict[str, dict[str, Any]] = {}
    for dtype in dtypes:
        for kernel, arguments, constants in launches(
            operator, getattr(torch, dtype), shared, name == "sm_90"
        ):
            meta = dict(constants)
            source, options = source_of(kernel, arguments, constants)
            key = f"{kernel.fn.__name__} {dtype} {json.dumps(meta)} {source.signature}"
            if key in results:
                continue
            compiled = triton.compile(source, target=target, options=options)
            results[key] = {
                "kernel": kernel.fn.__name__,
                "dtype": dtype,
                "constants": meta,
                "shared": compiled.metadata.shared,
                "limit": shared,
                **resources(compiled, target),
            }
    return list(results.values())


def main(name: str, *operators: str) -> None:
    wanted = (operator.split("=") for operator in operators)
    json.dump(
        {operator: compile_operator(operator, name, dtypes.split(",")) for operator, dtypes in wanted},
        sys.stdout,
    )


if __name__ == "__main__":
    assert os.environ.get("TRITON_INTERPRET") != "1"
    main(*sys.argv[1:])
