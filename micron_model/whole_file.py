"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when all of it is on the disk, or not at all; errors of writing name it."""
    # Of this machine, process and thread: several may write one file to a folder that all of them see.
    writer = f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    temporary = path.with_name(f".{path.name}.{writer}.part")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:  # a link of that name would lead elsewhere
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None or error.filename == str(temporary):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with contextlib.suppress(OSError):  # of a file system that has gone
            temporary.unlink(missing_ok=True)


def _has_ended(process: int) -> bool:
    if os.name != "posix":  # elsewhere a signal 0 would end it
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def remove_partial(folder: Path) -> None:
    """Delete what processes of this machine that were killed inside a :func:`whole_file` left below a folder."""
    begun = re.compile(rf"\..*\.{re.escape(socket.gethostname())}\.(\d+)\.\d+\.part", re.DOTALL)
    for root, _, names in os.walk(folder):
        for name in names:
            if (of := begun.fullmatch(name)) and _has_ended(int(of[1])):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(root, name))


def write_whole(path: Path, content: str | bytes) -> None:
    """Write ``content``, text in UTF-8, to ``path``, whole or not at all; folders that are missing are made.

    Raises:
        RuntimeError: it cannot be written; what was there before is intact.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            # A name that is not UTF-8 is written with its bytes as \\udc80 to \\udcff.
            file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
    except OSError as error:
        raise RuntimeError(
            f"{path}: could not be written ({error.strerror}); what was there before is intact"
        ) from None
