"""Micro-expressions in a video of one's own: candidate intervals, and what a recognizer makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .data.clips.faces import Box, cut, find_face
from .data.clips.find import describe_clips, find_clips
from .data.clips.frames import FrameError, ImageFolderClip, OtherSize, Problem, VideoClip
from .data.clips.inputs import ClipInput
from .data.clips.stabilize import Stabilizer
from .plain_text import in_figure
from .recognizers.base import Recognizer
from .recognizers.fitting import logits_of
from .spotting import Follower, SpotConfig, Spotted, at_rest, spot
from .visualize import LINE_COLOURS

#: Frames from the first on among which a face is looked for, one a second.
_TRIES = 10

#: Said wherever predictions are shown.
NOT_A_VERDICT = (
    "These are moments in which the face moves, and the class that each short one would be if it were a "
    "micro-expression. Speech and hands stand out too; blinks, looks aside, turns of the head and changes of light "
    "are told from movements of the face as far as that can be measured. This is no lie detector, and says nothing of "
    "what a person feels or means. The classifier was trained on: {trained_on}"
)


@dataclass(frozen=True)
class Movement:
    """A movement of the face, or what looks like one."""

    spotted: Spotted
    frames: tuple[int, int, int]
    """Numbers of onset, apex and offset in the file, or among the images in their order."""
    seconds: tuple[float, float, float]
    """Of onset, apex and offset from the beginning."""

    @property
    def duration(self) -> float:
        """From onset to offset, in seconds."""
        return self.seconds[2] - self.seconds[0]

    def as_json(self) -> dict[str, Any]:
        names = ("onset", "apex", "offset")
        return {
            "kind": self.spotted.kind,
            "reason": self.spotted.reason,
            "frames": dict(zip(names, self.frames, strict=True)),
            "seconds": dict(zip(names, (round(s, 3) for s in self.seconds), strict=True)),
            "duration": round(self.duration, 3),
            "strength": self.spotted.strength,
        }


@dataclass(frozen=True)
class Candidate(Movement):
    """A movement short enough to be a micro-expression, and what the recognizer makes of it."""

    probabilities: dict[str, float]
    """Of each class, given that it is a micro-expression at all."""
    values: Tensor
    """What the recognizer is given of it."""

    def as_json(self) -> dict[str, Any]:
        return super().as_json() | {"probabilities": self.probabilities}


@dataclass(frozen=True)
class Analysis:
    """What was found in a video."""

    source: str
    fps: float
    box: Box
    """The face, in pixels of the frames."""
    left: dict[int, str]
    """Numbers of the frames in which the head could not be followed, and why."""
    curve: np.ndarray
    """(T,): speed of the face, of :func:`spot`."""
    candidates: list[Candidate]
    """Movements of at most half a second."""
    longer: list[Movement]
    """Longer ones, and those that do not go back."""
    ignored: list[Movement]
    """Blinks, looks aside, turns of the head and changes of light that look like a movement."""
    threshold: float
    """What the curve must reach to stand out."""
    highest: tuple[float, float]
    """The highest point of the curve, in a movement or not: seconds, and how far it stands out."""
    problems: list[Problem]
    """What was passed over: in place of a frame, the one before it was taken."""
    notes: list[str]
    """How frames were taken, where there is something to be said of it."""

    def as_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "fps": self.fps,
            "face": self.box._asdict(),
            "left_as_they_are": self.left,
            "threshold": self.threshold,
            "highest_peak": dict(zip(("seconds", "strength"), self.highest, strict=True)),
            "passed_over": [f"{problem.path}: {problem.reason}" for problem in self.problems],
            "notes": self.notes,
            "candidates": [candidate.as_json() for candidate in self.candidates],
            "longer": [movement.as_json() for movement in self.longer],
            "ignored": [movement.as_json() for movement in self.ignored],
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


def predict(
    source: str | Path, recognizer: Recognizer, config: SpotConfig | None = None, *, fps: float | None = None
) -> Analysis:
    """Find the movements of a face in a video, and classify those that are short enough to be micro-expressions.

    The face is found once and followed (``config.stabilize``); where the head cannot be followed ``Analysis.left`` says
    so, and nothing is a movement of the face. The frames of a candidate are laid over its onset. What is short is a
    candidate, a word too, and the probabilities only say which class of micro-expression it would be.

    Args:
        source: a video, or a folder of images.
        recognizer: a fine-tuned one, of any kind.
        config: which movements are marked.
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
    follower = Follower(reference, box, config.stabilize)
    for frame in _whole_frames(clip, problems.append):
        follower(frame)
    spotting = spot(follower.track(), clip.fps, config)

    def placed(spotted: Spotted) -> Movement:
        places = spotted.onset, spotted.apex, spotted.offset
        (o, a, e), (x, y, z) = map(clip.number, places), map(clip.seconds, places)
        return Movement(spotted, (o, a, e), (x, y, z))

    found = [spotted for spotted in spotting.movements if spotted.kind == "micro"]
    values = _values(clip, follower.boxes, found, recognizer.clip_input, config)
    probabilities = logits_of(recognizer, torch.stack(values)).softmax(1) if values else torch.empty(0, 0)
    candidates = []
    for spotted, given, kept in zip(found, probabilities, values, strict=True):
        of_class = dict(zip(recognizer.classes, given.tolist(), strict=True))
        candidates.append(Candidate(**vars(placed(spotted)), probabilities=of_class, values=kept))
    others = [placed(spotted) for spotted in spotting.movements if spotted.kind != "micro"]
    centre, deviation = at_rest(spotting.curve)
    highest = int(spotting.curve.argmax())
    return Analysis(
        str(source), clip.fps, box, follower.left, spotting.curve, candidates,
        [m for m in others if m.spotted.kind == "longer"], [m for m in others if m.spotted.kind != "longer"],
        spotting.threshold, (clip.seconds(highest), float(spotting.curve[highest] - centre) / deviation),
        problems, describe_clips([clip]),
    )  # fmt: skip


