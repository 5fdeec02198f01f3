"""Commands in a process of their own, which is killed at a chosen point, for the tests."""

import os
import signal
from fnmatch import fnmatch
from pathlib import Path

from micron_model.cli import main
from processes import Started


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
    with Started(_run_and_die, arguments, pattern, nth) as process:
        assert process.wait().returncode == -signal.SIGKILL, process.stderr
