"""Faults of the machine, told from those of a file.

A file that cannot be decoded is passed over and named. A full disk or a lack of memory or of descriptors is no fault of
the file at hand: whoever took it for one would drop good data, and say that there was none.
"""

from __future__ import annotations

import errno

_NAMES = (
    *("ENOSPC", "EDQUOT", "EFBIG", "EROFS"),  # nowhere to write to
    *("EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "ENOLCK"),  # nothing left of what the system gives out
    *(
        "EIO",
        "ENXIO",
        "ENODEV",
        "ENOMEDIUM",
        "ESTALE",
        "ETIMEDOUT",
        "ENOTCONN",
        "EHOSTDOWN",
        "EREMOTEIO",
    ),  # gone
)
_OF_THE_MACHINE = {getattr(errno, name) for name in _NAMES if hasattr(errno, name)}


class MachineFault(RuntimeError):
    """The disk, the memory or a limit of the system; whatever was done is stopped, and nothing is passed over."""


def is_of_the_machine(error: BaseException) -> bool:
    """Whether an error tells of the machine and not of the file that was read or written."""
    return isinstance(error, MemoryError | MachineFault) or (
        isinstance(error, OSError) and error.errno in _OF_THE_MACHINE
    )


def describe(error: BaseException) -> str:
    """The reason in words, without its number."""
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError) and error.strerror:
        more = ", more than `ulimit -n` allows" if error.errno == errno.EMFILE else ""
        return error.strerror + more
    return str(error).strip() or type(error).__name__


def in_words(error: BaseException) -> str:
    """The reason, and before it the file that an error of the system names."""
    named = isinstance(error, OSError) and error.strerror and error.filename is not None
    return f"{error.filename}: {describe(error)}" if named else describe(error)  # type: ignore[attr-defined]


def raise_if_of_the_machine(error: BaseException, what: object) -> None:
    """Raises MachineFault, which names ``what``, for an error that tells of the machine."""
    if isinstance(error, MachineFault):
        raise error
    if is_of_the_machine(error):
        raise MachineFault(
            f"{what}: {describe(error)}; nothing is passed over for that, so this stops"
        ) from None
