"""What is installed, what is active and why: ``python -m micron_kernels.info``."""

from __future__ import annotations

import importlib.metadata
import platform

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


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _extension_facts() -> list[str]:
    facts = _extension.module
    if facts is None:
        return [
            f"extension       none: {_extension.reason}",
            f"                to build it: {_extension.REBUILD}",
        ]
    return [
        f"extension       built by {facts.compiler} against torch {facts.torch}",
        f"                flags {facts.flags}",
        f"                instruction sets {', '.join(facts.supported_instruction_sets())}; "
        f"in use: {facts.instruction_set()}",
        f"                CUDA {facts.cuda_architectures or 'half not built: ' + facts.no_cuda_reason}",
    ]


def describe() -> str:
    """The report as text, a fact a line."""
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    else:
        gpus = ["none (torch.cuda.is_available() is False)"]
    lines = [
        f"micron_kernels  {__version__}",
        f"python          {platform.python_version()} on {platform.system()} {platform.machine()}",
        f"torch           {torch.__version__}, CUDA {torch.version.cuda or 'not in this build'}",
        f"triton          {_installed('triton')}",
        f"CPU             {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        *(f"GPU             {name}" for name in gpus),
        *_extension_facts(),
        "",
        f"{'operator':<22}{'on':<6}{'chosen':<12}of",
    ]
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    for name, ops in OPERATORS.items():
        for device in devices:
            reasons = {
                impl: why_not(ops.IMPLEMENTATIONS, impl, device, (torch.float32,))
                for impl in order(name, device.type)
            }
            chosen = next(impl for impl, why in reasons.items() if why is None)
            lines.append(f"{name:<22}{device.type:<6}{chosen:<12}{', '.join(order(name, device.type))}")
            lines += [f"{'':<28}not {impl}: {why}" for impl, why in reasons.items() if why is not None]
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe())
