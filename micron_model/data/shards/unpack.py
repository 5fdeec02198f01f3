"""The tar in a stream, unpacked as far as what is there can hold."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from typing import Any

from ...limits import BYTES, TooLarge, most_bytes

#: What a stream unpacks to, at most, over what it holds. JPEGs hardly pack at all; their headers in a tar do.
_RATIO, _FREE = 100, 2**20


class _Counted(io.RawIOBase):
    """A stream, and how many bytes were taken from it."""

    def __init__(self, stream: Any):
        self.stream, self.count = stream, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.stream.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)


class Unpacked:
    """What a stream holds, unpacked if it is of gzip, bzip2 or xz.

    ``read`` raises TooLarge where that is a hundred times what was read of the stream, or more than one file may take
    in memory: a shard is read whole.
    """

    def __init__(self, stream: Any):
        self._source = _Counted(stream)
        buffered = io.BufferedReader(self._source, 1 << 16)
        start = buffered.peek(6)
        self._plain: Any = buffered
        if start[:2] == b"\x1f\x8b":
            self._plain = gzip.GzipFile(fileobj=buffered)
        elif start[:3] == b"BZh":
            self._plain = bz2.BZ2File(buffered)
        elif start[:6] == b"\xfd7zXZ\0":
            self._plain = lzma.LZMAFile(buffered)  # noqa: SIM115  (the stream is whose it was)
        self._total, self._most = 0, most_bytes()

    def read(self, size: int) -> bytes:
        data = self._plain.read(size)
        self._total += len(data)
        if self._total > _RATIO * self._source.count + _FREE:
            raise TooLarge(f"unpacks to more than {_RATIO} times what it holds")
        if self._total > self._most:
            raise TooLarge(
                f"holds more than {self._most} bytes, half of the memory that is free; a larger {BYTES} allows it"
            )
        return data
