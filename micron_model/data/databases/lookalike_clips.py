"""The clips of a look-alike, and how their frames are written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from ..clips.frames import write_image
from ..clips.nuisances import to_uint8
from ..clips.synthetic import SyntheticClip
from .difficulties import DIFFICULTIES

_OF_NUISANCES = 99  # of a seed: a number that no other stream of a clip has


@dataclass(frozen=True)
class LookalikeConfig:
    """What a look-alike holds."""

    subjects: int = 8
    """Identities; of a composite, in each part."""
    clips: int = 5
    """Clips of each subject; emotions take turns."""
    counts: dict[str, int] | None = None
    """Clips of each emotion, dealt to the subjects in turn, in place of clips of each subject."""
    side: int = 128
    """Side of the frames in pixels."""
    seed: int = 0
    difficulty: Literal["easy", "medium", "hard"] = "easy"
    """easy: the same clean movement for all of a class. medium, hard: smaller and uneven ones that emotions share, at
    other tempi, with blinks, gaze, head motion, light, sensor noise and compression."""
    layout: str | None = None
    """Which of the dataset's layouts; the best known one if not given."""
    quirks: bool = True
    """Write the faults of the databases too; without them, every row can be used as it is."""

    def __post_init__(self) -> None:
        if self.difficulty not in DIFFICULTIES:
            raise ValueError(f"difficulty={self.difficulty!r} is none of {', '.join(DIFFICULTIES)}")
        clips = self.subjects * self.clips if self.counts is None else sum(self.counts.values())
        least = 5 if self.quirks else 1
        if self.subjects < 1 or self.side < 1 or clips < least:
            raise ValueError(
                f"subjects={self.subjects} of side={self.side} with {clips} clips in all: at least one subject, one "
                f"pixel and {least} clips are needed (quirks take 5)"
            )


@dataclass(frozen=True)
class Planned:
    """A clip to be written.

    Attributes:
        subject: from 1.
        order: of the subject's clips, from 0.
        emotion: as the database spells it, in lower case.
        onset, apex, offset: numbers of frames.
        indices: frames of ``clip`` from onset to offset.
        cells: onset, apex and offset as the sheet has them.
        without: numbers of frames that are missing.
        has_frames: whether there are any.
    """

    subject: int
    order: int
    emotion: str
    onset: int
    apex: int
    offset: int
    indices: tuple[int, ...]
    clip: SyntheticClip
    cells: tuple[Any, Any, Any]
    without: tuple[int, ...] = ()
    has_frames: bool = True


def rendered(planned: Planned, config: LookalikeConfig, around: int = 0) -> np.ndarray:
    """The frames of a clip as uint8 (T, 3, side, side), RGB, under the nuisances of its level.

    Args:
        around: frames at rest before and after.
    """
    first, last = planned.indices[0], planned.indices[-1]
    indices = [*range(first - around, first), *planned.indices, *range(last + 1, last + 1 + around)]
    frames = planned.clip.read(indices, config.side)
    nuisances = DIFFICULTIES[config.difficulty].nuisances
    if nuisances:
        rng = np.random.default_rng((config.seed, planned.clip.subject, planned.order, _OF_NUISANCES))
        for nuisance in nuisances:
            frames = nuisance(frames, rng)
        frames = to_uint8(frames)
    return frames


def write_frames(
    folder: Path, planned: Planned, config: LookalikeConfig, name: str, *, grey: bool = False, around: int = 0
) -> None:
    """Write the frames of a clip, if it has any.

    Args:
        name: of the file of a frame, to be formatted with its number.
        grey: as images of one channel.
        around: frames at rest to write before and after.
    """
    if not planned.has_frames:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(rendered(planned, config, around), planned.onset - around):
        if number not in planned.without:
            image = np.ascontiguousarray(frame.transpose(1, 2, 0)[:, :, ::-1])
            write_image(
                folder / name.format(number), cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if grey else image
            )
