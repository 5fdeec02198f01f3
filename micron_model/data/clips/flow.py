"""Optical flow between frames of a clip, and what recognizers are given of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from .inputs import UnusableClip

#: Farnebäck's method as the authors of SLSTT call it: pyramid, levels, window, iterations, neighbourhood and its σ.
_FARNEBACK = (0.5, 3, 15, 3, 5, 1.2)


def grey(image: np.ndarray) -> np.ndarray:
    """An image (3, H, W), uint8, RGB, as (H, W), uint8."""
    return cv2.cvtColor(np.ascontiguousarray(image.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)


def optical_flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Where each pixel of a grey frame (H, W), uint8, has gone in another: (H, W, 2), right and down, in pixels.

    By Farnebäck's method (Two-Frame Motion Estimation Based on Polynomial Expansion, SCIA 2003).
    """
    return cv2.calcOpticalFlowFarneback(first, second, None, *_FARNEBACK, 0)  # type: ignore[call-overload]


def flow_less_median(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Optical flow between two images (3, H, W), uint8, RGB, less its median: fp32 (2, H, W), in pixels."""
    flow = optical_flow(grey(first), grey(second)).transpose(2, 0, 1)
    return np.ascontiguousarray(flow - np.median(flow, (1, 2), keepdims=True), dtype=np.float32)


def coded_flow(flow: np.ndarray) -> np.ndarray:
    """Flow (H, W, 2) as an image (3, H, W), uint8, RGB.

    Its hue is the direction, its value the length, stretched from the shortest to the longest of the image, as the
    authors have it: where nothing moves, what is seen is noise. Flow that is everywhere the same is black.
    """
    length, angle = cv2.cartToPolar(flow[..., 0], flow[..., 1], angleInDegrees=True)
    shortest = length.min()
    span = max(float(length.max() - shortest), np.finfo(np.float32).tiny)
    hsv = np.empty((*length.shape, 3), np.uint8)
    hsv[..., 0] = np.minimum(angle / 2, 179)  # 360° are 180 in OpenCV's uint8
    hsv[..., 1] = 255
    hsv[..., 2] = (length - shortest) / span * 255
    return np.ascontiguousarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).transpose(2, 0, 1))


def between(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """The frame at ``share`` of the way from one frame (3, H, W), uint8, RGB, to another.

    The mean, by nearness, of both, each warped along its flow to that moment.
    """
    height, width = first.shape[1:]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    mixed = np.zeros((height, width, 3), np.float32)
    for image, other, way in ((first, second, share), (second, first, 1 - share)):
        flow = way * optical_flow(grey(image), grey(other))
        pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
        warped = cv2.remap(
            pixels,
            columns - flow[..., 0],
            rows - flow[..., 1],
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        mixed += (1 - way) * warped
    return np.ascontiguousarray(np.rint(mixed).astype(np.uint8).transpose(2, 0, 1))


def shares_of_gaps(there: int, wanted: int) -> list[int]:
    """How many frames to insert into each of the gaps between ``there`` frames, so that there are ``wanted``.

    As many into every gap as fit, and one each of the rest into the gaps in the middle, as the authors of SLSTT do it.

    Raises:
        ValueError: there is one frame alone, and so no gap, or none.
    """
    if there >= wanted:
        return [0] * (there - 1)
    if there < 2:
        raise ValueError(f"{there} frame has no neighbour to insert others between; {wanted} are needed")
    each, rest = divmod(wanted - there, there - 1)
    first = there // 2 - rest // 2
    return [each + (first <= gap < first + rest) for gap in range(there - 1)]


def filled(frames: np.ndarray, wanted: int) -> np.ndarray:
    """Frames (T, 3, H, W), uint8, RGB, and between them as many more as it takes to have ``wanted``.

    Where the authors of SLSTT interpolate by a network (RIFE), these are :func:`between` their neighbours.
    """
    filled_in = [frames[0]]
    for gap, count in enumerate(shares_of_gaps(len(frames), wanted)):
        first, second = frames[gap], frames[gap + 1]
        filled_in += [between(first, second, (i + 1) / (count + 1)) for i in range(count)]
        filled_in.append(second)
    return np.stack(filled_in)


@dataclass(frozen=True)
class OnsetApexFlow:
    """Flow from onset to apex less its median, fp32 (2, size, size), in pixels: what moves otherwise than the face."""

    size: int

    @property
    def key(self) -> str:
        return f"flow from onset to apex, {self.size} pixels"

    def frames(self, onset: int, apex: int, offset: int) -> tuple[int, ...]:
        return onset, apex

    def encode(self, faces: np.ndarray) -> np.ndarray:
        return flow_less_median(*faces)


@dataclass(frozen=True)
class ImagesOfClip:
    """What SLSTT looks at: eleven images of a clip about its apex, uint8 (count, 3, side, side), RGB."""

    side: int = 384
    """Of an image in pixels; flow is computed in the pixels of the frames."""
    count: int = 11
    """Images of a clip."""
    look: Literal["flow", "frames"] = "flow"
    """Flow from the onset to each frame, coded by :func:`coded_flow`; or the frames themselves."""

    size = None

    @property
    def key(self) -> str:
        return f"{self.count} images of {self.look}, {self.side} pixels"

    def frames(self, onset: int, apex: int, offset: int) -> tuple[int, ...]:
        """The onset, and up to ``count`` frames about the apex: from max(apex − count//2, onset + 1) on."""
        if not onset < apex <= offset:
            raise UnusableClip(
                f"onset {onset}, apex {apex}, offset {offset}: the apex must come after the onset, by the offset"
            )
        first = max(apex - self.count // 2, onset + 1)
        last = min(first + self.count - 1, offset)
        if last == first and self.count > 1:
            raise UnusableClip(
                f"onset {onset}, apex {apex}, offset {offset} leave one frame; others are put between two or more"
            )
        return onset, *range(first, last + 1)

    def encode(self, faces: np.ndarray) -> np.ndarray:
        onset, images = grey(faces[0]), filled(faces[1:], self.count)
        if self.look == "flow":
            images = np.stack([coded_flow(optical_flow(onset, grey(image))) for image in images])
        return np.stack([_resized(image, self.side) for image in images])


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    how = cv2.INTER_AREA if side < image.shape[1] else cv2.INTER_LINEAR
    resized = cv2.resize(np.ascontiguousarray(image.transpose(1, 2, 0)), (side, side), interpolation=how)
    return np.ascontiguousarray(resized.transpose(2, 0, 1))
