"""Clips of frames on disk: folders of images and video files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from ...faults import describe, raise_if_of_the_machine
from ...limits import NoFile, TooLarge, check_pixels, open_file, read_file
from .image_header import image_size
from .videos import check_readable, open_video

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".m4v"}


#: Frames beyond a run that are tried before a video is taken to have ended.
_DAMAGED_IN_A_ROW = 8
#: Bytes that the shortest frame takes, one that repeats the last: its entry in the index of the file.
_LEAST_OF_A_FRAME = 8
#: Frames a second that a camera may take.
_FASTEST = 100_000


class FrameError(ValueError):
    """A frame, image or video that cannot be read; the message names the file and the reason.

    ``path`` is the file, where the message begins with it.
    """

    def __init__(self, message: str, path: str | Path | None = None):
        super().__init__(message)
        self.path = None if path is None else str(path)


class Problem(NamedTuple):
    """A file that was passed over."""

    path: str
    reason: str


class Clip(Protocol):
    """A run of frames of one face at a known rate."""

    @property
    def name(self) -> str: ...
    @property
    def fps(self) -> float: ...
    def __len__(self) -> int: ...
    def read(self, indices: Sequence[int], size: int) -> np.ndarray:
        """Frames at ``indices`` as uint8 (T, 3, size, size), RGB. Raises FrameError."""
        ...


def _square(image: np.ndarray, size: int | None) -> np.ndarray:
    """The central square of a BGR image, resized to ``size``, as RGB (3, size, size)."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    image = image[top : top + side, left : left + side]
    if size is not None and side != size:
        shrinks = size < side
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1))


def _decode(data: bytes) -> np.ndarray:
    """The bytes of an image file as uint8 (H, W, 3), BGR. Raises FrameError, whose message is the reason alone."""
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
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:  # a header that states a size beyond what OpenCV takes
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from None
        image = None
    if image is None:
        raise FrameError(f"is not an image that can be decoded ({len(data)} bytes)")
    return image


def decode_image(data: bytes, size: int | None = None) -> np.ndarray:
    """The bytes of an image file as uint8 (3, S, S), RGB: its central square, resized to ``size`` if given.

    Raises FrameError, whose message is the reason alone.
    """
    return _square(_decode(data), size)


def _read(path: Path) -> np.ndarray:
    try:
        return _decode(read_file(path))
    except FileNotFoundError:
        raise FrameError(f"{path}: no such file", path) from None
    except (NoFile, TooLarge) as error:
        raise FrameError(str(error), path) from None
    except (OSError, MemoryError) as error:
        raise_if_of_the_machine(error, path)
        raise FrameError(f"{path}: {describe(error)}", path) from None
    except FrameError as error:
        raise FrameError(f"{path}: {error}", path) from None


def read_image(path: str | Path, size: int | None = None) -> np.ndarray:
    """An image file as uint8 (3, S, S), RGB: its central square, resized to ``size`` if given.

    Raises:
        FrameError: there is no such file, or it is not an image that can be decoded.
    """
    return _square(_read(Path(path)), size)


def read_whole_image(path: str | Path) -> np.ndarray:
    """An image file as uint8 (H, W, 3), RGB; raises as :func:`read_image` does."""
    return np.ascontiguousarray(_read(Path(path))[:, :, ::-1])


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a BGR or grey image in the format of the suffix. Raises OSError; OpenCV's own writer says nothing."""
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())


def frame_number(path: Path) -> tuple[int, str]:
    """Sorting key: the last run of digits of the stem (``img10`` comes after ``img2``), then the name."""
    numbers = re.findall(r"\d+", path.stem)
    return (int(numbers[-1]) if numbers else -1, path.name)


@dataclass(frozen=True)
class ImageFolderClip:
    """The images of one folder, in the order of their frame numbers."""

    folder: Path
    paths: tuple[Path, ...]
    fps: float

    @property
    def name(self) -> str:
        return str(self.folder)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: Sequence[int], size: int) -> np.ndarray:
        return np.stack([read_image(self.paths[i], size) for i in indices])

    def decode(self, start: int, stop: int, size: int) -> Iterator[tuple[int, np.ndarray | Problem]]:
        """Frames ``start`` to ``stop`` - 1 as uint8 (3, size, size), RGB; in place of one that cannot be read, why."""
        for i in range(start, stop):
            try:
                yield i, read_image(self.paths[i], size)
            except FrameError as error:
                yield i, Problem(str(self.paths[i]), str(error).removeprefix(f"{self.paths[i]}: "))


def _damaged(frame: int) -> str:
    return f"frame {frame} cannot be decoded"


def _ends_early(length: int) -> str:
    return f"ends before the {length} frames it states"


