"""A head that keeps still: every frame of a clip registered to one of them, inside the box of the face.

Points on a grid are tracked by Lucas and Kanade's method (IJCAI 1981; pyramids after Bouguet, 2000) between frames that
are normalised locally, which takes the light out. A similarity (shift, rotation, scale) is fitted to their tracks by
weights that fall to zero with the distance from it (Tukey's biweight), on a scale so narrow that it follows the half of
the points that agree best. What moves in the face is outvoted so, and left as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from .faces import Box

#: Side in pixels to which the box of the face is brought; points lie on a grid in it.
_SIDE = 160
_STEP = 10
_WINDOW = 17
#: Side of the neighbourhood by whose mean and deviation a pixel is normalised, and the deviation that counts as none.
_NEIGHBOURHOOD, _FLAT = 19, 4.0
#: Fits after which a track's weight is settled; its scale over the median distance; the least scale, in pixels.
_FITS, _SCALE, _LEAST_SCALE = 12, 1.05, 0.04
#: Tracks within this distance of the fit agree with it, in pixels; what share must, at least.
_AGREES, _SHARE = 1.0, 0.35
#: A frame that lies farther than this from where it was looked for, in pixels, is looked for once more from there.
_NEAR = 1.0
#: The farthest that a head is followed: shift over the side of its box, rotation in radians, log of the scale.
_FARTHEST = (0.5, 0.5, 0.35)


class Registration(NamedTuple):
    """How a frame lies over the reference."""

    transform: np.ndarray
    """(2, 3), from pixels (x, y, 1) of the reference to those of the frame; the identity where it failed."""
    failure: str | None
    """Why none was found, in words."""


def normalized(grey: np.ndarray) -> np.ndarray:
    """Grey levels (H, W) less the mean of their neighbourhood, over its deviation: uint8, 128 the mean."""
    side = (_NEIGHBOURHOOD, _NEIGHBOURHOOD)
    detail = grey.astype(np.float32)
    detail -= cv2.blur(detail, side, borderType=cv2.BORDER_REFLECT)
    deviation = cv2.sqrt(cv2.blur(detail * detail, side, borderType=cv2.BORDER_REFLECT))
    return cv2.convertScaleAbs(cv2.divide(detail, deviation + _FLAT, scale=40) + 128)


def _fit(points: np.ndarray, tracked: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The similarity (2, 3) that most tracks agree with, and their share; None if no four do."""
    z, target = points @ (1, 1j), tracked @ (1, 1j)  # of complex numbers a similarity is a·z + b
    a, b = complex(start[0, 0], start[1, 0]), complex(start[0, 2], start[1, 2])
    halves = [(len(z) - 1) // 2, len(z) // 2]
    for _ in range(_FITS):
        distance = np.abs(a * z + b - target)
        # The median; np.median takes as long as all the rest of a fit.
        scale = max(_SCALE * float(np.partition(distance, halves)[halves].mean()), _LEAST_SCALE)
        weight = np.maximum(1 - (distance / scale) ** 2, 0) ** 2
        total = weight.sum()
        if np.count_nonzero(weight) < 4:
            return None
        middle, target_middle = weight @ z / total, weight @ target / total
        offset = z - middle
        weighted = weight * offset.conj()
        a = weighted @ (target - target_middle) / (weighted @ offset).real
        b = target_middle - a * middle
    share = float((np.abs(a * z + b - target) < _AGREES).mean())
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]]), share


def _compose(second: np.ndarray, first: np.ndarray) -> np.ndarray:
    """``second`` after ``first``, both (2, 3)."""
    return np.column_stack([second[:, :2] @ first[:, :2], second[:, :2] @ first[:, 2] + second[:, 2]])


