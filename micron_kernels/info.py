"""What is installed, what is active and why: ``python -m micron_kernels.info``."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

from . import __version__, _extension
from ._implementation import order, why_not
from .diagonal_attention import ops as diagonal_attention
from .frame_difference import ops as frame_difference
from .poi_topk import ops as poi_topk
from .swap_patches import ops as swap_patches

OPERATORS = {
    "diagonal_attention": diagonal_attention,
    "frame_difference": frame_difference,
    "poi_topk": poi_topk,
    "swap_patches": swap_patches,
}


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extension_facts() -> dict[str, Any]:
    built = _extension.module
    if built is None:
        return {"built": False, "reason": _extension.reason, "to_build": _extension.REBUILD}
    return {
        "built": True,
        "compiler": built.compiler,
        "torch": built.torch,
        "flags": built.flags,
        "instruction_sets": list(built.supported_instruction_sets()),
        "instruction_set": built.instruction_set(),
        "cuda": built.cuda_architectures or None,
        "no_cuda_reason": None if built.cuda_architectures else built.no_cuda_reason,
    }


def facts() -> dict[str, Any]:
    """The report, for programs: text, numbers, lists and dictionaries alone.

    ``operators`` has an entry for each operator and kind of device: what is ``chosen``, ``of`` what, and why ``not``
    each of the others that cannot serve.
    """
    cuda = torch.cuda.is_available()
    operators = []
    for name, ops in OPERATORS.items():
        for device in [torch.device("cpu"), *([torch.device("cuda")] if cuda else [])]:
            reasons = {
                impl: why_not(ops.IMPLEMENTATIONS, impl, device, (torch.float32,))
                for impl in order(name, device.type)
            }
            operators.append(
                {
                    "operator": name,
                    "device": device.type,
                    "chosen": next(impl for impl, why in reasons.items() if why is None),
                    "of": list(reasons),
                    "not": {impl: why for impl, why in reasons.items() if why is not None},
                }
            )
    return {
        "micron_kernels": __version__,
        "python": {
            "version": platform.python_version(),
            "system": platform.system(),
            "machine": platform.machine(),
        },
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda},
        "triton": _installed("triton"),
        "cpu": {"capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()},
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "extension": _extension_facts(),
        "operators": operators,
    }


def _describe_extension(extension: dict[str, Any]) -> list[str]:
    if not extension["built"]:
        return [
            f"extension       none: {extension['reason']}",
            f"                to build it: {extension['to_build']}",
        ]
    return [
        f"extension       built by {extension['compiler']} against torch {extension['torch']}",
        f"                flags {extension['flags']}",
        f"                instruction sets {', '.join(extension['instruction_sets'])}; "
        f"in use: {extension['instruction_set']}",
        f"                CUDA {extension['cuda'] or 'half not built: ' + extension['no_cuda_reason']}",
    ]


def describe() -> str:
    """The report as text, a fact a line."""
    found = facts()
    python, pytorch, cpu = found["python"], found["torch"], found["cpu"]
    lines = [
        f"micron_kernels  {found['micron_kernels']}",
        f"python          {python['version']} on {python['system']} {python['machine']}",
        f"torch           {pytorch['version']}, CUDA {pytorch['cuda'] or 'not in this build'}",
        f"triton          {found['triton'] or 'not installed'}",
        f"CPU             {cpu['capability']}, {cpu['threads']} threads",
        *(
            f"GPU             {name}"
            for name in found["gpus"] or ["none (torch.cuda.is_available() is False)"]
        ),
        *_describe_extension(found["extension"]),
        "",
        f"{'operator':<22}{'on':<6}{'chosen':<12}of",
    ]
    for of in found["operators"]:
        lines.append(f"{of['operator']:<22}{of['device']:<6}{of['chosen']:<12}{', '.join(of['of'])}")
        lines += [f"{'':<28}not {impl}: {why}" for impl, why in of["not"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe())
