"""Finds the torch of the environment that a build installs into, by its files: torch is never imported.

Build isolation hides that environment. pip hides it by the path alone: its interpreter runs the build, and started anew
it sees what it will see when the package is used. build, uv and pip's venv-isolation make an environment for the
build, in which nothing tells for which one it is; then the places are tried where it usually is. A wrong guess does
no harm: one binary serves every torch from 2.11 on.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
OLDEST_TORCH = (2, 11)
#: Where pip, build and uv make the environment that they build in.
BUILD_ENVIRONMENT = re.compile(r"build-env-|[\\/]builds-v\d+[\\/]")
FIND_TORCH = """
import importlib.util, os, sys
sys.path.remove("")
found = importlib.util.find_spec("torch")
for folder in (found.submodule_search_locations or ()) if found else ():
    sys.stdout.buffer.write(os.fsencode(folder) + b"\\n")
"""


class CannotBuild(Exception):
    """Why there is no compiled half, in one line."""


class Torch(NamedTuple):
    include: Path
    lib: Path
    version: str
    cuda: bool

    @classmethod
    def read(cls, folder: Path) -> Torch:
        """The torch in ``folder``, known from its files alone."""
        text = (folder / "version.py").read_text(encoding="utf-8")
        version, cuda = (
            next(iter(re.findall(rf"^{name}\b[^=\n]*=\s*['\"](.+?)['\"]", text, re.MULTILINE)), "")
            for name in ("__version__", "cuda")
        )
        if tuple(int(x) for x in re.findall(r"\d+", version)[:2]) < OLDEST_TORCH:
            oldest = ".".join(map(str, OLDEST_TORCH))
            raise CannotBuild(f"torch {version} in {folder.parent} is older than {oldest}: upgrade torch")
        prefix = folder.parents[3] if len(folder.parents) > 3 else folder  # conda may keep both there
        include, lib = (
            next((top / below for top in (folder, prefix) if list((top / below).glob(file))), None)
            for below, file in (("include", "torch/csrc/stable/library.h"), ("lib", "libtorch_cpu.*"))
        )
        if include is None or lib is None:
            raise CannotBuild(f"torch {version} in {folder.parent} lacks its headers or libtorch_cpu")
        return cls(include, lib, version, bool(cuda))


def folders_of_torch(python: str) -> list[Path]:
    """Where that interpreter, started anew and so without the path of build isolation, would import torch from."""
    result = subprocess.run([python, "-E", "-c", FIND_TORCH], capture_output=True)
    return [Path(os.fsdecode(line)) for line in result.stdout.splitlines()] if not result.returncode else []


def front_end() -> tuple[list[Path], Path]:
    """Words of the command that runs this build, as paths, and where it was started, as far as Linux tells."""
    process = Path(f"/proc/{os.getppid()}")
    try:
        folder = Path(os.readlink(process / "cwd"))
        words = os.fsdecode((process / "cmdline").read_bytes()).split("\0")
    except OSError:
        return [], ROOT
    return [folder / word.rpartition("=")[2] for word in words if word], folder


def folders_below(place: Path) -> Iterator[Path]:
    """Where torch would be if ``place`` is an interpreter, or a folder that has one or packages."""
    interpreters = [place, place / "python3", place / "bin" / "python", place / "Scripts" / "python.exe"]
    if place.is_dir():
        yield place / "torch"
        yield from place.glob("lib*/python3*/site-packages/torch")
    for python in interpreters:
        if python.name.startswith("python") and python.is_file() and os.access(python, os.X_OK):
            yield from folders_of_torch(str(python))


def candidates() -> Iterator[Path]:
    """Folders of torch in the environment that may be installed into, the likeliest first."""
    in_venv = BUILD_ENVIRONMENT.search(sys.prefix) is not None
    if not in_venv and not BUILD_ENVIRONMENT.search(os.environ.get("PYTHONPATH", "")):
        found = importlib.util.find_spec("torch")
        yield from map(Path, (found.submodule_search_locations or ()) if found else ())
        return
    command, folder = front_end()
    places = command  # pip install --target, uv pip install --python, the interpreter that runs pip
    if in_venv:
        places += [Path(os.environ[x]) for x in ("VIRTUAL_ENV", "CONDA_PREFIX") if x in os.environ]
        places += map(Path, os.environ.get("PATH", "").split(os.pathsep))
        places += [place / ".venv" for place in (folder, *folder.parents)]
    else:
        yield from folders_of_torch(sys.executable)
    for place in places:
        if not BUILD_ENVIRONMENT.search(str(place)):
            yield from folders_below(place)


def find_torch(asked: bool) -> Torch:
    """The torch to build against; one that only the build environment has serves if a build was ``asked`` for."""
    older: CannotBuild | None = None
    for folder in candidates():
        if (folder / "version.py").is_file():
            try:
                return Torch.read(folder)
            except CannotBuild as why:
                older = older or why
    if older is not None:
        raise older
    own = importlib.util.find_spec("torch") if asked else None
    if own is not None and own.submodule_search_locations:
        return Torch.read(Path(next(iter(own.submodule_search_locations))))
    if BUILD_ENVIRONMENT.search(sys.prefix):
        raise CannotBuild(
            "no torch was found: this build runs in an environment that does not tell which one it is for. "
            "Activate that one, or install without build isolation"
        )
    raise CannotBuild(f"torch was not installed in {sys.prefix} when micron-kernels was: install torch first")
