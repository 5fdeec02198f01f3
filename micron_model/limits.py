"""How much one file may make of itself: a few kilobytes can state, or unpack to, more than a machine holds."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any

#: Environment variables that raise the limits.
BYTES, PIXELS = "MICRON_MAX_BYTES", "MICRON_MAX_PIXELS"
_MOST_PIXELS = 2**26
_MOST_JSON = 2**26
_BLOCK = 2**20


class TooLarge(ValueError):
    """A file that states, holds or unpacks to more than is taken; the message says what takes more."""


def free_memory() -> int:
    """Bytes that this process may still take, of the machine and of its control group; 4 GiB if nothing says."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")))
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        found.append(max(0, limit - int((group / "memory.current").read_text())))
    if not found:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=2**32)


def _raised(name: str) -> int | None:
    value = os.environ.get(name)
    if value is None:
        return None
    if not value.isdecimal() or not int(value):
        raise ValueError(f"{name}={value!r}; it must be a positive whole number")
    return int(value)


def most_bytes() -> int:
    """What one file may take in memory: ``MICRON_MAX_BYTES``, or half of what is free."""
    return _raised(BYTES) or free_memory() // 2


def check_bytes(count: int, what: str) -> None:
    """Raises TooLarge, which begins with ``what``, where ``count`` bytes are more than one file may take."""
    most = most_bytes()
    if count > most:
        raise TooLarge(
            f"{what} would take {count} bytes of memory, and {most} are allowed, half of what is free; "
            f"{BYTES}={count} allows it"
        )


def check_pixels(width: int, height: int) -> None:
    """Raises TooLarge for an image that has more pixels than ``MICRON_MAX_PIXELS``, 2²⁶ if that is not set."""
    most = _raised(PIXELS) or _MOST_PIXELS
    if width * height > most:
        raise TooLarge(
            f"has {width} × {height} pixels, and {most} are allowed; {PIXELS}={width * height} allows it"
        )


def read_file(path: str | Path, most: int | None = None) -> bytes:
    """The bytes of a regular file, at most ``most`` (what memory allows if not given).

    A pipe, on which a read would wait for ever, or a device that never ends is refused, unopened or unread.

    Raises:
        OSError: it cannot be opened or read; IsADirectoryError and FileNotFoundError among them.
        TooLarge: it is no regular file, or holds more.
    """
    # Without O_NONBLOCK the opening of a pipe waits for who writes to it.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as file:
        about = os.fstat(handle)
        if stat.S_ISDIR(about.st_mode):
            raise IsADirectoryError(f"{path}: is a folder")
        if not stat.S_ISREG(about.st_mode):
            raise TooLarge(f"{path}: is no regular file")
        if most is None:
            check_bytes(about.st_size, f"{path}:")
            most = most_bytes()
        # A file may grow while it is read, and a stated size may be wrong.
        content = file.read(most + 1) if most < _BLOCK else _read_blocks(file, most)
    if len(content) > most:
        raise TooLarge(f"{path}: holds more than {most} bytes")
    return content


def _read_blocks(file: Any, most: int) -> bytes:
    blocks, total = [], 0
    while total <= most and (block := file.read(_BLOCK)):
        blocks.append(block)
        total += len(block)
    return b"".join(blocks)


def read_json(path: str | Path) -> Any:
    """What a file of JSON holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON in UTF-8, is nested deeper than the interpreter goes, or is larger than 64 MiB.
    """
    try:
        return json.loads(read_file(path, _MOST_JSON))
    except TooLarge:
        raise
    except RecursionError:
        raise ValueError(f"{path}: is nested too deep to be read") from None
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({error})") from None
