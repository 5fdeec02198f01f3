"""The compiled extension: whether it is there, why not, and what its callers share."""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.metadata
import json
import re
import shlex
import sys
import urllib.parse
import urllib.request
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ._sources import digest

PACKAGE = Path(__file__).parent
CSRC = PACKAGE.parent / "csrc"

#: The pybind11 module with the facts of the build, or None.
module: ModuleType | None = None
#: Why there is none, in one line.
reason = ""
#: Whether it was left out on purpose: MICRON_BUILD=none.
unwanted = False
#: The native implementation of each operator that has to do without.
_left_out: dict[str, ModuleType] = {}
_has_warned = False


def _load() -> None:
    global module, reason, unwanted
    try:
        native = importlib.import_module("micron_kernels._native")
        native.instruction_set()
        # In a checkout a pull brings Python and C++ of another version, and compiles nothing.
        built_from, cuda = getattr(native, "sources", ""), bool(native.cuda_architectures)
        if (CSRC / "module.cpp").exists() and built_from != digest(CSRC, cuda=cuda):
            reason = f"the extension was built from other sources than {CSRC} holds"
        else:
            module = native
    except ModuleNotFoundError:  # its file is not there; of one that is, the loader says something else
        others = ", ".join(sorted(file.name for file in PACKAGE.glob("_native.*")))
        try:
            record = json.loads((PACKAGE / "_build.json").read_text(encoding="utf-8"))
            reason, unwanted = f"the extension was not built: {record['reason']}", bool(record["wanted"])
        except (OSError, ValueError):
            reason = (
                f"the extension was built for another Python: {others}"
                if others
                else "the extension was not built"
            )
    except Exception as error:  # whatever a stale or foreign binary does must not stop the package
        reason = f"the extension does not load: {' '.join(str(error).split())}"


_load()


def _how_to_build() -> str:
    """The command that builds the extension for this Python, from where this package came from."""
    python = shlex.quote(sys.executable)
    # Not util.find_spec: setuptools takes that for pip at work, and leaves Python's own distutils in place.
    if importlib.machinery.PathFinder.find_spec("pip") is not None:
        command = f"{python} -m pip install --force-reinstall --no-deps --no-cache-dir"
    else:
        command = f"uv pip install --python {python} --reinstall --no-deps --no-cache"
    if (PACKAGE.parent / "setup.py").exists():  # a checkout
        return f"{command} -e {shlex.quote(str(PACKAGE.parent))}"
    try:
        origin = json.loads(
            importlib.metadata.distribution("micron-kernels").read_text("direct_url.json") or "{}"
        )
    except (importlib.metadata.PackageNotFoundError, ValueError):
        origin = {}
    url = origin.get("url", "")
    if not url:
        return f"{command} --no-binary micron-kernels micron-kernels"
    if "vcs_info" in origin:
        url = f"{origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"
    elif url.startswith("file:"):
        url = urllib.request.url2pathname(urllib.parse.urlsplit(url).path)
    return f"{command} {shlex.quote(url)}"


#: A command of the shell.
REBUILD = _how_to_build()


def warn_once(operator: str, dtypes: Sequence[torch.dtype]) -> None:
    """Say that ``reference`` serves a call that the extension would have served."""
    native = _left_out.get(operator)
    if not unwanted and native is not None and set(dtypes) <= set(native.DTYPES):
        warn_of_plain_pytorch(f"{reason}. To build it: {REBUILD}")


def warn_of_plain_pytorch(why: str) -> None:
    """Once a process: what serves a call is slow."""
    global _has_warned
    if _has_warned:
        return
    _has_warned = True
    level, caller = 2, sys._getframe(1)
    while caller.f_back and caller.f_globals.get("__name__", "").partition(".")[0] in (__package__, "torch"):
        level, caller = level + 1, caller.f_back
    warnings.warn(
        f"micron_kernels runs in plain PyTorch, which is slower: {why}",
        stacklevel=level,  # who called the operator
    )


class CompiledOperators:
    """The operators of a C++ library by name, each without its overloads and what Python does of a call: they have one
    overload, are given every argument by place, and no compiler sees them, since others hide them."""

    def __init__(self, namespace: str):
        self._namespace = namespace

    def __getattr__(self, name: str) -> Any:
        operator = getattr(getattr(torch.ops, self._namespace), name).default._op
        setattr(self, name, operator)
        return operator


#: Those of the extension.
operators = CompiledOperators("micron_native")


def register(implementations: dict[str, Any], native: ModuleType) -> dict[str, Any]:
    """``implementations``, with ``native`` where the extension has loaded."""
    if module is not None:
        return {**implementations, "native": native}
    _left_out[native.__name__.split(".")[-2]] = native
    return implementations


def _runs_on(capability: tuple[int, int], architecture: str) -> bool:
    """Whether code for ``architecture``, such as 8.0, 9.0a, 10.0f or 8.0+PTX, runs on a GPU of that capability."""
    parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", architecture)
    if parts is None:
        return False
    built_for = int(parts[1]), int(parts[2])
    same_generation = capability[0] == built_for[0] and capability[1] >= built_for[1]
    if parts[3] == "a":  # neither its machine code nor its PTX runs elsewhere
        return capability == built_for
    if parts[3] == "f":  # nor do those of a family outside it
        return same_generation
    return same_generation or (parts[4] is not None and capability >= built_for)


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


def why_not_on_cpu_alone(device: torch.device, *_dtypes: torch.dtype) -> str | None:
    """The same for an operator without CUDA C++: Triton's kernels were measured to be faster, bench/results."""
    return None if device.type == "cpu" else f"runs on cpu, not on {device.type}"


def with_contiguous_rows(x: Tensor) -> Tensor:
    """``x`` itself where elements of its last dimension lie side by side, otherwise a copy."""
    return x if x.is_contiguous() or x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()


@functools.lru_cache(maxsize=256)
def constant(value: float, length: int) -> Tensor:
    """(length,) fp32 on CPU, made once, to read from."""
    return torch.full((length,), value, dtype=torch.float32, device="cpu")
