"""Clips of frames on disk: folders of images and video files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".m4v"}


class FrameError(ValueError):
    """A frame, image or video that cannot be read; the message names the file and the reason."""


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


def read_image(path: str | Path, size: int | None = None) -> np.ndarray:
    """An image file as uint8 (3, S, S), RGB: its central square, resized to ``size`` if given.

    Raises:
        FrameError: there is no such file, or it is not an image that can be decoded.
    """
    path = Path(path)
    if not path.is_file():
        raise FrameError(f"{path}: no such file")
    data = np.fromfile(path, dtype=np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        reason = "is empty" if not data.size else "is not an image that can be decoded"
        raise FrameError(f"{path}: {reason} ({data.size} bytes)")
    return _square(image, size)


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
        if not path.is_file():
            raise FrameError(f"{path}: no such file")
        video = cv2.VideoCapture(str(path))
        try:
            length = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
            if length < 1 or not video.read()[0]:
                raise FrameError(f"{path}: no frame can be decoded from this video")
            rate = fps or video.get(cv2.CAP_PROP_FPS)
            if not rate > 0:
                raise FrameError(f"{path}: the video states no frame rate; give it with fps")
            return cls(path, float(rate), length)
        finally:
            video.release()

    def read(self, indices: Sequence[int], size: int) -> np.ndarray:
        video = cv2.VideoCapture(str(self.path))
        try:
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
                    raise FrameError(f"{self.path}: ends before frame {index} of the {self.length} it states")
                frames[index] = _square(image, size)
            return np.stack([frames[i] for i in indices])
        finally:
            video.release()


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
        if source.is_file():
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
