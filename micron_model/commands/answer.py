"""What a command answers on standard output, and with which status it ends."""

from __future__ import annotations

import contextlib
import enum
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Status(enum.IntEnum):
    """With what a command ends. One that a signal ends has 128 and the signal's number: 130 after Ctrl-C."""

    DONE = 0
    FAILED = 1
    """It could not be done: an input, a file or the machine. The last line on standard error says why."""
    USAGE = 2
    """The command line is not understood, or an option has a value that it cannot have."""
    DIFFERS = 3
    """``data check``: the database was read, and differs from its official census."""
    DEFECT = 70
    """A fault of this package; the traceback is on standard error."""


def to_json(document: Mapping[str, Any]) -> str:
    """A document in ASCII, so that no console changes it; what is no number (NaN, infinite) is null."""
    return json.dumps(_plain(document), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(of) for name, of in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(of) for of in value]
    return value


class Answer:
    """Standard output while a command runs: with ``--json`` for one document alone, which is written at the end.

    Whatever else is printed there meanwhile, by a library or another process too, goes to standard error.
    """

    def __init__(self) -> None:
        self.document: Mapping[str, Any] | None = None


@contextlib.contextmanager
def answering(as_json: bool) -> Iterator[Answer]:
    """Give the ``document`` to what this yields; nothing is printed of a command that fails."""
    answer = Answer()
    if not as_json:
        yield answer
        return
    with _standard_output_to_error():
        yield answer
    if answer.document is not None:
        sys.stdout.write(to_json(answer.document) + "\n")
        sys.stdout.flush()


@contextlib.contextmanager
def _standard_output_to_error() -> Iterator[None]:
    with contextlib.ExitStack() as restored:
        sys.stdout.flush()
        with contextlib.suppress(OSError):  # one of them is closed
            kept = os.dup(1)
            restored.callback(os.close, kept)
            os.dup2(2, 1)  # for what processes and libraries in C print
            restored.callback(os.dup2, kept, 1)
        restored.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield
