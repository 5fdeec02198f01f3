"""Clips of frames on disk: folders of images and video files."""

from __future__ import annotations

import bisect
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from ...faults import describe, raise_if_of_the_machine
from ...limits import NoFile, TooLarge, check_pixels, open_file
from .images import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from .images import FrameError as FrameError
from .images import Problem as Problem
from .images import decode_image as decode_image
from .images import depth_of, read_bgr, square
from .images import read_image as read_image
from .images import read_whole_image as read_whole_image
from .images import write_image as write_image
from .videos import check_readable, frame_times, open_video

#: Of files that FFmpeg opens, by the containers that ``videos.py`` lets it.
VIDEO_SUFFIXES = {
    ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts",
    ".wmv", ".asf", ".flv", ".ogv", ".mxf", ".dv", ".mjpg", ".mjpeg", ".h264", ".264", ".hevc", ".265",
}  # fmt: skip
#: Frames beyond a run that are tried before a video is taken to have ended.
_DAMAGED_IN_A_ROW = 8
#: Bytes that the shortest frame takes, one that repeats the last: its entry in the index of the file.
_LEAST_OF_A_FRAME = 8
#: Frames a second that a camera may take.
_FASTEST = 100_000
#: Frames of a video of variable rate for each that it holds, at most: a file could state times of years apart.
_MOST_REPEATED = 100
#: Nearer than so many frames, decoding is faster than seeking.
_NEAR = 64


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


def frame_number(path: Path) -> tuple[int, str]:
    """Sorting key: the last run of digits of the stem (``img10`` comes after ``img2``), then the name."""
    numbers = re.findall(r"\d+", path.stem)
    return (int(numbers[-1]) if numbers else -1, path.name)


def natural_order(path: Path) -> tuple[str | int, ...]:
    """Sorting key: the stem, every run of digits in it as a number, letters in whatever case."""
    parts = re.split(r"(\d+)", path.stem.lower())
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts))


def _other_size(image: np.ndarray, first: np.ndarray) -> str | None:
    """That a frame has another size than the first, in words."""
    if image.shape == first.shape:
        return None
    sizes = [f"{width} × {height}" for height, width in (image.shape[:2], first.shape[:2])]
    return f"has {sizes[0]} pixels, others of its clip {sizes[1]}"


class OtherSize(Problem):
    """A frame of another size than the first of its clip."""

    __slots__ = ()


class _Frames:
    """What clips on disk have in common: all is made of the frames as they are."""

    fps: float

    def number(self, index: int) -> int:
        """Of the frame on the disk that the clip has at ``index``."""
        return index

    def seconds(self, index: int) -> float:
        """When that frame is shown, from the first on."""
        return index / self.fps

    def images(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray | Problem]]:
        """Frames ``start`` to ``stop`` - 1 as uint8 (H, W, 3), BGR, all of one size; why, in place of one that is not.

        Those that repeat the frame before them are left out, as are those after the end of a video that ends early;
        that is then the last item.
        """
        raise NotImplementedError

    def decode(self, start: int, stop: int, size: int) -> Iterator[tuple[int, np.ndarray | Problem]]:
        """As ``images``, uint8 (3, size, size), RGB."""
        for i, image in self.images(start, stop):
            yield i, image if isinstance(image, Problem) else square(image, size)


@dataclass(frozen=True)
class ImageFolderClip(_Frames):
    """The images of one folder, in their order."""

    folder: Path
    paths: tuple[Path, ...]
    fps: float
    bits: int = 8
    """Of the camera, where the images have 16 a level."""

    @property
    def name(self) -> str:
        return str(self.folder)

    @classmethod
    def of(cls, folder: Path, images: Sequence[Path], fps: float) -> ImageFolderClip:
        """Of the images of a folder, in natural order.

        Raises:
            FrameError: which of two comes first is not to be told from their names.
        """
        paths = sorted(images, key=natural_order)
        for one, other in itertools.pairwise(paths):
            if natural_order(one) == natural_order(other):
                raise FrameError(
                    f"{folder}: {one.name} and {other.name} have one place in the order of frames"
                )
        return cls(folder, tuple(paths), fps, depth_of(paths))

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: Sequence[int], size: int) -> np.ndarray:
        frames: list[np.ndarray] = []
        first: np.ndarray | None = None
        for i in indices:
            image = read_bgr(self.paths[i], self.bits)
            first = image if first is None else first
            if (other := _other_size(image, first)) is not None:
                raise FrameError(f"{self.paths[i]}: {other}", self.paths[i])
            frames.append(square(image, size))
        return np.stack(frames)

    def images(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray | Problem]]:
        first: np.ndarray | None = None
        for i in range(start, stop):
            path = self.paths[i]
            try:
                image = read_bgr(path, self.bits)
            except FrameError as error:
                yield i, Problem(str(path), str(error).removeprefix(f"{path}: "))
                continue
            first = image if first is None else first
            other = _other_size(image, first)
            yield i, image if other is None else OtherSize(str(path), other)


def _damaged(frame: int) -> str:
    return f"frame {frame} cannot be decoded"


def _ends_early(length: int) -> str:
    return f"ends before the {length} frames it states"


