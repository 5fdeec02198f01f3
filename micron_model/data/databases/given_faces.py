"""Faces that are given, not looked for: boxes and landmarks that others made."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...limits import read_csv, read_npy
from ..clips.faces import Box, square_about_nose
from ..clips.inputs import UnusableClip
from .expressions import Expression

#: A face and the margin that it wants on each side, as a share of its side.
Given = tuple[Box, float]


def _table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """(columns, rows) of a csv; a row that is cut short lacks the last columns."""
    columns, *cells = read_csv(path) or [[]]
    return columns, [dict(zip(columns, row, strict=False)) for row in cells if row]


def read_boxes(path: Path) -> dict[str, Box]:
    """The squares about the boxes or landmarks of a csv, by clip.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: columns are missing, or a row is not of numbers.
    """
    columns, rows = _table(path)
    points = [name[1:] for name in columns if re.fullmatch(r"x\d+", name) and f"y{name[1:]}" in columns]
    if "clip" not in columns or not ({"x", "y", "width", "height"} <= set(columns) or len(points) >= 2):
        raise ValueError(
            f"{path}: has the columns {', '.join(columns)}; it must have clip, x, y, width, height, or clip and "
            "x1, y1, x2, y2, … of landmarks"
        )
    return {row.get("clip", ""): _square_about(row, points, path) for row in rows}


def _square_about(row: Mapping[str, str], points: Sequence[str], path: Path) -> Box:
    try:
        if points:
            xs, ys = ([float(row[f"{axis}{point}"]) for point in points] for axis in "xy")
            x, y, width, height = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
        else:
            x, y, width, height = (float(row[name]) for name in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        x = y = width = height = math.nan
    if not (math.isfinite(x + y + width + height) and width > 0 and height > 0):
        raise ValueError(f"{path}: clip {row.get('clip', '')!r} has no box of positive width and height")
    side = max(width, height)
    return Box(x + (width - side) / 2, y + (height - side) / 2, side)


def read_landmarks(path: Path) -> dict[str, np.ndarray]:
    """The 68 landmarks (68, 2) of each clip, by the last number of its subject and its name (``1/ep02_01f``).

    Args:
        path: a folder of files ``<subject>/<clip>.npy`` at any depth, or a csv with the columns clip, x1, y1, … x68,
            y68, in which a clip is named ``<subject>/<clip>``.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: there is none in it, or a file holds something else; nothing is unpickled.
    """
    if path.is_dir():
        files = sorted(path.rglob("*.npy"))
        if not files:
            raise ValueError(f"{path}: holds no <subject>/<clip>.npy")
        return {_clip_key(f"{file.parent.name}/{file.stem}"): _landmarks_in(file) for file in files}
    names = [f"{axis}{i}" for i in range(1, 69) for axis in "xy"]
    columns, rows = _table(path)
    if missing := [name for name in ("clip", *names) if name not in columns]:
        raise ValueError(
            f"{path}: lacks the columns {', '.join(missing[:4])}; clip, x1, y1, … x68, y68 are needed"
        )
    try:
        return {
            _clip_key(row["clip"]): np.array([float(row[n]) for n in names]).reshape(68, 2) for row in rows
        }
    except (KeyError, ValueError):
        raise ValueError(f"{path}: a landmark is no number") from None


def _landmarks_in(file: Path) -> np.ndarray:
    try:
        found = read_npy(file)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error})") from None
    if found.shape != (68, 2) or found.dtype.kind not in "iuf":
        raise ValueError(
            f"{file}: holds {found.dtype} {found.shape}; 68 landmarks are numbers of shape (68, 2)"
        )
    return found.astype(np.float64)


def _clip_key(name: str) -> str:
    """Subjects are written in many ways: sub01, 006, s1, spNO.1."""
    *folders, clip = name.replace("\\", "/").split("/")
    numbers = re.findall(r"\d+", folders[-1]) if folders else []
    return f"{int(numbers[-1]) if numbers else '?'}/{clip.lower()}"


class GivenFaces:
    """The faces that settings give.

    Args:
        boxes, landmarks: as :class:`FaceConfig` has them; landmarks come first.
        margin: of the boxes. The square about landmarks has none.
    """

    def __init__(self, boxes: Path | None, landmarks: Path | None, margin: float):
        self._boxes = read_boxes(boxes) if boxes else {}
        self._landmarks = read_landmarks(landmarks) if landmarks else {}
        self._margin = margin

    def of(self, expression: Expression) -> Given | None:
        """Raises UnusableClip where its landmarks are not those of an upright face."""
        found = self._landmarks.get(_clip_key(f"{expression.subject}/{expression.name.split('/')[-1]}"))
        if found is not None:
            try:
                return square_about_nose(found), 0.0
            except ValueError as error:
                raise UnusableClip(str(error)) from None
        box = self._boxes.get(expression.name)
        return None if box is None else (box, self._margin)
