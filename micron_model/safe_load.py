"""Reading files of tensors that someone else may have made, without running anything in them."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .limits import read_file

#: Beside the storages of torch, what a file of tensors and plain data needs to be put together.
_PLAIN = {
    *("collections.OrderedDict", "torch.Size", "torch.device", "_codecs.encode"),
    *(f"torch._utils.{name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")),
}
_STORAGE = re.compile(r"torch(\.storage|\.cuda)?\.\w+Storage")


def _globals(content: bytes) -> Iterator[str]:
    """What the pickles of a file name, without unpickling them."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            # torch.save does not compress; what unpacks to more than is there was made to.
            if sum(member.file_size for member in members) > len(content):
                raise ValueError("its members unpack to more than it holds")
            pickles = [archive.read(member) for member in members if member.filename.endswith(".pkl")]
    else:  # before torch 1.6: five pickles one after the other, then the storages
        pickles = [content]
    for data in pickles:
        stream = io.BytesIO(data)
        for _ in range(5):
            for operation, argument, _at in pickletools.genops(stream):
                if operation.name == "GLOBAL":
                    yield str(argument).replace(" ", ".")
                elif operation.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
                    raise ValueError(f"its pickle has the operation {operation.name}")
            if stream.tell() >= len(data) or pickles != [content]:
                break


def _check_held(content: Any) -> None:
    """Raises ValueError for a tensor of more elements than its storage holds: an expanded one, or one without any."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.device.type == "meta":
                raise ValueError("it holds a tensor without elements of its own")
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError(f"a tensor states the shape {tuple(value.shape)} and holds less")
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


def _what_else(content: bytes) -> str | None:
    """What a file is that often comes in place of one that was to be downloaded, in words."""
    start = content[:200].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "is a page of the web, perhaps one that asks to sign in; download the file that it stands for"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS; `git lfs pull` fetches the file that it stands for"
    return None if content else "is empty (0 bytes)"


def safe_load(path: Path, *, allow: Sequence[Any] = (), device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a dictionary that ``torch.save`` wrote; builds tensors, plain data and what ``allow`` names only.

    Args:
        path: the file.
        allow: types and functions, or pairs of one and the name that the file calls it by, as ``safe_globals`` has it.
        device: where the tensors go.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds anything else, or is no dictionary; TooLarge: it does not fit the memory.
    """
    try:
        held = read_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    if (other := _what_else(held)) is not None:
        raise ValueError(f"{path}: {other}")
    names = [t[1] if isinstance(t, tuple) else f"{t.__module__}.{t.__qualname__}" for t in allow]
    try:
        foreign = {
            n for n in _globals(held) if n not in _PLAIN and n not in names and not _STORAGE.fullmatch(n)
        }
        if foreign:
            raise ValueError(f"it names {', '.join(sorted(foreign)[:5])}")
        with torch.serialization.safe_globals(list(allow)):
            content = torch.load(io.BytesIO(held), map_location=device, weights_only=True)
        _check_held(content)
    except Exception as error:  # a damaged pickle raises whatever its operations stumble over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if "weights_only" in str(error):  # torch's advice is to unpickle it
            reason = "its pickle is not of tensors and plain data"
        raise ValueError(
            f"{path}: refused, and nothing in it was executed: it is damaged, or holds something other than "
            f"tensors and plain data{''.join(f', {name}' for name in names)} ({reason})"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected a dictionary")
    return content
