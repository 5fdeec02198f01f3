"""Checkpoints: written whole or not at all, read without running anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..safe_load import safe_load


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another run."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain data to ``path``: to a temporary file beside it, flushed, then renamed.

    Whenever the process dies, ``path`` holds the old content or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch may wrap what the file said
        raise CheckpointError(
            f"{path}: could not be written ({error}); what was there before is intact"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what :func:`save` wrote; raises CheckpointError if there is no such file or it is damaged."""
    try:
        return safe_load(path, device=device)
    except (FileNotFoundError, ValueError) as error:
        raise CheckpointError(str(error)) from None
