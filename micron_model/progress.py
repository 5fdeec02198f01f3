"""How far a long work has come: bars on a terminal, lines where there is none."""

from __future__ import annotations

import time
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

#: Seconds from one line to the next in a task's first eight minutes; then a hundredth of what it has taken, so that a
#: day has hundreds of lines, not thousands.
EVERY = 5.0


class ProgressBar(Progress):
    """A bar a task; or, where the console is no terminal, a line a task every few seconds and at its end.

    Args:
        columns: what a task shows beside its name, what is done of how much, and the time that is left.
        console: where.
        shown: whether anything is.
    """

    def __init__(self, *columns: str, console: Console, shown: bool = True):
        self._texts = [TextColumn(column) for column in columns]
        self._in_lines = shown and not (console.is_interactive or console.is_jupyter)
        self._said: dict[TaskID, tuple[float, float]] = {}
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
        self._said[added] = time.monotonic(), self._tasks[added].completed
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

    def stop(self) -> None:
        super().stop()
        if self._in_lines:
            for task in self.tasks:
                if task.completed != self._said[task.id][1]:
                    self._say(task)

    def _say(self, task: Task) -> None:
        self._said[task.id] = time.monotonic(), task.completed
        total = "" if task.total is None else f"/{task.total:g}"
        line = f"{task.description} {task.completed:g}{total}, {task.elapsed or 0:.0f} s"
        if task.time_remaining:
            line += f", about {task.time_remaining:.0f} s to go"
        say(self.console, ", ".join([line, *(str(text) for c in self._texts if (text := c.render(task)))]))
