"""From a database's clips to a recognizer's input: the face found in the onset frame, cut alike from every frame."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ...faults import raise_if_of_the_machine
from ...limits import read_npz
from ...whole_file import whole_file
from ..clips.faces import Box, cut, find_face, spot_apex
from ..clips.frames import VIDEO_SUFFIXES, VideoClip
from ..clips.images import FrameError, Problem, depth_of, read_whole_image
from ..clips.inputs import ClipInput, StoredValues, UnusableClip, Values
from ..clips.stabilize import Stabilizer
from .expressions import Expression
from .given_faces import Given, GivenFaces

#: Of what is kept; another number makes earlier caches unread.
_FORMAT = 5
#: Side in pixels at which an apex is looked for, where the input has none of its own.
_SPOTTED = 96
#: Bytes up to which what is kept of all clips stays in memory.
_IN_MEMORY = 1 << 30


@dataclass(frozen=True)
class FaceConfig:
    """How faces are cut from the frames."""

    margin: float = 0.1
    """Added on each side of the box of the face, as a share of its side."""
    detect: bool = True
    """Look for the face in the onset frame; otherwise the frame is the face, as in the databases' cropped layouts."""
    boxes: Path | None = None
    """A csv with better faces: the columns clip, x, y, width, height, or clip, x1, y1, x2, y2, … of landmarks, in
    pixels of the onset frame. Clips that are not in it are looked for."""
    landmarks: Path | None = None
    """A folder of the 68 landmarks of each clip's apex, <subject>/<clip>.npy, as SLSTT's authors publish them, or a csv
    with the columns clip, x1, y1, … x68, y68: the face is the square about the tip of the nose that they cut. Clips
    without are looked for."""
    spot_apex: bool = False
    """Where the database has no apex, take the frame that differs most from the onset, not the midpoint."""
    stabilize: bool = False
    """Lay every frame over the onset, so that the head keeps still. The databases' cropped layouts are registered
    already."""

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin={self.margin}; it is a share of the face's side, in [0, 1)")


class Kept(NamedTuple):
    """What is kept of an expression."""

    values: np.ndarray
    """As the recognizer's input encodes the faces."""
    apex: int
    """Number of the apex frame."""
    found: bool
    """Whether the face was found, or given; otherwise the central square was taken."""
    left: str
    """Which frames were left where the head went, and why; empty if none."""


#: The file where the values stay on the disk, and what is known of them; or why there are none.
_Result = Problem | tuple[Path | None, Kept]


def _is_spotted(expression: Expression, config: FaceConfig) -> bool:
    return config.spot_apex and expression.apex_from == "midpoint"


def _whole_frames(files: dict[int, Path], bits: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """Frames (H, W, 3), uint8, RGB, of the numbers and files that are given, ascending.

    Raises:
        FrameError: one cannot be read.
    """
    first, last = min(files), max(files)
    if files[first].suffix.lower() not in VIDEO_SUFFIXES:
        yield from ((number, read_whole_image(files[number], bits)) for number in sorted(files))
        return
    path, missing = files[first], set(files)
    for number, image in VideoClip.open(path).images(first, last + 1):
        if number in missing:
            if isinstance(image, Problem):
                raise FrameError(f"{path}: {image.reason}", path)
            missing.remove(number)
            yield number, np.ascontiguousarray(image[:, :, ::-1])
    if missing:
        raise FrameError(f"{path}: frame {min(missing)} cannot be decoded", path)


@functools.lru_cache(maxsize=1 << 14)
def _face_in(path: Path, number: int, _modified: int) -> Box | None:
    """The face in a frame as it was at a time; looked for once, however many inputs are made of it."""
    return find_face(next(_whole_frames({number: path}))[1])


def _encode(expression: Expression, clip_input: ClipInput, config: FaceConfig, given: Given | None) -> Kept:
    path = expression.path(expression.onset)
    bits = depth_of([frame for _, frame in expression.frames])
    _, onset = next(_whole_frames({expression.onset: path}, bits))
    height, width = onset.shape[:2]
    box, margin = given or (None, config.margin)
    if box is None and config.detect:
        box = _face_in(path, expression.onset, path.stat().st_mtime_ns)
    found = box is not None or not config.detect
    if box is None:
        margin = 0.0
        side = min(height, width)
        box = Box((width - side) / 2, (height - side) / 2, side)
    x, y = box.x + box.side / 2, box.y + box.side / 2
    if not (0 <= x < width and 0 <= y < height):
        raise UnusableClip(f"the centre of its face, ({x:g}, {y:g}), is outside the frame ({width}×{height})")
    if box.side > 4 * max(height, width):  # what lies outside repeats the edge, and takes memory
        raise UnusableClip(
            f"its face has the side {box.side:g}, four times that of the frame ({width}×{height})"
        )

    stabilizer = Stabilizer(onset, box) if config.stabilize else None
    failures: dict[int, str] = {}

    def face(number: int, image: np.ndarray, size: int | None) -> np.ndarray:
        if image.shape != onset.shape:
            (h, w), (height, width) = image.shape[:2], onset.shape[:2]
            raise UnusableClip(f"frame {number} has {w} × {h} pixels, the onset {width} × {height}")
        if stabilizer is not None:
            image, registration = stabilizer(image)
            if registration.failure is not None:
                failures[number] = registration.failure
        return cut(image, box, margin, size)

    def faces(numbers: Sequence[int], size: int | None = clip_input.size) -> np.ndarray:
        files = {number: expression.path(number) for number in numbers}
        cut_out = {number: face(number, image, size) for number, image in _whole_frames(files, bits)}
        return np.stack([cut_out[number] for number in numbers])

    apex = expression.apex
    if _is_spotted(expression, config):
        numbers = [n for n, _ in expression.frames if expression.onset <= n <= expression.offset]
        apex = numbers[spot_apex(torch.from_numpy(faces(numbers, clip_input.size or _SPOTTED)))]
    values = clip_input.encode(faces(clip_input.frames(expression.onset, apex, expression.offset)))
    left = f"frames {', '.join(map(str, failures))}: {next(iter(failures.values()))}" if failures else ""
    return Kept(values, apex, found, left)


def _key(expression: Expression, clip_input: ClipInput, config: FaceConfig, given: Given | None) -> str:
    """Names what decides the values: settings, the numbers of the frames, and the files with size and time."""
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for _, path in expression.frames]
    settings = asdict(config) | {"boxes": given, "landmarks": None}
    numbers = (expression.onset, expression.apex, expression.offset, expression.apex_from)
    described = json.dumps(
        [
            _FORMAT,
            clip_input.key,
            clip_input.size,
            settings,
            expression.dataset,
            expression.name,
            numbers,
            files,
        ]
    )
    return hashlib.sha256(described.encode(errors="surrogateescape")).hexdigest()[:32]


