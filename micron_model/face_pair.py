"""A face before and after it moved: cut, and laid over each other."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from .data.clips.faces import Box, cut, find_face, place_in_cut
from .data.clips.frames import FrameError
from .data.clips.images import depth_of, read_whole_image
from .data.clips.stabilize import Stabilizer


class Faces(NamedTuple):
    """A face before and after, each (3, size, size), uint8, RGB."""

    onset: np.ndarray
    apex: np.ndarray
    """Cut where the face was at the onset."""
    registered: np.ndarray
    """The apex laid over the onset."""
    place: Box | None
    """The face, in pixels of these; None where none was found."""


def compare(
    onset: Path, apex: Path, size: int, margin: float = 0.1, *, stabilize: bool = True
) -> tuple[Faces, list[str]]:
    """Two pictures of one face: the face is found in the first, and the second laid over it.

    Args:
        size: side of a face, in pixels.
        margin: added on each side of the box of the face, as a share of its side.
        stabilize: lay the apex over the onset.

    Returns:
        (the faces, what did not succeed, in words: no face was found, and the central square is taken; the apex cannot
        be laid over the onset, and is left as it is).

    Raises:
        FrameError: one is no picture, or they differ in size.
    """
    pair = (onset, apex)
    first, second = (read_whole_image(path, depth_of(pair)) for path in pair)
    if first.shape != second.shape:
        sizes = ["×".join(map(str, image.shape[1::-1])) for image in (first, second)]
        raise FrameError(
            f"{onset} and {apex} differ in size ({sizes[0]} and {sizes[1]} pixels): frames of one clip have one size"
        )
    notes, box = [], find_face(first)
    place = None if box is None else place_in_cut(margin, size)
    if box is None:
        notes.append(f"{onset}: no face was found: its central square is shown")
        height, width = first.shape[:2]
        side = min(height, width)
        box, margin = Box((width - side) / 2, (height - side) / 2, side), 0.0
    registered = second
    if stabilize:
        registered, found = Stabilizer(first, box)(second)
        if found.failure is not None:
            notes.append(f"{apex} is not laid over {onset}: {found.failure}")
    before, after, over = (cut(image, box, margin, size) for image in (first, second, registered))
    return Faces(before, after, over, place), notes
