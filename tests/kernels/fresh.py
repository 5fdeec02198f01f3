"""Code in a process of its own that has torch and nothing of ours: forked, so that none waits for that import."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

#: Reads what to run line by line, and answers each with the exit status of the process that ran it.
_SERVER = """
import json, os, re, sys, traceback, warnings
import torch
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            output = os.open(asked["output"], os.O_WRONLY | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(output, stream)
            os.chdir(asked["folder"])
            os.environ.update(asked["environment"])
            for option in asked["warnings"]:
                action, _, message = option.partition(":")
                warnings.filterwarnings(action, re.escape(message))
            exec(compile(asked["code"], "<string>", "exec"), {"__name__": "__main__"})
            status = 0
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Ended(NamedTuple):
    status: int
    output: str
    """Of both streams."""


@functools.cache
def _server() -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def run(
    code: str,
    folder: Path | None = None,
    warnings: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """What ``python -W <warnings> -c code`` does in ``folder``, by default this one, with torch imported before."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.NamedTemporaryFile("r") as output:
        asked = {
            "code": code, "folder": str(folder or Path.cwd()), "warnings": list(warnings),
            "environment": dict(environment or {}), "output": output.name,
        }  # fmt: skip
        server.stdin.write(json.dumps(asked) + "\n")
        status = int(server.stdout.readline())
        return Ended(status, output.read())


def output_of(code: str, **options) -> str:
    """Of a run that must succeed."""
    ended = run(code, **options)
    assert ended.status == 0, ended.output
    return ended.output
