"""Clips of known truth: real photographs, warped as a micro-expression would.

Two photographs that anyone may use (scikit-image's ``astronaut``, NASA, public domain; matplotlib's sample of
Grace Hopper, an official US Navy portrait) are cut to the face. An identity is a photograph under an affine map,
a change of colour and a mild blur; a clip moves some of the face's regions by a smooth local displacement along
an onset–apex–offset course, and adds sensor noise to every frame.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.ndimage

from .faces import Box
from .frames import read_whole_image

FPS = 60.0
LENGTH = 44
#: Displacement at the apex in pixels of a 64×64 frame.
AMPLITUDE = (0.6, 2.0)
NOISE = 2.5
"""Standard deviation of the sensor noise in grey levels of 255."""

#: Regions of the face, (x, y) in the square of the detected face: 0 left or top, 1 right or bottom.
PLACES = {
    "brow left": (0.29, 0.21),
    "brow right": (0.73, 0.22),
    "lid left": (0.29, 0.32),
    "lid right": (0.73, 0.33),
    "nose wing left": (0.41, 0.61),
    "nose wing right": (0.62, 0.61),
    "lip corner left": (0.32, 0.77),
    "lip corner right": (0.69, 0.77),
}


class Movement(NamedTuple):
    """How a region moves: direction (x, y), y downwards, and share of the clip's amplitude."""

    place: str
    x: float
    y: float


#: What moves in each class, after the action units that define it.
CLASSES: dict[str, tuple[Movement, ...]] = {
    "happiness": (  # lip corners pulled up and out (AU12), lids tightened (AU6)
        Movement("lip corner left", -0.6, -0.8),
        Movement("lip corner right", 0.6, -0.8),
        Movement("lid left", 0.0, 0.4),
        Movement("lid right", 0.0, 0.4),
    ),
    "surprise": (  # brows (AU1+2) and upper lids (AU5) raised
        Movement("brow left", 0.0, -1.0),
        Movement("brow right", 0.0, -1.0),
        Movement("lid left", 0.0, -0.5),
        Movement("lid right", 0.0, -0.5),
    ),
    "disgust": (  # nose wings raised (AU9), brows lowered and drawn together (AU4)
        Movement("nose wing left", -0.3, -0.9),
        Movement("nose wing right", 0.3, -0.9),
        Movement("brow left", 0.4, 0.7),
        Movement("brow right", -0.4, 0.7),
    ),
}
#: Further movements, for a label that is asked for by name; :func:`synthetic_clips` draws on ``CLASSES`` alone.
FURTHER: dict[str, tuple[Movement, ...]] = {
    "sadness": (  # inner brows raised and drawn together (AU1+4), lip corners lowered (AU15)
        Movement("brow left", 0.6, -0.6),
        Movement("brow right", -0.6, -0.6),
        Movement("lip corner left", 0.0, 1.0),
        Movement("lip corner right", 0.0, 1.0),
    ),
    "fear": (  # brows (AU1+2) and upper lids (AU5) raised, lips stretched (AU20)
        Movement("brow left", 0.3, -0.7),
        Movement("brow right", -0.3, -0.7),
        Movement("lid left", 0.0, -0.6),
        Movement("lid right", 0.0, -0.6),
        Movement("lip corner left", -1.0, 0.1),
        Movement("lip corner right", 1.0, 0.1),
    ),
    "anger": (  # brows lowered and drawn together (AU4), lids (AU7) and lips (AU23) tightened
        Movement("brow left", 0.4, 0.8),
        Movement("brow right", -0.4, 0.8),
        Movement("lid left", 0.0, 0.5),
        Movement("lid right", 0.0, 0.5),
        Movement("lip corner left", 0.7, 0.0),
        Movement("lip corner right", -0.7, 0.0),
    ),
    "contempt": (Movement("lip corner left", -0.7, -0.6),),  # one lip corner tightened (AU14)
    "repression": (  # lip corners lowered (AU15) and pressed together (AU24)
        Movement("lip corner left", 0.5, 0.8),
        Movement("lip corner right", -0.5, 0.8),
    ),
    "others": (  # brows lowered and drawn together (AU4) alone
        Movement("brow left", 0.4, 0.8),
        Movement("brow right", -0.4, 0.8),
    ),
}
# Random numbers follow from a label's place here, so a new one goes last.
_MOVEMENTS = CLASSES | FURTHER
_SPREAD = 0.12  # standard deviation of a displacement, in sides of the face
_EYE = 0.06  # the same of a lid or an eye alone
_SACCADE = 3  # frames in which the eyes turn
_LATEST_ONSET = 8
_SOURCE = 256  # side of the cut photographs in pixels
_FACE = 0.72  # side of the detected face over the side of the cut


