"""Address or file: decided once, from what the user typed.

A name that is found in a folder, by a pattern or in a file is the name of a file, whatever it looks like; only what
was typed can be an :class:`Address`, and only an Address is ever asked of the network or handed to a shell.
"""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from webdataset.gopen import Pipe

#: Names that braces may stand for.
MOST_NAMES = 100_000
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)  # of two letters or more: C:// is a drive
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?\}")
#: What curl takes for a server that has hung: less than a byte a second for so many seconds.
_HUNG = 60
_RETRIES = 3


class Address(str):
    """Where the user said that shards come from: a URL, or ``pipe:`` and a command of a shell."""

    __slots__ = ()

    @property
    def scheme(self) -> str:
        return self.partition(":")[0]


def is_address(name: str | Path) -> bool:
    """Whether a name that a user typed is an address; a ``Path`` never is.

    ``pipe:`` may begin the name of a file too, which a shell's ``*.tar`` types as well as a user: what is there is
    a file.
    """
    if isinstance(name, Path):
        return False
    if name[:5].lower() == "pipe:":
        return not os.path.lexists(name)
    return _SCHEME.match(name) is not None


def _address(name: str, allow_commands: bool) -> Address:
    scheme, rest = name.split(":", 1)
    if scheme.lower() == "pipe" and not allow_commands:
        raise ValueError(
            f"{name}: is a command that a shell would run; allow it with --allow-commands (allow_commands=True) if it "
            "is yours"
        )
    return Address(f"{scheme.lower()}:{rest}")


def _check_ranges(name: str) -> None:
    """braceexpand makes a list of each range before the first name comes out of it."""
    for first, last, step in _RANGE.findall(name):
        count = abs(int(last) - int(first)) // max(1, int(step or 1)) + 1
        if count > MOST_NAMES:
            raise ValueError(
                f"{name}: {{{first}..{last}}} stands for {count} names; at most {MOST_NAMES} are taken"
            )


def expand(source: str | Path, *, allow_commands: bool = False) -> list[str | Address]:
    """The names that what a user typed stands for: braces, ``::`` and ``${name}`` as webdataset has them.

    The name of something that is there is itself, braces or not.

    Raises:
        ValueError: one is a command and ``allow_commands`` is not given, a variable is not set, braces do not match,
            or they stand for more than ``MOST_NAMES``.
    """
    name = os.fspath(source)
    if not is_address(source) and os.path.lexists(name):
        return [name]
    from braceexpand import braceexpand
    from webdataset.shardlists import envsubst

    names: list[str] = []
    for part in name.split("::"):
        try:
            for _ in range(10):  # a variable's value may name another
                part = envsubst(part)
        except AssertionError:  # what webdataset raises for a variable that is not set
            raise ValueError(
                f"{name}: names a variable that is not set; webdataset looks for WDS_<name>"
            ) from None
        _check_ranges(part)
        try:
            names += islice(braceexpand(part), MOST_NAMES + 1 - len(names))
        except ValueError:  # UnbalancedBracesError
            raise ValueError(
                f"{name}: has a brace that is not closed, and there is no file of that name"
            ) from None
        if len(names) > MOST_NAMES:
            raise ValueError(f"{name}: stands for more than {MOST_NAMES} names; give fewer")
    typed = not isinstance(source, Path)
    return [_address(x, allow_commands) if typed and is_address(x) else x for x in names]


def open_address(address: Address) -> BinaryIO | Pipe:
    """A stream of what is there; of the network or of a command, a ``Pipe`` whose status tells how it ended."""
    from webdataset.gopen import Pipe, gopen

    if address.scheme not in ("http", "https"):
        return gopen(address)
    # As webdataset calls it, but a server that hangs or sends elsewhere for ever is given up. It may send to another
    # host, as those of large files do, without what stands before an @, but to https alone: what answers to plain http
    # in a network of one's own, and asks for no name, is out of its reach.
    arguments = ["curl", "-f", "-s", "-S", "-L", "--connect-timeout", "30", "--max-redirs", "5"]
    arguments += ["--retry", str(_RETRIES), "--retry-delay", "2", "--proto", "=http,https"]
    arguments += ["--proto-redir", "=https", "--speed-limit", "1", "--speed-time", str(_HUNG), "--", address]
    return Pipe(arguments, mode="rb", bufsize=8192, ignore_status=[141, 23])


#: Of curl, by its status.
_WHY = {
    1: "it sends on to an address that is not https; type that address if you trust it",
    5: "its proxy has no address",
    6: "its host has no address",
    7: "its host cannot be reached",
    18: "less came than was promised",
    22: "it answers with an error, for example that there is no such file",
    28: "nothing came for too long",
    35: "there is no https with its host",
    47: "it sends elsewhere for ever",
    56: "the network failed on the way",
    60: "its host has no certificate that is trusted",
}


def why_it_ended(address: Address, status: int) -> str:
    """What a status of the program that :func:`open_address` started says."""
    if address.scheme in ("http", "https") and status in _WHY:
        return f"{_WHY[status]} (curl: {status})"
    return f"its command ended with status {status}"
