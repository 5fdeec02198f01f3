"""What cannot be read, and what was passed over for it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class FrameError(ValueError):
    """A frame, image or video that cannot be read; the message names the file and the reason.

    ``path`` is the file, where the message begins with it.
    """

    def __init__(self, message: str, path: str | Path | None = None):
        super().__init__(message)
        self.path = None if path is None else str(path)


class Problem(NamedTuple):
    """A file that was passed over."""

    path: str
    reason: str
