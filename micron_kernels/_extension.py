"""The compiled extension: whether it is there, why not, and what its callers share."""

from __future__ import annotations

import importlib
import logging
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


def register(implementations: dict[str, ModuleType], native: ModuleType) -> dict[str, ModuleType]:
    """``implementations``, with ``native`` where the extension has loaded."""
    return {**implementations, "native": native} if module is not None else implementations


def with_contiguous_rows(x: Tensor) -> Tensor:
    """``x`` itself where elements of its last dimension lie side by side, otherwise a copy."""
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()
