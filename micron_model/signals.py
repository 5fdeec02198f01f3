"""Signals that end a program after what it has begun."""

from __future__ import annotations

import contextlib
import signal


class NotedSignals:
    """Inside, SIGTERM and SIGINT are noted, not obeyed at once: what is in progress is finished or removed first."""

    received: int | None = None

    def __enter__(self) -> NotedSignals:
        self._before = {}
        with contextlib.suppress(ValueError):  # not in the main thread: leave signals to their owner
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: object) -> None:
        self.received = number

    def __exit__(self, *_exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
