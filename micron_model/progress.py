"""How far a long work has come: bars on a terminal, lines where there is none."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from .plain_text import say

#: Seconds from one line to the next in the first eight minutes; then a hundredth of what it has taken, so that a day
#: has hundreds of lines, not thousands.
EVERY = 5.0


def _has_bars(console: Console) -> bool:
    return console.is_interactive or console.is_jupyter


class _Pulse:
    """Says every few seconds what is being done on a console, where nothing else has said it."""

    def __init__(self, console: Console):
        self._console = console
        self._doing: list[Callable[[], str | None]] = []
        self._changing = threading.Lock()
        self._ended = threading.Event()
        self._began = self._last = time.monotonic()

    def begin(self, describe: Callable[[], str | None]) -> None:
        with self._changing:
            if not self._doing:
                threading.Thread(target=self._beat, daemon=True).start()
            self._doing.append(describe)

    def end(self, describe: Callable[[], str | None]) -> bool:
        """Whether nothing is being done any more."""
        with self._changing:
            self._doing.remove(describe)
            if not self._doing:
                self._ended.set()
            return not self._doing

    def said(self) -> None:
        """Something else has just said how far the work has come."""
        self._last = time.monotonic()

    def _beat(self) -> None:
        while not self._ended.wait(EVERY / 10):
            with self._changing:
                now, line = time.monotonic(), None
                if now - self._last >= max(EVERY, (now - self._began) / 100):
                    line = next(filter(None, (describe() for describe in reversed(self._doing))), None)
            if line is not None and not self._ended.is_set():
                self._last = now
                say(self._console, line)


_pulses: dict[Console, _Pulse] = {}
_changing = threading.Lock()


def _begin(console: Console, describe: Callable[[], str | None]) -> None:
    with _changing:
        _pulses.setdefault(console, _Pulse(console)).begin(describe)


def _end(console: Console, describe: Callable[[], str | None]) -> None:
    with _changing:
        if _pulses[console].end(describe):
            del _pulses[console]


@contextlib.contextmanager
def lines_while(what: str, console: Console) -> Iterator[None]:
    """Where the console is no terminal, a line every few seconds in which nothing inside says how far it has come."""
    if _has_bars(console):
        yield
        return
    began = time.monotonic()

    def describe() -> str:
        return f"{what}, {time.monotonic() - began:.0f} s"

    _begin(console, describe)
    try:
        yield
    finally:
        _end(console, describe)


@contextlib.contextmanager
def working(what: str, console: Console) -> Iterator[None]:
    """Work of which nobody knows how much it is: a sign of life on a terminal, lines where there is none."""
    with console.status(what) if _has_bars(console) else lines_while(what, console):
        yield


class ProgressBar(Progress):
    """A bar a task; or, where the console is no terminal, a line a task every few seconds and at its end.

    Args:
        columns: what a task shows beside its name, what is done of how much, and the time that is left.
        console: where.
        shown: whether anything is.
    """

    def __init__(self, *columns: str, console: Console, shown: bool = True):
        self._texts = [TextColumn(column) for column in columns]
        self._in_lines = shown and not _has_bars(console)
        self._said: dict[TaskID, tuple[float, float]] = {}
        self._began: dict[TaskID, tuple[float, float]] = {}
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            *self._texts,
            console=console,
            disable=self._in_lines or not shown,
        )

    def add_task(self, *arguments: Any, **settings: Any) -> TaskID:
        added = super().add_task(*arguments, **settings)
        self._said[added] = self._began[added] = time.monotonic(), self._tasks[added].completed
        return added

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        if self._in_lines:
            with self._lock:
                task = self._tasks[task_id]
                when, completed = self._said[task_id]
                waited = time.monotonic() - when
                if task.completed != completed and (
                    task.finished or waited >= max(EVERY, (task.elapsed or 0.0) / 100)
                ):
                    self._say(task)

    def start(self) -> None:
        super().start()
        if self._in_lines:
            _begin(self.console, self._unfinished)

    def stop(self) -> None:
        super().stop()
        if self._in_lines:
            _end(self.console, self._unfinished)
            for task in self.tasks:
                if task.completed != self._said[task.id][1]:
                    self._say(task)

    def _unfinished(self) -> str | None:
        """The line of the first task that is not finished, for the pulse to say."""
        with self._lock:
            for task in self.tasks:
                if task.total is None or task.completed < task.total:
                    self._said[task.id] = time.monotonic(), task.completed
                    return self._line(task)
        return None

    def _say(self, task: Task) -> None:
        self._said[task.id] = time.monotonic(), task.completed
        if (pulse := _pulses.get(self.console)) is not None:
            pulse.said()
        say(self.console, self._line(task))

    def _line(self, task: Task) -> str:
        total = "" if task.total is None else f"/{task.total:g}"
        line = f"{task.description} {task.completed:g}{total}, {task.elapsed or 0:.0f} s"
        if task.time_remaining and task.remaining:
            # By the latest steps; while a slower one is waited for, by the mean of all.
            began, completed = self._began[task.id]
            mean = (time.monotonic() - began) / max(task.completed - completed, 1)
            line += f", about {max(task.time_remaining, mean * task.remaining):.0f} s to go"
        return ", ".join([line, *(str(text) for c in self._texts if (text := c.render(task)))])


@contextlib.contextmanager
def counting(what: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar of one task whose total is known once it has begun: a function to be told what is done, of how much."""
    with ProgressBar(console=console) as progress:
        shown = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(shown, completed=done, total=total)