def _load(path: Path) -> Kept | None:
    try:
        stored = read_npz(path)
        # As bytes: numpy's own text can be damaged so that Python raises SystemError.
        left = stored["left"].tobytes().decode(errors="surrogateescape")
        return Kept(stored["values"], int(stored["apex"]), bool(stored["found"]), left)
    except (OSError, ValueError, TypeError, KeyError, MemoryError):  # missing or damaged: it is made anew
        return None


def _store(path: Path, kept: Kept) -> None:
    left = np.frombuffer(kept.left.encode(errors="surrogateescape"), np.uint8)
    with whole_file(path) as file:
        np.savez(file, values=kept.values, apex=kept.apex, found=kept.found, left=left)


@dataclass(frozen=True)
class Prepared:
    """Expressions and what a recognizer is given of each."""

    expressions: list[Expression]
    values: Values
    """(n, …): what the input encodes; with :class:`OnsetApex`, uint8 (n, 2, 3, S, S)."""
    problems: list[Problem]
    """Expressions that are left out because a frame could not be read or the input could not be made."""
    remarks: list[Problem]
    """Expressions that are used, and what could not be done for them: the face was not found, or not held still."""


def prepare(
    expressions: Sequence[Expression],
    clip_input: ClipInput,
    config: FaceConfig,
    cache: Path | None = None,
    *,
    advance: Callable[[], object] = lambda: None,
) -> Prepared:
    """Cut the faces of each expression and encode them, in threads; what was made before is read from ``cache``.

    What takes more than a gigabyte is left on the disk, if there is a cache.

    Args:
        expressions: what a loader gave.
        clip_input: which frames, how large, and what is made of them.
        config: how faces are cut.
        cache: a folder; a file an expression, named by all that decides it.
        advance: called after each expression.

    Raises:
        ValueError: not one could be prepared, ``config.boxes`` is no table of boxes, or ``config.landmarks`` neither a
            folder nor a table of landmarks.
        MachineFault: the disk of ``cache`` is full, or the like; no expression is left out for that.
    """
    faces = GivenFaces(config.boxes, config.landmarks, config.margin)
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)

    def prepare_one(expression: Expression) -> _Result:
        try:
            given = faces.of(expression)
            path = cache / f"{_key(expression, clip_input, config, given)}.npz" if cache else None
            kept = _load(path) if path else None
            if kept is None:
                kept = _encode(expression, clip_input, config, given)
                if path:
                    _store(path, kept)
        except (FrameError, UnusableClip, OSError, MemoryError) as error:
            raise_if_of_the_machine(error, getattr(error, "filename", None) or expression.name)
            return Problem(f"{expression.dataset} {expression.name}", f"left out: {error}")
        finally:
            advance()
        if path and kept.values.nbytes * len(expressions) > _IN_MEMORY:
            return path, kept._replace(values=kept.values[:0])
        return None, kept

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(prepare_one, expressions))
    return _collect(expressions, results, config)


def _collect(expressions: Sequence[Expression], results: Sequence[_Result], config: FaceConfig) -> Prepared:
    kept, values, files, problems, remarks = [], [], [], [], []
    for expression, result in zip(expressions, results, strict=True):
        if isinstance(result, Problem):
            problems.append(result)
            continue
        file, made = result
        if not made.found:
            path = str(expression.path(expression.onset))
            remarks.append(Problem(path, "no face was found: the central square is taken for it"))
        if made.left:
            name = f"{expression.dataset} {expression.name}"
            remarks.append(Problem(name, f"not laid over the onset, {made.left}"))
        spotted = _is_spotted(expression, config)
        kept.append(replace(expression, apex=made.apex, apex_from="spotting") if spotted else expression)
        values.append(torch.from_numpy(made.values))
        files.append(file)
    if not kept:
        listed = "; ".join(f"{p.path} {p.reason}" for p in problems[:3])
        raise ValueError(f"none of {len(expressions)} expressions could be prepared: {listed}")
    on_disk = [file for file in files if file is not None]
    return Prepared(kept, StoredValues(on_disk) if on_disk else torch.stack(values), problems, remarks)
