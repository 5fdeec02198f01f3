"""Reading files of tensors that someone else may have made, without running anything in them."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def safe_load(path: Path, *, allow: Sequence[Any] = (), device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a dictionary that ``torch.save`` wrote; builds tensors, plain data and what ``allow`` names only.

    Args:
        path: the file.
        allow: types and functions, or pairs of one and the name that the file calls it by, as ``safe_globals`` has it.
        device: where the tensors go.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds anything else, or is no dictionary.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals(list(allow)):
            content = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        named = "".join(
            f", {t[1] if isinstance(t, tuple) else f'{t.__module__}.{t.__qualname__}'}" for t in allow
        )
        raise ValueError(
            f"{path}: refused, and nothing in it was executed: it is damaged, or holds something other than "
            f"tensors and plain data{named} ({reason})"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected a dictionary")
    return content
