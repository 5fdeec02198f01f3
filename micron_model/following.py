"""A face followed through a video: where its parts, its head and its light go.

The face, held still, is cut into 8 × 8 cells, and where each has gone since the frame in which the face was found is
its mean optical flow, between frames that are normalised locally, which takes the light out.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from .data.clips.faces import Box, cut, find_face
from .data.clips.flow import grey, optical_flow
from .data.clips.stabilize import Stabilizer, look_up, normalized

#: Side of the face in pixels at which movements are looked for, and the margin about it that the flow needs.
FACE, MARGIN = 80, 8
#: Cells along a side of the face.
GRID = 8
#: Frames in a row in which a head is lost before it is looked for anew.
_LOST = 3


class Track(NamedTuple):
    """What is followed through a video of T frames."""

    cells: np.ndarray
    """(T, 8, 8, 2): where the cells have gone, right and down, in pixels of a face of 80."""
    light: np.ndarray
    """(T,): mean grey level of the face."""
    head: np.ndarray
    """(T, 4, 2): where the corners of the face have gone with the head, in pixels of a face of 80."""
    lost: np.ndarray
    """(T,), bool: the head could not be followed."""


def _prepared(frame: np.ndarray, box: Box) -> np.ndarray:
    face = cut(frame, box, MARGIN / FACE, FACE + 2 * MARGIN)
    return normalized(cv2.GaussianBlur(grey(face), (0, 0), 1.0))


def _moved(box: Box, transform: np.ndarray) -> Box:
    """Where a similarity (2, 3) takes a box, which stays upright."""
    x, y = transform @ (box.x + box.side / 2, box.y + box.side / 2, 1)
    side = box.side * float(np.hypot(transform[0, 0], transform[1, 0]))
    return Box(float(x) - side / 2, float(y) - side / 2, side)


class _Key:
    """A frame over which others are laid, and where cells and head were in it."""

    def __init__(self, frame: np.ndarray, box: Box, cells: np.ndarray, head: np.ndarray):
        self.box, self.cells, self.head = box, cells, head
        self.stabilizer, self.prepared = Stabilizer(frame, box), _prepared(frame, box)
        self._corners = np.array(
            [[box.x + i * box.side, box.y + j * box.side, 1] for i in (0, 1) for j in (0, 1)]
        )

    def cells_of(self, frame: np.ndarray, transform: np.ndarray) -> np.ndarray:
        laid_over = look_up(frame, transform)
        inside, side = slice(MARGIN, MARGIN + FACE), FACE // GRID
        flow = optical_flow(self.prepared, _prepared(laid_over, self.box))[inside, inside]
        return self.cells + flow.reshape(GRID, side, GRID, side, 2).mean((1, 3))

    def head_of(self, transform: np.ndarray) -> np.ndarray:
        gone = (transform @ self._corners.T).T - self._corners[:, :2]
        return self.head + gone * (FACE / self.box.side)


class Follower:
    """Follows a face through a video, frame by frame, and keeps two of them.

    Every frame is laid over a key frame, first the one in which the face was found. Where that fails, since the head
    has turned, the frame before is the next key.

    Args:
        reference: the frame (H, W, 3), uint8, RGB, in which the face was found.
        box: the face in it.
        stabilize: False takes the head to keep still.
    """

    def __init__(self, reference: np.ndarray, box: Box, stabilize: bool = True):
        self.stabilize = stabilize
        self._key = _Key(reference, box, np.zeros((GRID, GRID, 2)), np.zeros((4, 2)))
        self._before: np.ndarray | None = None
        self.boxes: list[Box] = []
        """The face in every frame; where it is lost, where it was."""
        self.left: dict[int, str] = {}
        """Numbers of the frames in which the head could not be followed, and why."""
        self._cells: list[np.ndarray] = []
        self._heads: list[np.ndarray] = []
        self._light: list[float] = []

    def __call__(self, frame: np.ndarray) -> None:
        """Take the next frame (H, W, 3), uint8, RGB."""
        key, transform, failure = self._key, np.eye(2, 3), None
        if self.stabilize:
            transform, failure = key.stabilizer.find(frame)
            if failure is not None and self._before is not None:
                key = _Key(self._before, self.boxes[-1], self._cells[-1], self._heads[-1])
                transform, second = key.stabilizer.find(frame)
                if second is None:
                    self._key, failure = key, None
        number = len(self.boxes)
        if failure is not None and all(number - i in self.left for i in range(1, _LOST + 1)):
            # Whatever happened meanwhile: it is followed anew, from where it was.
            self._key = _Key(frame, find_face(frame) or self.boxes[-1], self._cells[-1], self._heads[-1])
            transform, failure = np.eye(2, 3), None
        if failure is None:
            self.boxes.append(_moved(self._key.box, transform))
            self._cells.append(self._key.cells_of(frame, transform))
            self._heads.append(self._key.head_of(transform))
            self._before = frame
        else:
            self.left[number] = failure
            self.boxes.append(self.boxes[-1] if self.boxes else self._key.box)
            self._cells.append(self._cells[-1] if self._cells else self._key.cells)
            self._heads.append(self._heads[-1] if self._heads else self._key.head)
            self._before = None
        self._light.append(float(cut(frame, self.boxes[-1], 0, None).mean()))

    def track(self) -> Track:
        """What was followed so far."""
        lost = np.isin(np.arange(len(self.boxes)), list(self.left))
        return Track(np.array(self._cells), np.array(self._light), np.array(self._heads), lost)
