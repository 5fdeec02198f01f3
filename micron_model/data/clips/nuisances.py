"""What changes between the frames of a real clip although no face moves: light, the head, compression, sensor noise.

Each nuisance is a function of frames (T, 3, H, W) in grey levels of 255, uint8 or floating, and of a numpy Generator,
and draws for every frame anew; it gives float64 of the same shape, not clipped. :func:`disturb` applies those of a
named level in the order in which they come about, and rounds.
"""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np

from .synthetic import pixels, sample_cubic


class Nuisance(Protocol):
    """A change of frames (T, 3, H, W), in grey levels, that is no movement of the face."""

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The frames as they are seen, float64."""
        ...


def head_motion(
    frames: np.ndarray, rng: np.random.Generator, *, shift: float = 0.5, rotation: float = 0.005
) -> np.ndarray:
    """Each square frame shifted, and rotated about its centre; what comes from outside repeats the edge.

    Args:
        frames: (T, 3, S, S).
        rng: source of randomness.
        shift: standard deviation in x and in y, in pixels of a 64×64 frame.
        rotation: standard deviation in radians.
    """
    size = frames.shape[-1]
    centre = (size - 1) / 2
    x, y = (axis - centre for axis in pixels(size))
    moved = np.empty(frames.shape)
    for i, frame in enumerate(frames):
        right, down = rng.normal(0, shift * size / 64, 2)
        cos, sin = np.cos(angle := rng.normal(0, rotation)), np.sin(angle)
        from_x = cos * (x - right) + sin * (y - down) + centre
        from_y = cos * (y - down) - sin * (x - right) + centre
        moved[i] = sample_cubic(frame.transpose(1, 2, 0), from_x, from_y).transpose(2, 0, 1)
    return moved


def light(
    frames: np.ndarray,
    rng: np.random.Generator,
    *,
    gain: float = 0.1,
    gradient: float = 0.1,
    offset: float = 4.0,
) -> np.ndarray:
    """Each frame times 1 + g + g_x·x + g_y·y, plus an offset; x and y run from −1 to 1 over the frame.

    Args:
        frames: (T, 3, H, W).
        rng: source of randomness.
        gain: standard deviation of g.
        gradient: standard deviation of g_x and of g_y.
        offset: standard deviation of the offset, in grey levels.
    """
    count, _, height, width = frames.shape
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    g, g_x, g_y, added = (
        rng.normal(0, deviation, (count, 1, 1)) for deviation in (gain, gradient, gradient, offset)
    )
    return frames * (1 + g + g_x * x + g_y * y)[:, None] + added[:, None]


def sensor_noise(frames: np.ndarray, rng: np.random.Generator, *, deviation: float = 5.0) -> np.ndarray:
    """Frames (T, 3, H, W) and normal noise of that standard deviation, in grey levels, on every value."""
    return frames + rng.normal(0, deviation, frames.shape)


def compression(frames: np.ndarray, rng: np.random.Generator, *, quality: int = 80) -> np.ndarray:
    """Each frame of (T, 3, H, W) after JPEG of that quality (0 to 100), chroma at half resolution; nothing is drawn."""
    settings = [
        cv2.IMWRITE_JPEG_QUALITY, quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    ]  # fmt: skip
    decoded = np.empty(frames.shape)
    for i, frame in enumerate(to_uint8(frames)):
        written = cv2.imencode(".jpg", np.ascontiguousarray(frame[::-1].transpose(1, 2, 0)), settings)[1]
        image = cv2.imdecode(written, cv2.IMREAD_COLOR)
        assert image is not None
        decoded[i] = image.transpose(2, 0, 1)[::-1]
    return decoded


#: Nuisances of each level, in the order in which they come about: before the camera, in it, behind it. The frames of
#: synthetic clips have noise of their own already.
LEVELS: dict[str, tuple[Nuisance, ...]] = {
    "none": (),
    "light": (light,),
    "head": (head_motion,),
    "compression": (compression,),
    "noise": (sensor_noise,),
    "all": (head_motion, light, sensor_noise, compression),
}


def to_uint8(frames: np.ndarray) -> np.ndarray:
    """Grey levels rounded, and clipped to [0, 255]."""
    return frames.round().clip(0, 255).astype(np.uint8)


def disturb(frames: np.ndarray, level: str, rng: np.random.Generator) -> np.ndarray:
    """Frames (T, 3, S, S), uint8, under the nuisances of a level of ``LEVELS``, each drawn for every frame: uint8.

    Raises:
        ValueError: there is no such level.
    """
    if level not in LEVELS:
        raise ValueError(f"level={level!r} is not one of {', '.join(map(repr, LEVELS))}")
    disturbed = frames
    for nuisance in LEVELS[level]:
        disturbed = nuisance(disturbed, rng)
    return to_uint8(disturbed)
