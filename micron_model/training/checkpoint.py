"""Checkpoints: written whole or not at all, read without running anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..faults import describe
from ..safe_load import safe_load
from ..whole_file import whole_file


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another run."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain data to ``path``, as :func:`whole_file` does.

    Whenever process or machine dies, ``path`` holds the old content or the new one.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            torch.save(content, file)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch may wrap what the file said
        raise CheckpointError(
            f"{path}: could not be written ({describe(error)}); what was there before is intact"
        ) from error


def _flush_folder(folder: Path) -> None:
    """So that the new name, too, is on the disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_partial(folder: Path) -> None:
    """Delete what a process that was killed while it wrote a checkpoint has left in ``folder``."""
    for path in folder.glob(".checkpoint*.part"):
        path.unlink(missing_ok=True)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what :func:`save` wrote; raises CheckpointError if there is no such file or it is damaged."""
    try:
        return safe_load(path, device=device)
    except (FileNotFoundError, ValueError) as error:
        raise CheckpointError(str(error)) from None
