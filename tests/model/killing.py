"""Commands in a process of their own, which is killed at a chosen point, for the tests."""

import multiprocessing
import os
import signal
from fnmatch import fnmatch
from pathlib import Path

from micron_model.cli import main


def _run_and_die(arguments, pattern, nth):
    replace, seen = os.replace, 0

    def die(source, target):
        nonlocal seen
        seen += fnmatch(Path(target).name, pattern)
        if seen == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = die  # by which a file that was written takes its name
    main(arguments)


def kill_before(arguments, pattern, nth=1):
    """Run a command, and kill it when the nth file of such a name is written but not yet under that name."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["micron_model.cli"])
    process = context.Process(target=_run_and_die, args=(arguments, pattern, nth))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
