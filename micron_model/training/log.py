"""The log of a run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..limits import read_file
from ..whole_file import write_whole


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a log that are entries, and these."""
    for line in read_file(path).decode(errors="replace").split("\n"):
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                yield line, entry


class RunLog:
    """One JSON object a line, in ``log.jsonl``; TensorBoard beside it if asked for."""

    def __init__(self, folder: Path, first_step: int, tensorboard: bool):
        path = folder / "log.jsonl"
        kept = []
        if first_step and path.is_file():  # what a killed run logged after its last checkpoint happens again
            kept = [line for line, entry in _entries(path) if entry["step"] <= first_step]
        write_whole(path, "".join(line + "\n" for line in kept))
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115  (closed by close())
        self._writer = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise RuntimeError(
                    "tensorboard=True needs the package tensorboard: pip install 'micron-kernels[tensorboard]'"
                ) from None
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise RuntimeError(f"{self._file.name}: could not be written ({error.strerror})") from None
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a line that could not be written is tried once more
            self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run's ``log.jsonl``; a last line cut short by a crash is left out."""
    return [entry for _, entry in _entries(folder / "log.jsonl")]
