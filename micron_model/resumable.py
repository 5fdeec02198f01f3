"""Folders that go on after a stop, claimed by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from .whole_file import remove_partial

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


LOCK = ".lock"


class Claimed(RuntimeError):
    """A folder that another process writes to."""


def _open_locked(path: Path) -> int | None:
    """The file, locked; None if another process holds it."""
    while True:
        # Written to: not through a link that someone left, nor to a pipe or to a file with another name.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            handle = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o644)
        except OSError as error:
            if path.is_symlink() or error.errno == errno.ENXIO:
                raise Claimed(f"{path}: is no lock but a link, or no file; delete it") from None
            raise
        try:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
                os.close(handle)
                raise Claimed(f"{path}: is no lock but a link, or no file; delete it")
            _lock(handle)
        except OSError:
            os.close(handle)
            return None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)  # whoever held it removed it before we had it


def _holder(path: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_bytes()[:4096])
        if isinstance(found, dict):
            return {str(k): str(v) for k, v in found.items()}
    return {}


#: Folders that this process has, by the thread that claimed them.
_ours: dict[str, int] = {}


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Inside, ``folder``, which is made if it is missing, is this process's and thread's alone; it may claim it again.

    The system drops the lock of a process that is killed, and the next one takes it over. A lock that another machine
    left, whose processes cannot be seen from here, is not taken over.

    Raises:
        Claimed: another process has it; says which, on which machine, since when.
        OSError: the folder cannot be written to.
    """
    key = os.path.realpath(folder)
    if _ours.get(key) == threading.get_ident():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    handle = _open_locked(path)
    holder = _holder(path)
    who = f"process {holder.get('process', 'unknown')} on {holder.get('host', 'an unknown machine')}"
    if handle is None:
        raise Claimed(
            f"{folder}: {who} writes to it since {holder.get('since', 'just now')}; wait for it, stop it, or give "
            "another folder"
        )
    host = socket.gethostname()
    try:
        if holder.get("host", host) != host:
            raise Claimed(
                f"{folder}: {who} wrote to it since {holder.get('since')}, and whether it still does cannot be seen "
                f"from {host}; if it does not, delete {path}"
            )
        if holder:  # it was killed, and may have been in the middle of a file
            remove_partial(folder)
        about = {"host": host, "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, json.dumps(about).encode())
        _ours[key] = threading.get_ident()
        try:
            yield
        finally:
            del _ours[key]
            if os.name == "nt":  # an open file cannot be removed there
                os.ftruncate(handle, 0)
            else:
                path.unlink(missing_ok=True)
    finally:
        os.close(handle)
