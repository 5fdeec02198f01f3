"""What the extension is compiled from, in one word. setup.py runs this file by itself: it imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

_SUFFIXES = (".h", ".cpp", ".cu", ".cuh")


def digest(csrc: Path, *, cuda: bool) -> str:
    """Of the files below ``csrc`` that a build with or without its CUDA half reads: their names and what they hold."""
    found = hashlib.blake2b(digest_size=16)
    for path in sorted(csrc.glob("*")) + sorted(csrc.glob("*/*")):
        is_cuda = path.parent.name == "cuda" or path.suffix.startswith(".cu")
        if path.suffix in _SUFFIXES and path.name[0] != "." and (cuda or not is_cuda):
            content = path.read_bytes()
            found.update(f"{path.relative_to(csrc).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()
