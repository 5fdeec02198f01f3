"""Which frames go into which shard."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...limits import read_json
from ..clips.frames import Clip, ImageFolderClip, VideoClip

#: δ reaches 11 frames at 30 a second: a shorter run could not hold both frames of the widest pair.
_SHORTEST_RUN = 12 / 30


@dataclass
class ShardConfig:
    """What shards hold."""

    size: int = 224
    """Side of the frames in pixels; the central square is resized to it."""
    quality: int = 98
    """Of the JPEGs, 1 to 100; their chroma is never subsampled. Mean absolute error on the synthetic clips, which
    have the noise of a sensor, in grey levels at 224 pixels: 2.0 at 95 (27 kB), 1.3 at 98 (53 kB), 0.5 at 100
    (82 kB)."""
    seconds: float = 3.0
    """Length of a run of consecutive frames: the two frames of a pair come from one run."""
    frames_per_shard: int = 4096
    """About how many frames a shard holds; it is closed with the run that reaches them."""
    stabilize: bool = False
    """Lay the frames of a run over its first, so that the head keeps still."""
    subject: str | None = None
    """Regular expression with one group that finds the subject in a clip's path. Without it, the subject is the
    folder that holds the clip, below the source."""
    fps: float | None = None
    """Frame rate of folders of images (30 if not given), and of videos in place of what they state."""
    seed: int = 0
    """Of the order of the runs."""

    def __post_init__(self) -> None:
        for name in ("size", "frames_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least 1")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality={self.quality}; JPEG has 1 to 100")
        if not _SHORTEST_RUN <= self.seconds < math.inf:
            raise ValueError(
                f"seconds={self.seconds}; a run holds both frames of a pair, which takes {_SHORTEST_RUN} or more"
            )
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"fps={self.fps}; it must be a positive number")
        if self.subject is not None:
            try:
                groups = re.compile(self.subject).groups
            except re.error as error:
                raise ValueError(f"subject={self.subject!r} is no regular expression: {error}") from None
            if groups != 1:
                raise ValueError(f"subject={self.subject!r} has {groups} groups; one must hold the subject")


@dataclass(frozen=True)
class Run:
    """Frames ``start`` to ``stop`` - 1 of a clip, whose numbers begin at ``first``."""

    key: str
    clip: ImageFolderClip | VideoClip
    subject: str
    start: int
    stop: int
    first: int

    def __len__(self) -> int:
        return self.stop - self.start

    def cut(self) -> Run:
        """The same run with the paths of its own frames only, to be sent to another process."""
        if isinstance(self.clip, VideoClip):
            return self
        paths = self.clip.paths[self.start : self.stop]
        return replace(self, clip=replace(self.clip, paths=paths), start=0, stop=len(paths))


def _subject(clip: Clip, sources: Sequence[str | Path], pattern: str | None) -> str:
    if pattern is not None:
        found = re.search(pattern, clip.name)
        if found is None or found[1] is None:
            raise ValueError(f"subject={pattern!r} finds no subject in {clip.name}; widen it or leave it out")
        return found[1]
    folder = Path(clip.name).parent
    for source in map(Path, sources):
        if folder.is_relative_to(source) and folder != source:
            return folder.relative_to(source).as_posix()
    return folder.name or folder.absolute().name


def cut_clip(length: int, longest: int) -> list[tuple[int, int]]:
    """Starts and stops of the runs of a clip; a rest of less than half a run goes with the run before it."""
    starts = list(range(0, length, longest))
    rest = length - starts[-1]
    if len(starts) > 1 and (2 * rest < longest or rest < 2):
        starts.pop()
    return list(zip(starts, [*starts[1:], length], strict=True))


def plan_shards(clips: Sequence[Clip], sources: Sequence[str | Path], config: ShardConfig) -> list[list[Run]]:
    """The runs of each shard."""
    runs = []
    for number, clip in enumerate(clips):
        subject = _subject(clip, sources, config.subject)
        for start, stop in cut_clip(len(clip), max(2, round(config.seconds * clip.fps))):
            clip = cast(ImageFolderClip | VideoClip, clip)
            runs.append(Run(f"{number:06d}-{start:08d}", clip, subject, start, stop, start))
    shards: list[list[Run]] = []
    room = 0
    for i in np.random.default_rng(config.seed).permutation(len(runs)):
        if room <= 0:
            shards.append([])
            room = config.frames_per_shard
        shards[-1].append(runs[i])
        room -= len(runs[i])
    return shards


def fingerprint(clips: Sequence[Clip]) -> str:
    """Of names, lengths and rates, in their order; not of the folders they are in, which may be moved."""
    described = "\n".join(f"{Path(clip.name).name} {len(clip)} {clip.fps}" for clip in clips)
    return f"{len(clips)} clips {hashlib.sha256(described.encode(errors='surrogateescape')).hexdigest()[:16]}"


def check_plan(path: Path, plan: dict[str, Any]) -> None:
    """Raises ValueError if the plan in ``path`` is another."""
    try:
        before = read_json(path)
        settings, data = dict(before["settings"]), before["data"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: is no plan of shards; give another folder") from None
    differences = [
        f"{name} was {settings.get(name)!r}, is {value!r}"
        for name, value in plan["settings"].items()
        if settings.get(name) != value
    ]
    if data != plan["data"]:
        differences.append(f"data was {data}, is {plan['data']}")
    if differences:
        raise ValueError(
            f"{path.parent}: holds shards of another plan: {'; '.join(differences)}. Give the same settings and "
            "sources, or another folder"
        )
