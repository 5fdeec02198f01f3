"""The face in a frame: found, cut, and the frame in which it differs most from the first."""

from __future__ import annotations

import functools
from typing import NamedTuple

import cv2
import numpy as np
import skimage.data
import skimage.feature
import torch
from torch import Tensor

from .motion import pair_motion

#: Height in pixels to which a frame is shrunk before the face is looked for.
_SEARCHED = 320


#: Half the width and half the height of a face's outline, an ellipse about the middle of its box, in sides of the box:
#: from ear to ear, and from the hair to the chin, as the boxes of :func:`find_face` lie.
_OUTLINE = 0.52, 0.7


class Box(NamedTuple):
    """A square in pixels of a frame."""

    x: float
    """Of its left side."""
    y: float
    """Of its upper side."""
    side: float


@functools.cache
def _detector() -> skimage.feature.Cascade:
    return skimage.feature.Cascade(skimage.data.lbp_frontal_face_cascade_filename())


def find_face(image: np.ndarray) -> Box | None:
    """The largest face in an image (H, W, 3), uint8, RGB, by scikit-image's cascade; None if there is none."""
    height, width = image.shape[:2]
    scale = min(1.0, _SEARCHED / height)
    sides = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, sides, interpolation=cv2.INTER_AREA)
    shortest, longest = (int(share * min(small.shape[:2])) for share in (0.2, 1.0))
    if shortest < 24:  # the cascade's window
        return None
    found = _detector().detect_multi_scale(
        small, scale_factor=1.1, step_ratio=1, min_size=(shortest, shortest), max_size=(longest, longest)
    )
    if not found:
        return None
    face = max(found, key=lambda f: f["width"])
    return Box(face["c"] / scale, face["r"] / scale, face["width"] / scale)


def cut(image: np.ndarray, box: Box, margin: float, size: int | None) -> np.ndarray:
    """The box and a margin of an image (H, W, 3) as uint8 (3, size, size); what lies outside repeats the edge.

    Without a size, in the pixels of the image.
    """
    side = max(1, round(box.side * (1 + 2 * margin)))
    left, top = round(box.x - box.side * margin), round(box.y - box.side * margin)
    height, width = image.shape[:2]
    above, below, before, after = (max(0, x) for x in (-top, top + side - height, -left, left + side - width))
    padded = np.pad(image, ((above, below), (before, after), (0, 0)), mode="edge")
    face = padded[top + above :, left + before :][:side, :side]
    if size is not None and side != size:
        how = cv2.INTER_AREA if size < side else cv2.INTER_CUBIC
        face = cv2.resize(face, (size, size), interpolation=how)
    return np.ascontiguousarray(face.transpose(2, 0, 1))


def inside_outline(face: Box, size: int, patch_size: int) -> Tensor:
    """Which patches (N, N), bool, of a square frame are of the face: those with their middle inside its outline.

    What lies behind a head moves when the head is held still.

    Args:
        face: as :func:`find_face` gives it, in pixels of the frame.
        size: side of the frame.
        patch_size: side of a patch.
    """
    middles = torch.arange(patch_size / 2, size, patch_size, dtype=torch.float64)
    x, y = ((middles - start) / face.side - 0.5 for start in (face.x, face.y))
    return (x / _OUTLINE[0]) ** 2 + (y[:, None] / _OUTLINE[1]) ** 2 < 1


def place_in_cut(margin: float, size: int) -> Box:
    """Where the box lies in what :func:`cut` gives with ``margin`` and ``size``, in its pixels."""
    side = size / (1 + 2 * margin)
    return Box(side * margin, side * margin, side)


def square_about_nose(landmarks: np.ndarray) -> Box:
    """The square that SLSTT's authors cut, from the 68 landmarks (68, 2) of iBUG's scheme, x and y in pixels.

    Its centre is the tip of the nose (30), its side 2·y8 − y19 − y57: from the brow to the chin, and from the lower lip
    to the chin.

    Raises:
        ValueError: it would have no positive side.
    """
    (x, y), heights = landmarks[30], landmarks[:, 1]
    side = float(2 * heights[8] - heights[19] - heights[57])
    if not (np.isfinite(landmarks).all() and side > 0):
        raise ValueError(f"2·y8 − y19 − y57 = {side:g}; landmarks of an upright face give a positive side")
    return Box(float(x) - side / 2, float(y) - side / 2, side)


def spot_apex(frames: Tensor, patch_size: int = 8) -> int:
    """The frame of a clip (T, 3, S, S), uint8, that differs most from its first, by the curve of the differences.

    The curve is ``pair_motion`` against the first frame, smoothed over three frames against noise (ours).
    """
    curve = motion_curve(frames, patch_size)
    smooth = torch.nn.functional.avg_pool1d(curve[None], 3, 1, 1, count_include_pad=False)[0]
    return int(smooth.argmax())


def motion_curve(frames: Tensor, patch_size: int = 8) -> Tensor:
    """Motion (T,) of each frame of a clip (T, 3, S, S), uint8, against its first, in grey levels of 255."""
    return pair_motion(frames[:1].expand_as(frames), frames, patch_size)
