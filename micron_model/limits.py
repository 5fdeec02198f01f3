"""How much one file may make of itself: a few kilobytes can state, or unpack to, more than a machine holds."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import stat
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

#: Environment variables that raise the limits.
BYTES, PIXELS, CELLS = "MICRON_MAX_BYTES", "MICRON_MAX_PIXELS", "MICRON_MAX_CELLS"
_MOST_PIXELS = 2**26
_MOST_JSON = 2**26
#: Of a spreadsheet. The largest database lists a few thousand expressions in a dozen columns.
_MOST_CELLS, _MOST_UNPACKED = 2**18, 2**26
_BLOCK = 2**20
#: Headers of numpy are literals of Python, and Python 3.11 says "SystemError: AST constructor recursion depth mismatch"
#: where two threads parse at once: it counts the depth for all of them together (python/cpython issue 106905).
_parsing = threading.Lock()


class NoFile(ValueError):
    """A pipe, a socket or a device where a file should be."""


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


def check_shared_memory(count: int, what: str, advice: str) -> None:
    """Raises RuntimeError where ``count`` bytes do not fit into what processes share: it begins with ``what``."""
    folder = "/dev/shm"
    try:
        of_system = os.statvfs(folder)
    except (OSError, AttributeError):  # a system that shares memory in another way
        return
    free = of_system.f_bavail * of_system.f_frsize
    if count > free:
        raise RuntimeError(
            f"{what} take {count} bytes of shared memory, and {folder} has {free} left; {advice}, a larger {folder} "
            "(docker run --shm-size) holds more"
        )


def check_pixels(width: int, height: int) -> None:
    """Raises TooLarge for an image that has more pixels than ``MICRON_MAX_PIXELS``, 2²⁶ if that is not set."""
    most = _raised(PIXELS) or _MOST_PIXELS
    if width * height > most:
        raise TooLarge(
            f"has {width} × {height} pixels, and {most} are allowed; {PIXELS}={width * height} allows it"
        )


def open_file(path: str | Path) -> BinaryIO:
    """A regular file, to be read; a pipe, on which a read would wait for ever, or a device without end is refused.

    Raises:
        OSError: it cannot be opened; IsADirectoryError and FileNotFoundError among them.
        NoFile: it is neither a folder nor a regular file.
    """
    # Without O_NONBLOCK the opening of a pipe waits for who writes to it.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    kind = os.fstat(handle).st_mode
    if stat.S_ISREG(kind):
        return open(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(f"{path}: is a folder, not a file")
    raise NoFile(f"{path}: is no regular file")


def read_file(path: str | Path, most: int | None = None) -> bytes:
    """The bytes of a regular file, at most ``most``, which is ``most_bytes()`` if not given.

    Raises:
        OSError, NoFile: as :func:`open_file`.
        TooLarge: it holds more.
    """
    with open_file(path) as file:
        if most is None:
            check_bytes(os.fstat(file.fileno()).st_size, f"{path}:")
            most = most_bytes()
        blocks, total = [], 0  # a file may grow while it is read
        while total <= most and (block := file.read(_BLOCK)):
            blocks.append(block)
            total += len(block)
    if total > most:
        raise TooLarge(f"{path}: holds more than {most} bytes")
    return b"".join(blocks)


@contextlib.contextmanager
def _numpy_reads(path: str | Path) -> Iterator[None]:
    """In one thread at a time; ValueError for whatever zip, Python's tokenizer and parser and numpy raise."""
    with _parsing:
        try:
            yield
        except (OSError, MemoryError, TooLarge):
            raise
        except Exception as error:
            raise ValueError(f"{path}: holds nothing that numpy can read ({error})") from None


def read_npy(path: str | Path) -> np.ndarray:
    """The array in a file of numpy, mapped: what is not looked at is not read, whatever size the header states.

    Raises:
        OSError, NoFile: as :func:`open_file`.
        ValueError: it is none, is damaged, or holds objects, which are not unpickled.
    """
    open_file(path).close()
    with _numpy_reads(path):
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(found, np.ndarray):
        found.close()
        raise ValueError(f"{path}: holds a zip of arrays, not one")
    return found


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file that numpy's ``savez`` wrote, by name.

    Raises:
        OSError, NoFile: as :func:`open_file`.
        TooLarge: it unpacks to more than it is; ``savez`` does not compress.
        ValueError: it is none, is damaged, or holds objects, which are not unpickled.
        MemoryError: an array states more than the machine holds.
    """
    with open_file(path) as file, _numpy_reads(path):
        with zipfile.ZipFile(file) as members:
            total = sum(member.file_size for member in members.infolist())
        if total > os.fstat(file.fileno()).st_size:
            raise TooLarge(f"{path}: unpacks to {total} bytes, more than it has")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            found = dict(arrays)
        if others := [name for name, x in found.items() if not isinstance(x, np.ndarray)]:
            raise ValueError(f"{others[0]!r} is no array")
    return found


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


def check_archive(path: str | Path) -> None:
    """Raises TooLarge for a zip (a spreadsheet is one) whose members unpack to more than 64 MiB, or are one another.

    Raises also OSError, and BadZipFile for what is none.
    """
    with open_file(path) as file, zipfile.ZipFile(file) as archive:
        total = sum(member.file_size for member in archive.infolist())
    most = _raised(BYTES) or _MOST_UNPACKED
    if total > most:
        raise TooLarge(f"{path}: unpacks to {total} bytes, and {most} are allowed; {BYTES}={total} allows it")


def check_cells(count: int, path: str | Path) -> None:
    """Raises TooLarge for more cells of a spreadsheet than ``MICRON_MAX_CELLS``, 2¹⁸ if that is not set."""
    most = _raised(CELLS) or _MOST_CELLS
    if count > most:
        raise TooLarge(f"{path}: has more than {most} cells; a larger {CELLS} allows it")


def read_csv(path: str | Path) -> list[list[str]]:
    """The rows of a csv in UTF-8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text in UTF-8, or no csv; or TooLarge.
    """
    try:
        text = read_file(path).decode("utf-8-sig")
        return list(csv.reader(io.StringIO(text, newline="")))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not text in UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{path}: {error}") from None
