"""The compiled extension: whether it is there, why not, and what its callers share."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps -v <the source of micron-kernels>"

#: The pybind11 module with the facts of the build, or None.
module: ModuleType | None = None
#: Why there is none, in one line.
reason = ""


def _load() -> None:
    global module, reason
    try:
        native = importlib.import_module("micron_kernels._native")
        native.instruction_set()
        module = native
    except ModuleNotFoundError:  # its file is not there; of one that is, the loader says something else
        reason = "the extension was not built"
    except Exception as error:  # whatever a stale or foreign binary does must not stop the package
        reason = f"the extension does not load: {' '.join(str(error).split())}"
        logging.getLogger("micron_kernels").warning("%s; rebuild it with: %s", reason, REBUILD)


_load()


def operators() -> Any:
    """The namespace of the compiled operators."""
    return torch.ops.micron_native


def register(implementations: dict[str, Any], native: ModuleType) -> dict[str, Any]:
    """``implementations``, with ``native`` where the extension has loaded."""
    return {**implementations, "native": native} if module is not None else implementations


def _runs_on(capability: tuple[int, int], architecture: str) -> bool:
    """Whether code for ``architecture``, such as 8.0, 9.0a or 8.0+PTX, runs on a GPU of that capability."""
    number = architecture.removesuffix("+PTX")
    major, minor = (int(x) for x in number.removesuffix("a").split("."))
    if number.endswith("a"):  # neither its machine code nor its PTX runs elsewhere
        return capability == (major, minor)
    return (capability[0] == major and capability[1] >= minor) or (
        architecture.endswith("+PTX") and capability >= (major, minor)
    )


def why_not(
    device: torch.device, *_dtypes: torch.dtype, architectures: Sequence[str] | None = None
) -> str | None:
    """Why native kernels cannot run on ``device``, or None; ``architectures`` are those they are written for."""
    if device.type == "cpu":
        return None
    if device.type != "cuda" or torch.version.hip is not None:
        return f"runs on cpu and on CUDA, not on {'ROCm' if device.type == 'cuda' else device.type}"
    assert module is not None
    if not module.cuda_architectures:
        return f"has no CUDA kernels in this build ({module.no_cuda_reason}; to rebuild: {REBUILD})"
    built = module.cuda_architectures.split(";")
    usable = [x for x in built if architectures is None or x.removesuffix("+PTX") in architectures]
    capability = torch.cuda.get_device_capability(device)
    if any(_runs_on(capability, x) for x in usable):
        return None
    written_for = ", ".join(usable) or f"none of {', '.join(architectures or ())}"
    return f"was built for {written_for}; this GPU is {'.'.join(map(str, capability))}"


def with_contiguous_rows(x: Tensor) -> Tensor:
    """``x`` itself where elements of its last dimension lie side by side, otherwise a copy."""
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()