class Face(NamedTuple):
    """The square of a face in its photograph, in pixels."""

    top: float
    left: float
    side: float


# Found by scikit-image's cascade. All arithmetic is in float64 and of no library that chooses it by the processor: with
# OpenCV's, the frames of two machines were a quarter of a grey level apart.
_ASTRONAUT, _HOPPER = Face(66, 174, 96), Face(123, 166, 201)


def _cubic_weights(fraction: np.ndarray) -> tuple[np.ndarray, ...]:
    """Keys' kernel with a = −0.75, OpenCV's, at the distances 1 + t, t, 1 − t and 2 − t."""

    def near(t: np.ndarray) -> np.ndarray:
        return (1.25 * t - 2.25) * t * t + 1

    def far(t: np.ndarray) -> np.ndarray:
        return ((-0.75 * t + 3.75) * t - 6) * t + 3

    return far(1 + fraction), near(fraction), near(1 - fraction), far(2 - fraction)


def sample_cubic(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``image`` (H, W, 3) at the places (x, y), each (h, w), its border repeated: float64 (h, w, 3)."""
    height, width = image.shape[:2]
    pixels = image.reshape(-1, 3).astype(np.float64)
    left, top = np.floor(x), np.floor(y)
    columns = [np.clip(left + i, 0, width - 1).astype(np.intp) for i in range(-1, 3)]
    across = [w[..., None] for w in _cubic_weights(x - left)]
    result = np.zeros((*x.shape, 3))
    for i, down in enumerate(_cubic_weights(y - top), -1):
        row = np.clip(top + i, 0, height - 1).astype(np.intp) * width
        line = sum(w * pixels[row + column] for w, column in zip(across, columns, strict=True))
        result += down[..., None] * line
    return result


def pixels(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y, each (size, size), of the pixels of a frame."""
    y, x = np.mgrid[:size, :size].astype(np.float64)
    return x, y


@functools.cache
def _photographs() -> tuple[np.ndarray, ...]:
    """The faces of the photographs, RGB (256, 256, 3) in whole grey levels, the face at the centre."""
    import matplotlib.cbook
    import skimage.data

    hopper = read_whole_image(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    return cut_photograph(skimage.data.astronaut(), _ASTRONAUT), cut_photograph(hopper, _HOPPER)


def cut_photograph(image: np.ndarray, face: Face) -> np.ndarray:
    """An image (H, W, 3), uint8, as clips are made of: (256, 256, 3) in whole grey levels, the face at the centre."""
    step = face.side / _FACE / _SOURCE
    x, y = ((axis - _SOURCE / 2) * step for axis in pixels(_SOURCE))
    cut = sample_cubic(image, x + face.left + face.side / 2, y + face.top + face.side / 2)
    return cut.round().clip(0, 255)


@functools.lru_cache(maxsize=16)
def _neutral(clip: SyntheticClip, size: int) -> np.ndarray:
    """The identity of ``clip`` at rest, RGB (size, size, 3) in [0, 255], without noise."""
    rng = np.random.default_rng((clip.seed, clip.subject, 1))
    photograph = clip.photograph()
    # Blurred before it shrinks, so that sub-pixel motion moves grey levels and not aliases.
    blur = max(0.0, 0.5 * _SOURCE / size) * rng.uniform(0.8, 1.3)
    photograph = scipy.ndimage.gaussian_filter(photograph, (blur, blur, 0), mode="mirror")
    to_frame = clip._identity_map(size)
    places = np.stack(pixels(size)) - to_frame[:, 2, None, None]
    x, y = np.tensordot(np.linalg.inv(to_frame[:, :2]), places, 1)
    channels = [
        scipy.ndimage.map_coordinates(photograph[..., i], (y, x), order=1, mode="nearest") for i in range(3)
    ]
    gain, offset = rng.uniform(0.8, 1.15, 3), rng.normal(0, 8, 3)
    return np.stack(channels, -1) * gain + offset


@dataclass(frozen=True)
class Manner:
    """How people differ in what they do: what clips of a class do not have in common. The defaults are none of it."""

    amplitude: tuple[float, float] = AMPLITUDE
    """Displacement at the apex, from and to, in pixels of a 64×64 frame."""
    rise: tuple[int, int] = (8, 14)
    """Frames from onset to apex, from and to."""
    fall: tuple[int, int] = (10, 20)
    """Frames from apex to offset, from and to."""
    asymmetry: float = 0.0
    """Largest share by which one side of the face falls behind the other; which side is drawn too."""
    places: float = 0.0
    """Standard deviation of where it moves, in sides of the face."""
    directions: float = 0.0
    """Standard deviation of where to, in radians."""
    mixed: float = 0.0
    """Largest share of the amplitude with which another emotion shows at the same time."""
    blinks: float = 0.0
    """Chance of a blink between onset and offset."""
    gaze: float = 0.0
    """Chance that the eyes look elsewhere between onset and offset."""

    def __post_init__(self) -> None:
        if _LATEST_ONSET + self.rise[1] + self.fall[1] >= LENGTH:
            raise ValueError(
                f"rise={self.rise} and fall={self.fall}, of a clip whose onset is frame {_LATEST_ONSET} at the latest, "
                f"end after its {LENGTH} frames"
            )


class _Moving(NamedTuple):
    """What moves at a moment."""

    place: np.ndarray
    """(x, y) in the square of the face."""
    direction: np.ndarray
    """(x, y), y downwards."""
    length: float
    """In pixels of a 64×64 frame."""
    spread: float
    """Standard deviation of the displacement about the place, in sides of the face."""


@dataclass(frozen=True)
class SyntheticClip:
    """One micro-expression of one identity; everything about it follows from its fields.

    Attributes:
        subject: number of the identity.
        label: class, a key of ``CLASSES`` or ``FURTHER``.
        seed: of the set that the clip belongs to.
        repeat: tells apart clips of one subject, label and seed.
        manner: in what it differs from others of its class.
    """

    subject: int
    label: str
    seed: int = 0
    fps: float = FPS
    repeat: int = 0
    manner: Manner = Manner()

    @property
    def name(self) -> str:
        return f"synthetic/{self.subject:04d}/{self.label}" + (f"/{self.repeat}" if self.repeat else "")

    def __len__(self) -> int:
        return LENGTH

    def photograph(self) -> np.ndarray:
        """What :func:`cut_photograph` gave of the identity's photograph."""
        return _photographs()[self.subject % 2]

    def _rng(self, *purpose: int) -> np.random.Generator:
        label = list(_MOVEMENTS).index(self.label)
        repeat = (self.repeat,) if self.repeat else ()
        return np.random.default_rng((self.seed, self.subject, label, *purpose, *repeat))

    @property
    def onset(self) -> int:
        """Number of the last frame before the movement."""
        return int(self._rng(0).integers(3, _LATEST_ONSET + 1))

    @property
    def apex(self) -> int:
        """Number of the frame of the widest movement; of the plain manner 0.13 to 0.23 s after the onset."""
        least, most = self.manner.rise
        return self.onset + int(self._rng(1).integers(least, most + 1))

    @property
    def offset(self) -> int:
        """Number of the first frame at rest again; of the plain manner 0.17 to 0.33 s after the apex."""
        least, most = self.manner.fall
        return self.apex + int(self._rng(2).integers(least, most + 1))

    @property
    def amplitude(self) -> float:
        """Displacement at the apex, in pixels of a 64×64 frame."""
        return float(self._rng(3).uniform(*self.manner.amplitude))

    def course(self, frame: int) -> float:
        """Share of the amplitude that is reached at ``frame``: raised cosines up to the apex and down."""
        if frame <= self.apex:
            phase = np.clip((frame - self.onset) / (self.apex - self.onset), 0, 1)
        else:
            phase = np.clip((self.offset - frame) / (self.offset - self.apex), 0, 1)
        return float((1 - np.cos(np.pi * phase)) / 2)

    def _identity_map(self, size: int) -> np.ndarray:
        """Affine map (2, 3) from the cut photograph to a frame of ``size``; the same for all of a subject."""
        rng = np.random.default_rng((self.seed, self.subject))
        angle, shear = rng.normal(0, 0.08), rng.normal(0, 0.03)
        zoom = size / _SOURCE * rng.uniform(0.95, 1.15)
        mirror = -1.0 if rng.integers(2) else 1.0
        linear = zoom * np.array(
            [[mirror * np.cos(angle), -np.sin(angle) + shear], [mirror * np.sin(angle), np.cos(angle)]]
        )
        shift = size / 2 + rng.normal(0, 0.02 * size, 2) - linear @ np.full(2, _SOURCE / 2)
        return np.column_stack([linear, shift])

    def box(self, size: int) -> Box:
        """The face at rest, as a detector would find it in a frame of ``size``."""
        to_frame = self._identity_map(size)
        side = _FACE * _SOURCE * float(abs(np.linalg.det(to_frame[:, :2])) ** 0.5)
        x, y = to_frame @ (_SOURCE / 2, _SOURCE / 2, 1)
        return Box(float(x) - side / 2, float(y) - side / 2, side)

    def _expression(self, frame: int) -> Iterator[_Moving]:
        """The emotion, and what is mixed into it."""
        manner, rng = self.manner, self._rng(5)
        reach = self.course(frame) * self.amplitude
        behind, left = 1 - rng.uniform(0, manner.asymmetry), rng.random() < 0.5
        other = rng.choice([name for name in _MOVEMENTS if name != self.label])
        for label, share in ((self.label, 1.0), (other, rng.uniform(0, manner.mixed))):
            for movement in _MOVEMENTS[label]:
                place = np.array(PLACES[movement.place]) + rng.normal(0, manner.places, 2)
                turn = rng.normal(0, manner.directions)
                cos, sin = np.cos(turn), np.sin(turn)
                direction = np.array([[cos, -sin], [sin, cos]]) @ np.array([movement.x, movement.y])
                weaker = behind if movement.place.endswith("left") == left else 1.0
                yield _Moving(place, direction, reach * share * weaker, _SPREAD)

    def _eyes(self, frame: int) -> Iterator[_Moving]:
        """A blink and a change of gaze, where they happen: no part of any emotion."""
        manner, rng = self.manner, self._rng(6)
        blinks, looks = rng.random() < manner.blinks, rng.random() < manner.gaze
        middle, half, closing = rng.uniform(self.onset, self.offset), rng.uniform(4, 7), rng.uniform(2, 4)
        closed = closing * (1 + np.cos(np.pi * np.clip((frame - middle) / half, -1, 1))) / 2
        begun, angle = rng.uniform(self.onset, self.offset), rng.uniform(0, 2 * np.pi)
        turned = rng.uniform(0.5, 1.5) * np.clip((frame - begun) / _SACCADE, 0, 1)
        for side in ("left", "right"):
            lid = np.array(PLACES[f"lid {side}"])
            if blinks:
                yield _Moving(lid, np.array([0.0, 1.0]), closed, _EYE)
            if looks:
                eye = lid + np.array([0.0, 0.03])
                yield _Moving(eye, np.array([np.cos(angle), 0.5 * np.sin(angle)]), turned, _EYE)

    def displacement(self, frame: int, size: int) -> np.ndarray:
        """Displacement (size, size, 2) of each pixel at ``frame``, (x, y) in pixels, from the face at rest: all that
        moves, blinks and gaze too."""
        to_frame = self._identity_map(size)
        linear = to_frame[:, :2]
        directions = linear / np.linalg.norm(linear, axis=0)
        x, y = pixels(size)
        field = np.zeros((size, size, 2))
        for moving in (*self._expression(frame), *self._eyes(frame)):
            reach = moving.length * size / 64
            if reach == 0:
                continue
            spread = moving.spread * _FACE * _SOURCE * abs(np.linalg.det(linear)) ** 0.5
            place = (moving.place - 0.5) * _FACE * _SOURCE + _SOURCE / 2
            centre = linear @ place + to_frame[:, 2]
            weight = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * spread**2))
            field += reach * weight[..., None] * (directions @ moving.direction)
        return field

    def read(self, indices: Sequence[int], size: int) -> np.ndarray:
        """Frames at ``indices`` as uint8 (T, 3, size, size), RGB."""
        neutral = _neutral(self, size)
        x, y = pixels(size)
        frames = []
        for index in indices:
            field = self.displacement(index, size)
            moved = sample_cubic(neutral, x - field[..., 0], y - field[..., 1])
            noise = self._rng(4, index).normal(0, NOISE, moved.shape)
            frames.append((moved + noise).round().clip(0, 255).astype(np.uint8).transpose(2, 0, 1))
        return np.stack(frames)

    def moved(self, frame: int, later: int, size: int, patch_size: int) -> np.ndarray:
        """How far each patch (N,) moved between two frames, in pixels: the mean length of the displacement."""
        change = self.displacement(later, size) - self.displacement(frame, size)
        length = np.linalg.norm(change, axis=2)
        grid = size // patch_size
        return length.reshape(grid, patch_size, grid, patch_size).mean((1, 3)).ravel()


def synthetic_clips(subjects: Sequence[int], *, seed: int = 0) -> list[SyntheticClip]:
    """One clip of each class for each of ``subjects``; different subjects are different identities."""
    return [SyntheticClip(subject, label, seed) for subject in subjects for label in CLASSES]
