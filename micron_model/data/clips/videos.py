"""Opening videos that someone else may have made and named.

OpenCV hands a name to FFmpeg, which takes ``http:host?.mp4`` for a request, and to a reader of images, which takes
``%d`` and digits for a pattern; and FFmpeg takes a file that begins with ``ffconcat`` for a list of other files,
whatever it is called. Here a name is that of a file, and a file is a container of video.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from ...faults import raise_if_of_the_machine

#: Of FFmpeg: what is read is this file alone, and no list or picture of others.
_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,avi,matroska,mpeg,mpegts,mpegvideo,m4v,h264,hevc,flv,asf,ogg,mjpeg,dv,mxf,ivf",
}
_OPTIONS_OF, _LOG_LEVEL_OF = "OPENCV_FFMPEG_CAPTURE_OPTIONS", "OPENCV_FFMPEG_LOGLEVEL"
_opening = threading.Lock()
_BLOCK = 2**20


def _backends() -> list[int]:
    """FFmpeg where OpenCV has it, else what else reads files; never the reader of numbered images."""
    known = cv2.videoio_registry.getStreamBackends()
    return [cv2.CAP_FFMPEG] if cv2.CAP_FFMPEG in known else [b for b in known if b != cv2.CAP_IMAGES]


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """OpenCV takes FFmpeg's options from the environment, while it opens a file."""
    with _opening:
        before = {name: os.environ.get(name) for name in (_OPTIONS_OF, _LOG_LEVEL_OF)}
        level = cv2.utils.logging.getLogLevel()
        ours = "|".join(f"{name};{value}" for name, value in _OPTIONS.items())
        os.environ[_OPTIONS_OF] = "|".join(
            filter(None, [before[_OPTIONS_OF], ours])
        )  # the last of a name holds
        os.environ.setdefault(
            _LOG_LEVEL_OF, "-8"
        )  # what is wrong is said once, by whoever asked for the file
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            yield
        finally:
            cv2.utils.logging.setLogLevel(level)
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


@contextlib.contextmanager
def _safe_name(path: Path) -> Iterator[str]:
    """An absolute name of the file, in which no reader sees an address; a link to it where it is not UTF-8."""
    name = os.path.abspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:  # OpenCV's binding ends the process at a name that it cannot encode
        with tempfile.TemporaryDirectory(prefix="micron-") as folder:
            link = os.path.join(folder, "video")
            os.symlink(name, link)
            yield link
    else:
        yield name


#: Files that were read from one end to the other after a reader had failed on them.
_readable: set[str] = set()


def check_readable(path: str | Path) -> None:
    """Raises MachineFault where it is not the file's fault that a reader failed on it, which OpenCV does not tell.

    The file is read once, to its end: a disk may fail in the middle of it.
    """
    name = os.path.abspath(path)
    try:
        with open(name, "rb") as file, open(name, "rb"):  # a reader may need a second descriptor
            while name not in _readable and file.read(_BLOCK):
                pass
    except OSError as error:
        raise_if_of_the_machine(error, path)
    else:
        _readable.add(name)


@contextlib.contextmanager
def open_video(path: str | Path, settings: Sequence[int] = ()) -> Iterator[cv2.VideoCapture]:
    """The video in a file, to read from; ``isOpened()`` tells whether it is one. Settings are pairs of OpenCV's."""
    with _safe_name(Path(path)) as name:
        video = cv2.VideoCapture()
        try:
            with _settings():
                for backend in _backends():
                    if video.open(name, backend, list(settings)):
                        break
            if not video.isOpened():
                check_readable(path)
            yield video
        finally:
            video.release()


def frame_times(path: str | Path) -> np.ndarray:
    """(n,), in seconds, ascending: when the frames are shown, as the container says; none is decoded.

    Empty where it does not say, or who reads the container does not tell.
    """
    found = []
    with open_video(path, [cv2.CAP_PROP_FORMAT, -1]) as video:  # packets as they are
        while video.isOpened() and video.grab():
            found.append(video.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    times = np.sort(np.array(found))  # packets come in the order of decoding
    times = times[times >= 0]  # before that, packets are needed to decode others, and not shown
    return times if len(times) and np.isfinite(times).all() and times[-1] > times[0] else times[:0]