class Stabilizer:
    """Registers frames, one after another, to a reference.

    A frame is looked for near the one before it, and anywhere if it is not there.

    Args:
        reference: the frame (H, W, 3), uint8, RGB, that others are laid over.
        box: the face in it; the whole frame if not given.
    """

    def __init__(self, reference: np.ndarray, box: Box | None = None):
        height, width = reference.shape[:2]
        self.shape = reference.shape
        left, top, side = box or Box(0, 0, min(height, width))
        step = side / _SIDE
        # From pixels of the brought box to those of the frame; (0, 0) is the middle of the first pixel of either.
        self._from_box = np.array([[step, 0, left + (step - 1) / 2], [0, step, top + (step - 1) / 2]])
        self._to_box = cv2.invertAffineTransform(self._from_box)
        self._shrinks = step > 1.5
        line = np.arange(_STEP, _SIDE - _STEP + 1, _STEP, dtype=np.float32)
        self._points = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
        self._reference = self._seen(reference, np.eye(2, 3))
        self._last = np.eye(2, 3)

    def _seen(self, frame: np.ndarray, transform: np.ndarray) -> np.ndarray:
        """The box as ``transform`` finds it in the frame, normalised."""
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if self._shrinks:  # or the pixels between those that are looked up would be passed over
            grey = cv2.blur(grey, (round(self._from_box[0, 0]),) * 2)
        return normalized(look_up(grey, _compose(transform, self._from_box), (_SIDE, _SIDE)))

    def _track(self, frame: np.ndarray, near: np.ndarray, levels: int) -> tuple[np.ndarray, float] | None:
        """The transform of a frame that is near ``near``, and the share of the points that agree."""
        tracked, found, _ = cv2.calcOpticalFlowPyrLK(
            self._reference, self._seen(frame, near), self._points[:, None], None,  # type: ignore[call-overload]
            winSize=(_WINDOW, _WINDOW), maxLevel=levels,
            criteria=(cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 12, 0.01), minEigThreshold=1e-3,
        )  # fmt: skip
        there = found[:, 0] > 0
        points, tracked = self._points[there].astype(np.float64), tracked[there, 0].astype(np.float64)
        if len(points) < 4:
            return None
        start: np.ndarray | None = np.eye(2, 3)
        if levels > 1:
            start, _ = cv2.estimateAffinePartial2D(
                points, tracked, method=cv2.RANSAC, ransacReprojThreshold=1
            )
        fitted = None if start is None else _fit(points, tracked, start)
        if fitted is None:
            return None
        in_frame = _compose(self._from_box, _compose(fitted[0], self._to_box))
        return _compose(near, in_frame), fitted[1] * len(points) / len(self._points)

    def find(self, frame: np.ndarray) -> Registration:
        """How a frame (H, W, 3), uint8, RGB, lies over the reference; one of another size is a failure."""
        if frame.shape != self.shape:
            sizes = ("×".join(map(str, shape[1::-1])) for shape in (frame.shape, self.shape))
            return Registration(np.eye(2, 3), "it has {} pixels and the reference {}".format(*sizes))
        tracked = self._track(frame, self._last, levels=1)
        if tracked is None or tracked[1] < _SHARE:
            tracked = self._track(frame, np.eye(2, 3), levels=3)
        if tracked is not None and self._apart(tracked[0], self._last) > _NEAR:
            tracked = self._track(frame, tracked[0], levels=1)
        failure = self._failure(tracked)
        if failure is not None:
            self._last = np.eye(2, 3)
            return Registration(np.eye(2, 3), failure)
        assert tracked is not None
        self._last = tracked[0]
        return Registration(tracked[0], None)

    def _apart(self, one: np.ndarray, other: np.ndarray) -> float:
        """The farthest that the two take a corner of the box apart, in pixels of the brought box."""
        left, top, right, bottom = (*self._from_box[:, 2], *(self._from_box @ (_SIDE, _SIDE, 1)))
        corners = np.array([[left, right, left, right], [top, top, bottom, bottom], [1, 1, 1, 1]])
        return float(np.linalg.norm((one - other) @ corners, axis=0).max() / self._from_box[0, 0])

    def _failure(self, tracked: tuple[np.ndarray, float] | None) -> str | None:
        if tracked is None or tracked[1] < _SHARE:
            share = 0.0 if tracked is None else tracked[1]
            return (
                f"{share:.0%} of the points of the face move as one head would; {_SHARE:.0%} must: it may be turned "
                "away, hidden or blurred"
            )
        transform = tracked[0]
        in_box = _compose(self._to_box, _compose(transform, self._from_box))
        middle = np.array([_SIDE / 2, _SIDE / 2, 1])
        of_head = (
            float(np.abs(in_box @ middle - middle[:2]).max() / _SIDE),
            abs(float(np.arctan2(transform[1, 0], transform[0, 0]))),
            abs(float(np.log(max(np.hypot(transform[0, 0], transform[1, 0]), 1e-9)))),
        )
        if all(x <= farthest for x, farthest in zip(of_head, _FARTHEST, strict=True)):
            return None
        return (
            f"the head has gone farther than it is followed: {of_head[0]:.0%} of its width, "
            f"{np.rad2deg(of_head[1]):.0f}°, {np.exp(of_head[2]):.2f} times as large or small"
        )

    def __call__(self, frame: np.ndarray) -> tuple[np.ndarray, Registration]:
        """A frame (H, W, 3), uint8, RGB, laid over the reference; as it is where that failed.

        What comes from outside repeats the edge.
        """
        found = self.find(frame)
        if found.failure is not None:
            return frame, found
        return look_up(frame, found.transform), found


def look_up(image: np.ndarray, transform: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """``image`` (H, W) or (H, W, 3) at the places to which a transform takes the pixels of the result.

    By cubic interpolation; what lies outside repeats the edge.

    Args:
        image: uint8.
        transform: (2, 3), for example that of a :class:`Registration`.
        size: width and height of the result; those of the image if not given.
    """
    return cv2.warpAffine(
        image, transform, size or (image.shape[1], image.shape[0]), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip


def stabilized(frames: np.ndarray, box: Box | None = None) -> tuple[np.ndarray, list[str | None]]:
    """Frames (T, 3, H, W), uint8, RGB, each laid over the first; and for each why it was left as it is, or None."""
    images = np.ascontiguousarray(frames.transpose(0, 2, 3, 1))
    stabilizer = Stabilizer(images[0], box)
    laid = [stabilizer(image) for image in images[1:]]
    over = np.stack([images[0], *(image for image, _ in laid)]).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(over), [None, *(found.failure for _, found in laid)]
