"""Other processes of the tests, forked from one that has the package loaded: none waits seconds for its imports."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from micron_model.cli import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "pytest",
        "micron_model.cli",
        "micron_model.training",
        "micron_model.evaluation",
        "micron_model.prediction",
        "torch._dynamo",  # the first optimizer imports it
    ]
)


def _run(
    function: Callable, arguments: tuple[Any, ...], environment: Mapping[str, str], *outputs: str
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    for descriptor, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    function(*arguments)


def micron(arguments: list[str]) -> None:
    """The command line."""
    sys.exit(main(arguments))


class Started:
    """``function(*arguments)``, a function of a module, in a process of one thread; killed when left."""

    def __init__(self, function: Callable, *arguments: Any, **environment: str):
        self._outputs = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115
        names = [file.name for file in self._outputs]
        self._process = CONTEXT.Process(target=_run, args=(function, arguments, environment, *names))
        self._process.start()
        self.pid, self.kill, self.terminate = self._process.pid, self._process.kill, self._process.terminate

    @property
    def returncode(self) -> int | None:
        """Its exit status, the number of the signal that ended it below zero, or None while it runs."""
        return self._process.exitcode

    @property
    def stdout(self) -> str:
        return Path(self._outputs[0].name).read_text()

    @property
    def stderr(self) -> str:
        return Path(self._outputs[1].name).read_text()

    def wait(self, timeout: float = 120) -> Started:
        self._process.join(timeout)
        assert self.returncode is not None, f"still running after {timeout} s: {self.stderr}"
        return self

    def wait_until(self, condition: Callable[[], bool], timeout: float = 90) -> None:
        """Until ``condition`` holds, while it runs."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, self.stderr
            assert self.returncode is None, self.stderr
            time.sleep(0.005)

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()
        self._process.join()
        for file in self._outputs:
            file.close()


def start_ranks(count: int, function: Callable, *arguments: Any) -> list[Started]:
    """``count`` processes that find each other as those of torchrun do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "COLUMNS": "200"}
    shared |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(count))
    return [
        Started(function, *arguments, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)
    ]
