"""A face and the same face locally moved: pairs of known movement, made of any frame, to learn from without labels."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from .nuisances import compression, light, sensor_noise, to_uint8

#: Displacements of a pair at most, and the chance of each beyond the first.
_MOST, _CHANCE = 6, 0.5
#: Least and most of: the spread of a displacement, in sides of the frame; the largest amplitude of a pair, in pixels of
#: a 64×64 frame; the share of it that each has.
_SPREAD, _AMPLITUDE, _SHARE = (0.06, 0.185), (0.4, 2.8), (0.4, 1.0)
#: No displacement is centred nearer to the edge, in sides of the frame.
_EDGE = 0.1
#: What a registration leaves: standard deviation of the shift in pixels of a 64×64 frame, and of the rotation.
_LEFT = 0.1, 0.002
#: Of the face that both views are of: standard deviations of rotation and shift (in half sides), ranges of zoom, of the
#: exponent of its grey levels, and of each channel's gain.
_ROTATION, _SHIFT, _ZOOM, _GAMMA, _GAIN = 0.12, 0.08, (0.75, 1.2), (0.7, 1.4), (0.85, 1.15)
#: The largest deviation of sensor noise, in grey levels, and the range of JPEG's quality.
_NOISE, _QUALITY = 6.0, (70, 96)


class WarpedPair(NamedTuple):
    """Two views of one face, the second moved."""

    still: np.ndarray
    """(3, S, S), uint8."""
    warped: np.ndarray
    """The same face, parts of it displaced, under a light, noise and compression of its own."""
    moved: np.ndarray
    """How far each patch moved (N,), fp32, in pixels of a 64×64 frame: the mean length of the displacement."""


def _field(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A displacement (S, S, 2) in sides of the frame: a sum of a few Gaussians, each in a direction of its own.

    They are centred where there is something to see, with a chance that is in proportion to the gradient of the face
    (S, S): it is brows, eyes, nose and mouth that move.
    """
    size = len(face)
    chance = np.hypot(cv2.Sobel(face, cv2.CV_32F, 1, 0), cv2.Sobel(face, cv2.CV_32F, 0, 1)).astype(np.float64)
    edge = round(_EDGE * size)
    chance[:edge] = chance[-edge:] = chance[:, :edge] = chance[:, -edge:] = 0
    chance = (chance + 1e-6).ravel()
    centres = np.stack(np.divmod(rng.choice(len(chance), _MOST, p=chance / chance.sum()), size), 1) / size
    count = 1 + int((rng.random(_MOST - 1) < _CHANCE).sum())
    places = (np.arange(size) + 0.5) / size
    amplitude = np.exp(rng.uniform(*np.log(_AMPLITUDE))) / 64
    field = np.zeros((size, size, 2))
    for y, x in centres[:count]:
        spread = rng.uniform(*_SPREAD)
        across, down = (np.exp(-((places - centre) ** 2) / (2 * spread**2)) for centre in (x, y))
        angle = rng.uniform(0, 2 * np.pi)
        reach = amplitude * rng.uniform(*_SHARE)
        field += reach * np.outer(down, across)[..., None] * (np.cos(angle), np.sin(angle))
    return field


def warped_pair(frame: np.ndarray, rng: np.random.Generator, patch_size: int) -> WarpedPair:
    """A view of a face and another in which parts of it have moved, from one frame (3, S, S), uint8, RGB.

    Both are of the frame turned, zoomed, mirrored and tinted alike; light, noise and compression are drawn for each,
    and so is the little shift and rotation that a registration would leave. Each is looked up in the frame once, so
    that neither is sharper than the other.
    """
    size = frame.shape[-1]
    image = frame.transpose(1, 2, 0).astype(np.float32) / 255
    image = 255 * image ** rng.uniform(*_GAMMA) * rng.uniform(*_GAIN, 3).astype(np.float32)
    angle, zoom, shift = rng.normal(0, _ROTATION), rng.uniform(*_ZOOM), rng.normal(0, _SHIFT / 2, 2)
    cos, sin, mirror = np.cos(angle), np.sin(angle), rng.choice([-1.0, 1.0])
    linear = zoom * np.array([[mirror * cos, -sin], [mirror * sin, cos]])
    line = (np.arange(size) + 0.5) / size - 0.5
    places = np.stack(np.meshgrid(line, line), -1)

    def seen(displacement: np.ndarray) -> np.ndarray:
        source = ((places - displacement) @ linear.T + shift + 0.5) * size - 0.5
        x, y = np.ascontiguousarray(source.transpose(2, 0, 1), np.float32)
        return cv2.remap(image, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)

    field = _field(seen(np.zeros(2)).mean(2), rng)
    views = []
    for displacement in (np.zeros(2), field):
        left_shift, left_angle = rng.normal(0, _LEFT[0] / 64, 2), rng.normal(0, _LEFT[1])
        turned = left_shift + left_angle * np.stack([-places[..., 1], places[..., 0]], -1)
        view = seen(displacement + turned).transpose(2, 0, 1)[None]
        view = sensor_noise(light(view, rng), rng, deviation=rng.uniform(0, _NOISE))
        views.append(to_uint8(compression(view, rng, quality=int(rng.integers(*_QUALITY))))[0])
    grid = size // patch_size
    length = (
        64 * np.linalg.norm(field, axis=2).reshape(grid, patch_size, grid, patch_size).mean((1, 3)).ravel()
    )
    return WarpedPair(views[0], views[1], length.astype(np.float32))