@dataclass(frozen=True)
class VideoClip:
    """A video file; frames are decoded as they are asked for."""

    path: Path
    fps: float
    length: int

    @property
    def name(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        return self.length

    @classmethod
    def open(cls, path: Path, fps: float | None = None) -> VideoClip:
        """Raises FrameError for a file that is no video, or has no frame."""
        try:
            with open_file(path) as file:
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            raise FrameError(f"{path}: no such file") from None
        except (OSError, NoFile) as error:
            raise_if_of_the_machine(error, path)
            raise FrameError(
                str(error) if isinstance(error, NoFile) else f"{path}: {describe(error)}"
            ) from None
        with open_video(path) as video:
            length = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
            try:
                check_pixels(
                    int(video.get(cv2.CAP_PROP_FRAME_WIDTH)), int(video.get(cv2.CAP_PROP_FRAME_HEIGHT))
                )
            except TooLarge as error:
                raise FrameError(f"{path}: {error}") from None
            if length > size // _LEAST_OF_A_FRAME:
                raise FrameError(f"{path}: states {length} frames, which its {size} bytes cannot hold")
            if length < 1 or not video.read()[0]:
                check_readable(path)
                raise FrameError(f"{path}: no frame can be decoded from this video")
            rate = fps or video.get(cv2.CAP_PROP_FPS)
            if not 0 < rate <= _FASTEST:
                raise FrameError(f"{path}: the video states no frame rate ({rate:g}); give it with fps")
            return cls(path, float(rate), length)

    def read(self, indices: Sequence[int], size: int) -> np.ndarray:
        with open_video(self.path) as video:
            frames = {}
            position = -1
            for index in sorted(set(indices)):
                if position < 0 or index - position > 64:  # nearer than that, decoding is faster than seeking
                    video.set(cv2.CAP_PROP_POS_FRAMES, index)
                    position = index
                while position < index:
                    video.grab()
                    position += 1
                ok, image = video.read()
                position += 1
                if not ok:
                    check_readable(self.path)
                    # The same words for each frame past the end, so that they are said once.
                    ended = not any(video.read()[0] for _ in range(_DAMAGED_IN_A_ROW))
                    reason = _ends_early(self.length) if ended else _damaged(index)
                    raise FrameError(f"{self.path}: {reason}", self.path)
                frames[index] = _square(image, size)
            return np.stack([frames[i] for i in indices])

    def decode(self, start: int, stop: int, size: int) -> Iterator[tuple[int, np.ndarray | Problem]]:
        """Frames ``start`` to ``stop`` - 1 as uint8 (3, size, size), RGB; in place of one that cannot be read, why.

        The video is read once, forward. Where it ends early, its last item is that problem.
        """
        with open_video(self.path) as video:
            if start:
                video.set(cv2.CAP_PROP_POS_FRAMES, start)
                while video.get(cv2.CAP_PROP_POS_FRAMES) < start and video.grab():
                    pass  # a seek may stop short
            failed: list[int] = []  # damaged, if any frame comes after them; past the end, if none does
            for i in range(start, min(stop + _DAMAGED_IN_A_ROW, self.length)):
                if i >= stop and not failed:
                    return
                ok, image = video.read()
                if not ok:
                    check_readable(self.path)
                    failed.append(i)
                    continue
                for damaged in failed:
                    if damaged < stop:
                        yield damaged, Problem(str(self.path), _damaged(damaged))
                failed = []
                if i < stop:
                    yield i, _square(image, size)
            if failed:
                yield failed[0], Problem(str(self.path), _ends_early(self.length))


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def find_clips(
    sources: Sequence[str | Path], *, fps: float | None = None, min_length: int = 2
) -> tuple[list[Clip], list[Problem]]:
    """All clips under ``sources``: video files, folders of images, and folders that hold either, at any depth.

    A folder that holds images directly is one clip. Hidden files are passed over.

    Args:
        sources: files and folders.
        fps: frame rate of folders of images (30 if not given), and of videos in place of what they state.
        min_length: shorter clips are problems.

    Returns:
        (clips sorted by path, problems: what looked like a clip and could not be used).

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: there is not one usable clip; the message lists the problems.
    """
    clips: list[Clip] = []
    problems: list[Problem] = []

    def add_video(path: Path) -> None:
        try:
            clip = VideoClip.open(path, fps)
        except FrameError as error:
            problems.append(Problem(str(path), str(error).removeprefix(f"{path}: ")))
        else:
            add(clip)

    def add(clip: Clip) -> None:
        if len(clip) < min_length:
            problems.append(Problem(clip.name, f"has {len(clip)} frames; a pair needs {min_length}"))
        else:
            clips.append(clip)

    for source in map(Path, sources):
        if not source.exists():
            raise FileNotFoundError(f"{source}: no such file or folder")
        if not source.is_dir():
            if source.suffix.lower() in VIDEO_SUFFIXES:
                add_video(source)
            else:
                known = ", ".join(sorted(VIDEO_SUFFIXES))
                problems.append(Problem(str(source), f"is neither a folder nor a video ({known})"))
            continue
        for folder in sorted([source, *(p for p in source.rglob("*") if p.is_dir())]):
            files = sorted(p for p in folder.iterdir() if p.is_file() and not _is_hidden(p))
            images = sorted((p for p in files if p.suffix.lower() in IMAGE_SUFFIXES), key=frame_number)
            if images:
                add(ImageFolderClip(folder, tuple(images), fps or 30.0))
            for path in files:
                if path.suffix.lower() in VIDEO_SUFFIXES:
                    add_video(path)
    if not clips:
        listed = "; ".join(f"{p.path} {p.reason}" for p in problems[:5]) or "no image and no video was found"
        raise ValueError(f"no usable clip in {', '.join(map(str, sources))}: {listed}")
    return clips, problems