@dataclass(frozen=True)
class Rhythm:
    """When the frames of a video of variable rate are shown, and which of them is shown at a constant one."""

    times: np.ndarray
    """(n,), in seconds from the first."""
    fps: float
    shown: np.ndarray
    """(length,), int64: the nearest frame to each tick."""

    @classmethod
    def of(cls, times: np.ndarray) -> Rhythm | None:
        """None if every frame lies within half a frame of where a constant rate has it.

        The rate is that of the fastest tenth of the video, so that hardly a frame is left out.

        Raises:
            FrameError: the times are those of no camera; the message is the reason alone.
        """
        times = times - times[:1]
        if len(times) < 3 or times[-1] <= 0:
            return None
        even = np.linspace(0, times[-1], len(times))
        if np.abs(times - even).max() <= 0.5 * even[1]:
            return None
        steps = np.diff(times)
        fps = 1 / float(np.quantile(steps[steps > 0], 0.1))
        length = round(float(times[-1]) * fps) + 1
        if length > _MOST_REPEATED * len(times) or fps > _FASTEST:
            raise FrameError(
                f"states times of its {len(times)} frames that no camera has, up to {times[-1]:g} s; give a rate "
                "with fps"
            )
        middles = (times[1:] + times[:-1]) / 2
        return cls(times, fps, np.searchsorted(middles, np.arange(length) / fps, side="right"))


@dataclass(frozen=True)
class VideoClip(_Frames):
    """A video file; frames are decoded as they are asked for.

    One of variable rate is a clip of constant rate, at every tick of which the nearest frame is shown.
    """

    path: Path
    fps: float
    length: int
    rhythm: Rhythm | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        return self.length

    def number(self, index: int) -> int:
        """See above."""
        return index if self.rhythm is None else int(self.rhythm.shown[index])

    def seconds(self, index: int) -> float:
        """See above."""
        return index / self.fps if self.rhythm is None else float(self.rhythm.times[self.number(index)])

    @classmethod
    def open(cls, path: Path, fps: float | None = None) -> VideoClip:
        """Raises FrameError for a file that is no video, or has no frame.

        Without ``fps`` the times of all frames are read, which takes as long as reading the file.
        """
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
        try:
            rhythm = None if fps else Rhythm.of(frame_times(path))
        except FrameError as error:
            raise FrameError(f"{path}: {error}") from None
        if rhythm is not None:
            return cls(path, rhythm.fps, len(rhythm.shown), rhythm)
        return cls(path, float(rate), length)

    def _seek(self, video: cv2.VideoCapture, number: int) -> int:
        """Go to a frame of the file, or some before it; the number of the one that is read next."""
        if self.rhythm is None:
            video.set(cv2.CAP_PROP_POS_FRAMES, number)
            return number
        # OpenCV seeks by the mean rate; where it got to, the time of the next frame tells.
        times = self.rhythm.times
        for earlier in (1.0, 8.0, 64.0):
            wanted = float(times[number]) - earlier
            if wanted <= 0:
                break
            video.set(cv2.CAP_PROP_POS_MSEC, 1000 * wanted)
            if video.grab():
                at = bisect.bisect_left(times, video.get(cv2.CAP_PROP_POS_MSEC) / 1000 - self._tolerance)
                if at < number:
                    return at + 1
        video.set(cv2.CAP_PROP_POS_FRAMES, 0)
        return 0

    @property
    def _tolerance(self) -> float:
        """Seconds within which two times are of one frame."""
        return 0.25 / self.fps

    def read(self, indices: Sequence[int], size: int) -> np.ndarray:
        with open_video(self.path) as video:
            frames = {}
            position = -1
            for index in sorted({self.number(i) for i in indices}):
                if position < 0 or index - position > _NEAR:
                    position = self._seek(video, index)
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
                frames[index] = square(image, size)
            return np.stack([frames[self.number(i)] for i in indices])

    def images(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray | Problem]]:
        """See above. The video is read once, forward."""
        if self.rhythm is None:
            yield from self._images(start, stop, self.length)
            return
        shown = self.rhythm.shown
        ticks = {
            int(n): i for i, n in reversed(list(enumerate(shown[start:stop], start)))
        }  # the first of each
        for number, image in self._images(
            int(shown[start]), int(shown[stop - 1]) + 1, len(self.rhythm.times)
        ):
            if number in ticks:
                yield ticks[number], image

    def _images(self, start: int, stop: int, length: int) -> Iterator[tuple[int, np.ndarray | Problem]]:
        """Frames of the file, of which there are ``length``, by their numbers in it."""
        with open_video(self.path) as video:
            if start:
                if self.rhythm is None:
                    video.set(cv2.CAP_PROP_POS_FRAMES, start)
                    while video.get(cv2.CAP_PROP_POS_FRAMES) < start and video.grab():
                        pass  # a seek may stop short
                else:
                    for _ in range(start - self._seek(video, start)):
                        video.grab()
            first: np.ndarray | None = None
            failed: list[int] = []  # damaged, if any frame comes after them; past the end, if none does
            for i in range(start, min(stop + _DAMAGED_IN_A_ROW, length)):
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
                    first = image if first is None else first
                    other = _other_size(image, first)
                    yield i, image if other is None else OtherSize(str(self.path), f"frame {i} {other}")
            if failed:
                yield failed[0], Problem(str(self.path), _ends_early(length))
