"""Micro-expressions in a video of one's own: candidate intervals, and what a recognizer makes of them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from .data.clips.faces import Box, cut, find_face
from .data.clips.find import describe_clips, find_clips
from .data.clips.frames import FrameError, ImageFolderClip, OtherSize, Problem, VideoClip
from .data.clips.inputs import ClipInput
from .data.clips.motion import pair_motion
from .data.clips.stabilize import Stabilizer, look_up
from .plain_text import in_figure
from .recognizers.base import Recognizer
from .recognizers.fitting import logits_of
from .visualize import LINE_COLOURS

#: Side in pixels at which candidates are looked for.
_SPOTTED = 96
#: The longest a micro-expression takes from onset to apex, in seconds; half of the usual half a second.
_RISE = 0.25
#: Frames from the first on among which a face is looked for, one a second.
_TRIES = 10
#: Frames whose motion is computed together.
_AT_ONCE = 64


#: Said wherever predictions are shown.
NOT_A_VERDICT = (
    "These are moments in which the face changes quickly, and the class that each would be if it were a "
    "micro-expression. Blinks, speech and movements of the head stand out too. This is no lie detector, and says "
    "nothing of what a person feels or means. The classifier was trained on: {trained_on}"
)


@dataclass
class SpotConfig:
    """Which moments are candidates."""

    strength: float = 8.0
    """How far a peak of the difference curve must stand out from the rest of it, in robust standard deviations. The
    face must be at rest for most of the video."""
    most: int = 10
    """Candidates at most; the strongest are kept."""
    stabilize: bool = True
    """Lay every frame over the one in which the face was found, so that the head keeps still."""
    margin: float = 0.1
    """Added on each side of the box of the face, as a share of its side."""

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise ValueError(f"strength={self.strength}; it must be positive")
        if self.most < 1:
            raise ValueError(f"most={self.most}; at least 1 candidate must be allowed")
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin={self.margin}; it is a share of the face's side, in [0, 1)")


class Spotted(NamedTuple):
    """A candidate: numbers of frames, and how far its peak stands out."""

    onset: int
    apex: int
    offset: int
    strength: float


@dataclass(frozen=True)
class Candidate:
    """A candidate interval and what the recognizer makes of it."""

    spotted: Spotted
    frames: tuple[int, int, int]
    """Numbers of onset, apex and offset in the file, or among the images in their order."""
    seconds: tuple[float, float, float]
    """Of onset, apex and offset from the beginning."""
    probabilities: dict[str, float]
    """Of each class, given that there is a micro-expression at all."""
    values: Tensor
    """What the recognizer is given of it."""

    def as_json(self) -> dict[str, Any]:
        names = ("onset", "apex", "offset")
        return {
            "frames": dict(zip(names, self.frames, strict=True)),
            "seconds": dict(zip(names, (round(s, 3) for s in self.seconds), strict=True)),
            "strength": self.spotted.strength,
            "probabilities": self.probabilities,
        }


@dataclass(frozen=True)
class Analysis:
    """What was found in a video."""

    source: str
    fps: float
    box: Box
    """The face, in pixels of the frames."""
    left: dict[int, str]
    """Numbers of the frames that could not be laid over the one in which the face was found, and why."""
    curve: np.ndarray
    """(T,), what ``difference_curve`` gave."""
    candidates: list[Candidate]
    threshold: float
    """What the curve must reach to stand out."""
    highest: tuple[float, float] | None
    """The highest peak, a candidate or not: seconds, and how far it stands out."""
    problems: list[Problem]
    """What was passed over: in place of a frame, the one before it was taken."""
    notes: list[str]
    """How frames were taken, where there is something to be said of it."""

    def as_json(self) -> dict[str, Any]:
        highest = (
            None if self.highest is None else dict(zip(("seconds", "strength"), self.highest, strict=True))
        )
        return {
            "source": self.source,
            "fps": self.fps,
            "face": self.box._asdict(),
            "left_as_they_are": self.left,
            "threshold": self.threshold,
            "highest_peak": highest,
            "passed_over": [f"{problem.path}: {problem.reason}" for problem in self.problems],
            "notes": self.notes,
            "candidates": [candidate.as_json() for candidate in self.candidates],
        }


def _whole_frames(
    clip: VideoClip | ImageFolderClip, note: Callable[[Problem], object] = lambda problem: None
) -> Iterator[np.ndarray]:
    """Frames (H, W, 3), uint8, RGB, up to the end; for one that cannot be read the one before it, and ``note`` is told.

    Raises:
        FrameError: a frame has another size.
    """
    held, count = None, 0
    for i, image in clip.images(0, len(clip)):
        if isinstance(image, OtherSize):
            raise FrameError(
                f"{image.path}: {image.reason}; a face is followed in frames of one size", image.path
            )
        if isinstance(image, Problem):
            note(image)
            continue
        frame = np.ascontiguousarray(image[:, :, ::-1])
        for _ in range(i - count):
            yield frame if held is None else held
        yield frame
        held, count = frame, i + 1


def _face_of(clip: VideoClip | ImageFolderClip) -> tuple[np.ndarray, Box]:
    """The first of some frames, a second apart, in which there is a face, and the face."""
    for i, frame in enumerate(_whole_frames(clip)):
        second, rest = divmod(i, max(1, round(clip.fps)))
        if second >= _TRIES:
            break
        if rest == 0 and (box := find_face(frame)) is not None:
            return frame, box
    raise FrameError(
        f"{clip.name}: no face was found in its first {_TRIES} seconds; the face must look at the camera and be at "
        "least a fifth of the frame",
        clip.name,
    )


class _Still:
    """The frames of a clip, each (H, W, 3), laid over the one in which the face was found, if that is wanted.

    Where each frame lies is found when it is first seen, and kept.
    """

    def __init__(self, clip: VideoClip | ImageFolderClip, stabilizer: Stabilizer | None):
        self.clip, self.stabilizer = clip, stabilizer
        self.transforms: list[np.ndarray] = []
        self.left: dict[int, str] = {}

    def frames(
        self, numbers: Container[int] | None = None, note: Callable[[Problem], object] = lambda problem: None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The frames of these numbers, or all; ``note`` is told of those that cannot be read."""
        for i, frame in enumerate(_whole_frames(self.clip, note)):
            if self.stabilizer is not None and i == len(self.transforms):
                transform, failure = self.stabilizer.find(frame)
                self.transforms.append(transform)
                if failure is not None:
                    self.left[i] = failure
            if numbers is None or i in numbers:
                laid_over = self.stabilizer is not None and i not in self.left
                yield i, look_up(frame, self.transforms[i]) if laid_over else frame


