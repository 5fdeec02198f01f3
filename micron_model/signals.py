"""Signals that end a program after what it has begun, and processes that end with the one that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading


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


def end_with_parent() -> None:
    """In a process of :mod:`multiprocessing`: end when its parent does, though it be killed; it would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
