"""Images of frames that someone else may have made: decoded, whatever the depth of their grey levels, and cut."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ...faults import describe, raise_if_of_the_machine
from ...limits import NoFile, TooLarge, check_pixels, read_file
from .image_header import image_size
from .problems import FrameError as FrameError
from .problems import Problem as Problem

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
#: Bits of a grey level that cameras have. Those of more than 8 come in images of 16.
_DEPTHS = (8, 10, 12, 14, 16)
#: Frames of a clip whose highest value tells how many bits its camera has.
_LOOKED_AT = 16


def square(image: np.ndarray, size: int | None) -> np.ndarray:
    """The central square of a BGR image, resized to ``size``, as RGB (3, size, size)."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    image = image[top : top + side, left : left + side]
    if size is not None and side != size:
        shrinks = size < side
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1))


def _decode(data: bytes) -> np.ndarray:
    """The bytes of an image file as (H, W, 3), BGR, uint8 or uint16.

    Raises FrameError, whose message is the reason alone.
    """
    if not len(data):
        raise FrameError("is empty (0 bytes)")
    stated = image_size(data)
    if stated is None:
        raise FrameError(f"is not an image that can be decoded ({len(data)} bytes)")
    try:
        check_pixels(*stated)
    except TooLarge as error:
        raise FrameError(str(error)) from None
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:  # a header that states a size beyond what OpenCV takes
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from None
        image = None
    if image is None:
        raise FrameError(f"is not an image that can be decoded ({len(data)} bytes)")
    if image.dtype not in (np.uint8, np.uint16):
        raise FrameError(f"holds {image.dtype}; grey levels of 8 or 16 bits are read")
    return image


def _bits(image: np.ndarray) -> int:
    """Of the camera whose levels an image holds, as far as they tell."""
    needed = int(image.max(initial=0)).bit_length()
    return next(bits for bits in _DEPTHS if needed <= bits)


def _to_8(image: np.ndarray, bits: int | None) -> np.ndarray:
    """Levels of a camera of so many bits, or as many as the image holds, as those of 8.

    Raises FrameError, whose message is the reason alone.
    """
    if image.dtype == np.uint8:
        return image
    bits = _bits(image) if bits is None else bits
    if _bits(image) > bits:
        raise FrameError(
            f"holds grey levels up to {int(image.max())}; those of the {_LOOKED_AT} frames that were looked at have "
            f"{bits} bits"
        )
    return (image >> (bits - 8)).astype(np.uint8)


def decode_image(data: bytes, size: int | None = None) -> np.ndarray:
    """The bytes of an image file as uint8 (3, S, S), RGB: its central square, resized to ``size`` if given.

    Raises FrameError, whose message is the reason alone.
    """
    return square(_to_8(_decode(data), None), size)


def read_bgr(path: Path, bits: int | None = None) -> np.ndarray:
    """An image file as uint8 (H, W, 3), BGR; raises as :func:`read_image` does."""
    try:
        return _to_8(_decode(read_file(path)), bits)
    except FileNotFoundError:
        raise FrameError(f"{path}: no such file", path) from None
    except (NoFile, TooLarge) as error:
        raise FrameError(str(error), path) from None
    except (OSError, MemoryError) as error:
        raise_if_of_the_machine(error, path)
        raise FrameError(f"{path}: {describe(error)}", path) from None
    except FrameError as error:
        raise FrameError(f"{path}: {error}", path) from None


def read_image(path: str | Path, size: int | None = None, bits: int | None = None) -> np.ndarray:
    """An image file as uint8 (3, S, S), RGB: its central square, resized to ``size`` if given.

    Of an image of 16 bits, ``bits`` are those of the camera, which must be one for all frames of a clip
    (:func:`depth_of`); if not given, the fewest of 8, 10, 12, 14 and 16 that hold what is there.

    Raises:
        FrameError: there is no such file, it is not an image that can be decoded, or it holds more than ``bits``.
    """
    return square(read_bgr(Path(path), bits), size)


def read_whole_image(path: str | Path, bits: int | None = None) -> np.ndarray:
    """An image file as uint8 (H, W, 3), RGB; raises as :func:`read_image` does."""
    return np.ascontiguousarray(read_bgr(Path(path), bits)[:, :, ::-1])


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a BGR or grey image in the format of the suffix. Raises OSError; OpenCV's own writer says nothing."""
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())


def depth_of(paths: Sequence[Path]) -> int:
    """Bits of the camera that frames of one clip are of: 8, or what the highest level of some of them needs.

    Frames that cannot be read say nothing; the first that can decides whether there are more than 8 bits at all.
    """
    step = max(1, len(paths) // _LOOKED_AT)
    bits = 8
    for number, path in enumerate(paths[::step]):
        if path.suffix.lower() not in (".png", ".tif", ".tiff"):
            return 8
        try:
            data = read_file(path)
            if number == 0 and data[:4] == b"\x89PNG" and struct.unpack_from("B", data, 24)[0] <= 8:
                return 8
            image = _decode(data)
        except (OSError, ValueError, struct.error):
            continue
        if image.dtype == np.uint8:
            return 8
        bits = max(bits, _bits(image))
    return bits