def difference_curve(
    frames: Tensor | Iterable[np.ndarray | Tensor], fps: float, patch_size: int = 8
) -> Tensor:
    """How much each frame of a clip (T, 3, S, S), uint8, differs from those a quarter second before and after, (T,).

    The motion against the mean of the two, which a slow change does not raise, minus the mean of that motion at the
    same two frames: an appearance-based feature difference after Moilanen, Zhao and Pietikäinen (ICPR 2014), with
    grey levels of patches in place of their LBP histograms. In grey levels of 255.

    Frames may come one by one: no more of them are kept than half a second and a few.
    """
    reach = max(1, round(_RISE * fps))
    held: list[Tensor] = []  # frames from number ``first`` on
    first = done = count = 0
    motions: list[Tensor] = []

    def measure(stop: int) -> None:
        """The motion of the frames from ``done`` to ``stop`` - 1."""
        nonlocal first, done
        places = torch.arange(done, stop)
        before, after = (places - reach).clamp(min=0), (places + reach).clamp(max=count - 1)
        earlier, at, later = (
            torch.stack([held[i - first] for i in part.tolist()]).float() for part in (before, places, after)
        )
        motions.append(pair_motion((earlier + later) / (2 * 255), at / 255, patch_size))
        done = stop
        dropped = max(0, done - reach - first)
        del held[:dropped]
        first += dropped

    for frame in frames:
        held.append(torch.as_tensor(frame))
        count += 1
        if count - reach - done == _AT_ONCE:
            measure(done + _AT_ONCE)
    if count < 2 * reach + 1:
        raise ValueError(
            f"{count} frames at {fps:g} a second; at least {2 * reach + 1} are needed to spot anything"
        )
    while done < count:
        measure(min(count, done + _AT_ONCE))
    motion, places = torch.cat(motions), torch.arange(count)
    return (
        motion - (motion[(places - reach).clamp(min=0)] + motion[(places + reach).clamp(max=count - 1)]) / 2
    )


def _at_rest(curve: Tensor) -> tuple[Tensor, Tensor]:
    """Median of a curve, and its robust standard deviation."""
    centre = curve.median()
    return centre, 1.4826 * (curve - centre).abs().median().clamp(min=1e-6)


def spot(curve: Tensor, fps: float, config: SpotConfig) -> list[Spotted]:
    """Peaks of the curve that stand out, in their order in time, each the highest of half a second about it.

    Frames near an expression are compared with it and stand out too, less than it does. What has no quarter second
    before and after it is no candidate.
    """
    centre, deviation = _at_rest(curve)
    strength = (curve - centre) / deviation
    reach, last = max(1, round(_RISE * fps)), len(curve) - 1
    highest = F.max_pool1d(strength[None], 4 * reach + 1, 1, 2 * reach)[0]
    peaks = ((strength == highest) & (strength >= config.strength)).nonzero()[:, 0].tolist()
    peaks = [t for t in peaks if reach <= t <= last - reach]
    chosen = sorted(sorted(peaks, key=lambda t: -float(strength[t]))[: config.most])
    return [Spotted(max(0, t - reach), t, min(last, t + reach), float(strength[t])) for t in chosen]