def figure_of_curve(analysis: Analysis) -> Figure:
    """The speed of the face over time; its movements are shaded, short ones with their likeliest class."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(len(analysis.curve)) / analysis.fps, analysis.curve, color=LINE_COLOURS[0], lw=1)
    groups: tuple[tuple[str, str, Sequence[Movement]], ...] = (
        ("at most 0.5 s", LINE_COLOURS[1], analysis.candidates),
        ("longer", LINE_COLOURS[3], analysis.longer),
        ("ignored", "0.5", analysis.ignored),
    )
    for name, colour, movements in groups:
        for i, movement in enumerate(movements):
            onset, apex, offset = movement.seconds
            axes.axvspan(onset, offset, color=colour, alpha=0.2, lw=0, label=None if i else name)
            axes.axvline(apex, color=colour, lw=0.8)
            label: str = movement.spotted.kind
            if isinstance(movement, Candidate):
                likeliest = max(movement.probabilities, key=movement.probabilities.__getitem__)
                label = f"{in_figure(likeliest, 24)} {movement.probabilities[likeliest]:.2f}"
            axes.annotate(
                label, (apex, 1), (2, -3), xycoords=("data", "axes fraction"), textcoords="offset points", rotation=90,
                ha="left", va="top", fontsize=7,
            )  # fmt: skip
    axes.axhline(analysis.threshold, color=LINE_COLOURS[2], ls="--", lw=0.8, label="threshold")
    axes.set_xlabel("seconds")
    axes.set_ylabel("speed of the face (pixels of 80)")
    axes.margins(x=0, y=0.15)
    axes.grid(alpha=0.3)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False, fontsize=8
    )
    return figure


def figure_of_candidates(analysis: Analysis, recognizer: Recognizer) -> Figure | None:
    """What the recognizer sees in each candidate; None if there is none, or it has nothing to show."""
    if not analysis.candidates:
        return None
    values = torch.stack([candidate.values for candidate in analysis.candidates])
    return recognizer.picture(values, [f"{candidate.seconds[1]:.2f} s" for candidate in analysis.candidates])


def _values(
    clip: VideoClip | ImageFolderClip, boxes: Sequence[Box], found: list[Spotted], clip_input: ClipInput,
    config: SpotConfig,
) -> list[Tensor]:  # fmt: skip
    """What the recognizer is given of each candidate: its frames, laid over its onset."""
    wanted = [clip_input.frames(spotted.onset, spotted.apex, spotted.offset) for spotted in found]
    faces: list[dict[int, np.ndarray]] = [{} for _ in wanted]
    stabilizers: dict[int, Stabilizer] = {}
    for i, frame in enumerate(_whole_frames(clip) if wanted else ()):
        for number, (numbers, spotted, kept) in enumerate(zip(wanted, found, faces, strict=True)):
            box = boxes[spotted.onset]
            if i == spotted.onset and config.stabilize:
                stabilizers[number] = Stabilizer(frame, box)
            if i in numbers:
                laid_over = stabilizers[number](frame)[0] if number in stabilizers else frame
                kept[i] = cut(laid_over, box, config.margin, clip_input.size)
            if i == spotted.offset:
                stabilizers.pop(number, None)
    return [
        torch.from_numpy(clip_input.encode(np.stack([kept[i] for i in numbers])))
        for numbers, kept in zip(wanted, faces, strict=True)
    ]
