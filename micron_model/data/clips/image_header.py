"""What the first bytes of an image say of its size, before anything of that size is made.

JPEG, PNG, BMP, TIFF and WebP. OpenCV decodes more formats, by content whatever the name, and gives memory to what a
header states.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

#: Tags of a TIFF that state sides, of the image and of its tiles.
_TIFF_SIDES = {256: "width", 257: "height", 322: "tile width", 323: "tile height"}


def image_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) that an image file states; None if it is of none of the formats, or cut short."""
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg(data)
        if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
            return struct.unpack(">II", data[16:24])
        if data[:2] == b"BM":
            return _bmp(data)
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _tiff(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
    except (struct.error, IndexError, KeyError):
        pass
    return None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    at = 2
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            return None
        while data[at] == 0xFF:  # any number of them may fill
            at += 1
        marker, at = data[at], at + 1
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 3 : at + 7])
            return width, height
        if marker in (0xD9, 0xDA):  # the end, or pixels before any size
            return None
        if not 0xD0 <= marker <= 0xD8 and marker not in (0x00, 0x01):
            at += struct.unpack(">H", data[at : at + 2])[0]


def _bmp(data: bytes) -> tuple[int, int]:
    if struct.unpack("<I", data[14:18])[0] == 12:  # of OS/2
        return struct.unpack("<HH", data[18:22])
    width, height = struct.unpack("<ii", data[18:26])
    return abs(width), abs(height)


def _webp(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        bits = struct.unpack("<I", data[21:25])[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        sides = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
        return next(sides), next(sides)
    return None


def _tiff_sides(data: bytes) -> Iterator[tuple[str, int]]:
    order = "<" if data[:1] == b"I" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    offset, count, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    at = struct.unpack(order + offset, data[8:16] if big else data[4:8])[0]
    start = at + struct.calcsize(count)
    for i in range(min(struct.unpack(order + count, data[at:start])[0], 4096)):
        field = data[start + i * entry : start + (i + 1) * entry]
        tag, kind = struct.unpack(order + "HH", field[:4])
        if tag in _TIFF_SIDES:
            form = {1: "B", 3: "H", 4: "I", 16: "Q"}[kind]
            value = field[12:] if big else field[8:]
            yield _TIFF_SIDES[tag], struct.unpack(order + form, value[: struct.calcsize(form)])[0]


def _tiff(data: bytes) -> tuple[int, int]:
    sides = dict(_tiff_sides(data))
    return max(sides["width"], sides.get("tile width", 0)), max(sides["height"], sides.get("tile height", 0))