def predict(
    source: str | Path, recognizer: Recognizer, config: SpotConfig | None = None, *, fps: float | None = None
) -> Analysis:
    """Find candidate micro-expressions in a video and classify them.

    The face is found once, and the frames are laid over that one (``config.stabilize``); where the head cannot be
    followed they are left as they are, and ``Analysis.left`` says so. Whatever stands out is a candidate: a blink, a
    word or a macro-expression too, and the probabilities only say which class of micro-expression it would be.

    Args:
        source: a video, or a folder of images.
        recognizer: a fine-tuned one, of any kind.
        config: which moments are candidates.
        fps: frame rate of a folder of images (30 if not given), or of a video in place of what it states.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        ValueError: it is no clip, or several, or shorter than half a second, or a candidate gives no input of this
            recognizer; FrameError: no face was found.
    """
    config = config or SpotConfig()
    clips, problems = find_clips([source], fps=fps)
    if len(clips) > 1:
        raise ValueError(f"{source}: holds {len(clips)} clips, for example {clips[0].name}; give one")
    clip = clips[0]
    assert isinstance(clip, VideoClip | ImageFolderClip)
    reference, box = _face_of(clip)
    still = _Still(clip, Stabilizer(reference, box) if config.stabilize else None)
    small = (cut(frame, box, config.margin, _SPOTTED) for _, frame in still.frames(note=problems.append))
    curve = difference_curve(small, clip.fps)
    found = spot(curve, clip.fps, config)
    values = _values(still, box, found, recognizer.clip_input, config.margin)
    probabilities = logits_of(recognizer, torch.stack(values)).softmax(1) if values else torch.empty(0, 0)
    candidates = []
    for spotted, given, kept in zip(found, probabilities, values, strict=True):
        places = spotted.onset, spotted.apex, spotted.offset
        (o, a, e), (x, y, z) = map(clip.number, places), map(clip.seconds, places)
        of_class = dict(zip(recognizer.classes, given.tolist(), strict=True))
        candidates.append(Candidate(spotted, (o, a, e), (x, y, z), of_class, kept))
    centre, deviation = _at_rest(curve)
    highest = spot(curve, clip.fps, replace(config, strength=1e-9, most=1))
    return Analysis(
        str(source), clip.fps, box, still.left, curve.numpy(), candidates,
        float(centre + config.strength * deviation),
        (clip.seconds(highest[0].apex), highest[0].strength) if highest else None, problems, describe_clips([clip]),
    )  # fmt: skip


def figure_of_curve(analysis: Analysis) -> Figure:
    """The difference curve over time, its candidates marked with their likeliest class."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(len(analysis.curve)) / analysis.fps, analysis.curve, color=LINE_COLOURS[0], lw=1)
    for candidate in analysis.candidates:
        onset, apex, offset = candidate.seconds
        axes.axvspan(onset, offset, color=LINE_COLOURS[1], alpha=0.2, lw=0)
        likeliest = max(candidate.probabilities, key=candidate.probabilities.__getitem__)
        label = f"{in_figure(likeliest, 24)} {candidate.probabilities[likeliest]:.2f}"
        axes.annotate(
            label, (apex, analysis.curve[candidate.spotted.apex]), (0, 3), textcoords="offset points", ha="center",
            fontsize=8,
        )  # fmt: skip
    axes.axhline(analysis.threshold, color=LINE_COLOURS[2], ls="--", lw=0.8)
    axes.annotate(
        "threshold",
        (0, analysis.threshold),
        (3, 2),
        textcoords="offset points",
        fontsize=7,
        color=LINE_COLOURS[2],
    )
    axes.set_xlabel("seconds")
    axes.set_ylabel("difference (grey levels of 255)")
    axes.margins(x=0, y=0.15)
    axes.grid(alpha=0.3)
    return figure


def figure_of_candidates(analysis: Analysis, recognizer: Recognizer) -> Figure | None:
    """What the recognizer sees in each candidate; None if there is none, or it has nothing to show."""
    if not analysis.candidates:
        return None
    values = torch.stack([candidate.values for candidate in analysis.candidates])
    return recognizer.picture(values, [f"{candidate.seconds[1]:.2f} s" for candidate in analysis.candidates])


def _values(
    still: _Still, box: Box, found: list[Spotted], clip_input: ClipInput, margin: float
) -> list[Tensor]:
    """What the recognizer is given of each candidate."""
    wanted = [clip_input.frames(spotted.onset, spotted.apex, spotted.offset) for spotted in found]
    numbers = {number for frames in wanted for number in frames}
    faces = {i: cut(frame, box, margin, clip_input.size) for i, frame in still.frames(numbers)}
    return [torch.from_numpy(clip_input.encode(np.stack([faces[i] for i in frames]))) for frames in wanted]
