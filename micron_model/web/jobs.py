"""One piece of work at a time, the others in a queue; what was uploaded for one goes when it ends, however it ends."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..faults import in_words
from ..plain_text import visible
from .results import Result

#: Told how much of how much is done; raises where the work must not go on.
Progress = Callable[[int, int], object]
Work = Callable[[Progress], Result]

#: Jobs that may wait, and results that are kept: the oldest goes first.
WAITING, KEPT = 8, 8


class Refused(ValueError):
    """What is not taken, in a sentence for who asked."""


class _Stopped(Exception):
    """Whoever asked does not want it any more, or it took too long; the message says so."""


@dataclass
class Job:
    """A piece of work that was asked for.

    Attributes:
        folder: holds what was uploaded for it, and nothing else.
        names: what its uploads are called, by their path.
    """

    work: Work
    folder: Path
    names: Mapping[Path, str]
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: Literal["waiting", "working", "done", "failed"] = "waiting"
    done: int = 0
    total: int = 0
    message: str = ""
    result: Result | None = None
    stop: threading.Event = field(default_factory=threading.Event)


class Jobs:
    """A queue and the thread that works it off.

    Args:
        seconds: what one job may take.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._jobs: dict[str, Job] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, job: Job) -> None:
        """Raises Refused where too many wait."""
        with self._changed:
            if len(self._waiting()) >= WAITING:
                raise Refused(f"{WAITING} others wait already; try again in a while")
            self._jobs[job.id] = job
            ended = [j for j in self._jobs.values() if j.state in ("done", "failed")]
            for old in ended[: max(0, len(ended) - KEPT + 1)]:
                del self._jobs[old.id]
            self._changed.notify_all()

    def find(self, id: str) -> Job | None:
        with self._changed:
            return self._jobs.get(id)

    def ahead_of(self, job: Job) -> int:
        """How many are worked on, or wait for longer."""
        with self._changed:
            before = [j for j in self._jobs.values() if j.state in ("waiting", "working")]
            return before.index(job) if job in before else 0

    def remove(self, job: Job) -> None:
        """Forget it; if it is worked on, that ends at its next step."""
        job.stop.set()
        with self._changed:
            self._jobs.pop(job.id, None)
            if job.state == "waiting":
                _delete(job.folder)

    def close(self) -> None:
        """Stop what is worked on, and wait until it has stopped."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.stop.set()
            self._changed.notify_all()
        self._thread.join(timeout=10)

    def _waiting(self) -> list[Job]:
        return [job for job in self._jobs.values() if job.state == "waiting"]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting())
                if self._closed:
                    return
                job = self._waiting()[0]
                job.state = "working"
            try:
                self._do(job)
            finally:
                _delete(job.folder)

    def _do(self, job: Job) -> None:
        deadline = time.monotonic() + self.seconds

        def progress(done: int, total: int) -> None:
            job.done, job.total = done, total
            if job.stop.is_set():
                raise _Stopped("stopped")
            if time.monotonic() > deadline:
                raise _Stopped(
                    f"after {self.seconds / 60:g} minutes it had come to {done} of {total} frames, and was stopped: "
                    "give a shorter video, or a smaller one (micron serve --job-minutes allows more)"
                )

        try:
            job.result = job.work(progress)
            job.state = "done"
        except (_Stopped, ValueError, OSError, MemoryError, RuntimeError) as error:
            job.message = _in_their_names(in_words(error), job.names)
            job.state = "failed"
        except Exception:
            sys.stderr.write(visible(traceback.format_exc(), 10**6, keep="\n"))
            job.message = (
                "This is a fault of micron, and not of what was given; the terminal shows more of it"
            )
            job.state = "failed"


def _in_their_names(message: str, names: Mapping[Path, str]) -> str:
    for path, name in names.items():
        message = message.replace(str(path), name)
    return visible(message)


def _delete(folder: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)
