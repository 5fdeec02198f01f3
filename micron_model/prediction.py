"""Micro-expressions in a video of one's own: candidate intervals, and what a recognizer makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data.clips.faces import Box, cut, find_face, place_in_cut
from .data.clips.find import describe_clips, find_clips
from .data.clips.frames import FrameError, ImageFolderClip, OtherSize, Problem, VideoClip
from .data.clips.inputs import ClipInput
from .data.clips.stabilize import Stabilizer
from .face_pair import Faces
from .following import Follower
from .recognizers.base import Recognizer
from .recognizers.fitting import logits_of
from .spotting import SpotConfig, Spotted, at_rest, spot

#: Frames from the first on among which a face is looked for, one a second.
_TRIES = 10

#: Said wherever predictions are shown.
_WHAT_IT_IS_NOT = (
    "Speech and hands stand out too; blinks, looks aside, turns of the head and changes of light are told from "
    "movements of the face as far as that can be measured. This is no lie detector, and says nothing of what a person "
    "feels or means."
)
NOT_A_VERDICT = (
    "These are moments in which the face moves, and the class that each short one would be if it were a "
    f"micro-expression. {_WHAT_IT_IS_NOT} The classifier was trained on: {{trained_on}}"
)


def note_of(recognizer: Recognizer | None) -> str:
    """What must be said beside what was found, with a recognizer that names classes, or without."""
    if recognizer is None:
        return f"These are moments in which the face moves. {_WHAT_IT_IS_NOT}"
    return NOT_A_VERDICT.format(trained_on=recognizer.config.trained_on or "an unknown set of clips")


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
    """Of each class, given that it is a micro-expression at all; empty without a recognizer."""
    values: Tensor
    """What the recognizer is given of it; empty without one."""

    def as_json(self) -> dict[str, Any]:
        return super().as_json() | {"probabilities": self.probabilities}


@dataclass(frozen=True)
class Analysis:
    """What was found in a video."""

    source: str
    fps: float
    box: Box
    """The face, in pixels of the frames."""
    boxes: list[Box]
    """The face in every frame; where it is lost, where it was."""
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


def _clip_of(source: str | Path, fps: float | None) -> tuple[VideoClip | ImageFolderClip, list[Problem]]:
    clips, problems = find_clips([source], fps=fps)
    if len(clips) > 1:
        raise ValueError(f"{source}: holds {len(clips)} clips, for example {clips[0].name}; give one")
    clip = clips[0]
    assert isinstance(clip, VideoClip | ImageFolderClip)
    return clip, problems


def predict(
    source: str | Path,
    recognizer: Recognizer | None = None,
    config: SpotConfig | None = None,
    *,
    fps: float | None = None,
    on_frame: Callable[[int, int], object] = lambda done, total: None,
) -> Analysis:
    """Find the movements of a face in a video, and classify those that are short enough to be micro-expressions.

    The face is found once and followed (``config.stabilize``); where the head cannot be followed ``Analysis.left`` says
    so, and nothing is a movement of the face. The frames of a candidate are laid over its onset. What is short is a
    candidate, a word too, and the probabilities only say which class of micro-expression it would be.

    Args:
        source: a video, or a folder of images.
        recognizer: a fine-tuned one, of any kind; without one, nothing is classified.
        config: which movements are marked.
        fps: frame rate of a folder of images (30 if not given), or of a video in place of what it states.
        on_frame: called after each frame that the face was followed to: how many there were, and how many there are.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        ValueError: it is no clip, or several, or shorter than half a second, or a candidate gives no input of this
            recognizer; FrameError: no face was found.
    """
    config = config or SpotConfig()
    clip, problems = _clip_of(source, fps)
    reference, box = _face_of(clip)
    follower = Follower(reference, box, config.stabilize)
    for done, frame in enumerate(_whole_frames(clip, problems.append), 1):
        follower(frame)
        on_frame(done, len(clip))
    spotting = spot(follower.track(), clip.fps, config)

    def placed(spotted: Spotted) -> Movement:
        places = spotted.onset, spotted.apex, spotted.offset
        (o, a, e), (x, y, z) = map(clip.number, places), map(clip.seconds, places)
        return Movement(spotted, (o, a, e), (x, y, z))

    found = [spotted for spotted in spotting.movements if spotted.kind == "micro"]
    classes: tuple[str, ...] = ()
    values = [torch.empty(0)] * len(found)
    probabilities = torch.empty(len(found), 0)
    if recognizer is not None and found:
        classes, values = (
            recognizer.classes,
            _values(clip, follower.boxes, found, recognizer.clip_input, config),
        )
        probabilities = logits_of(recognizer, torch.stack(values)).softmax(1)
    candidates = []
    for spotted, given, kept in zip(found, probabilities, values, strict=True):
        of_class = dict(zip(classes, given.tolist(), strict=True))
        candidates.append(Candidate(**vars(placed(spotted)), probabilities=of_class, values=kept))
    others = [placed(spotted) for spotted in spotting.movements if spotted.kind != "micro"]
    centre, deviation = at_rest(spotting.curve)
    highest = int(spotting.curve.argmax())
    return Analysis(
        str(source), clip.fps, box, follower.boxes, follower.left, spotting.curve, candidates,
        [m for m in others if m.spotted.kind == "longer"], [m for m in others if m.spotted.kind != "longer"],
        spotting.threshold, (clip.seconds(highest), float(spotting.curve[highest] - centre) / deviation),
        problems, describe_clips([clip]),
    )  # fmt: skip


def _laid_over(
    clip: VideoClip | ImageFolderClip,
    boxes: Sequence[Box],
    found: Sequence[Spotted],
    wanted: Sequence[Sequence[int]],
    stabilize: bool,
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Number of a movement, of a frame that is wanted of it, the frame, and that laid over the movement's onset."""
    stabilizers: dict[int, Stabilizer] = {}
    for i, frame in enumerate(_whole_frames(clip) if found else ()):
        for number, (numbers, spotted) in enumerate(zip(wanted, found, strict=True)):
            if i == spotted.onset and stabilize:
                stabilizers[number] = Stabilizer(frame, boxes[spotted.onset])
            if i in numbers:
                yield number, i, frame, stabilizers[number](frame)[0] if number in stabilizers else frame
            if i == spotted.offset:
                stabilizers.pop(number, None)


def _values(
    clip: VideoClip | ImageFolderClip, boxes: Sequence[Box], found: list[Spotted], clip_input: ClipInput,
    config: SpotConfig,
) -> list[Tensor]:  # fmt: skip
    """What the recognizer is given of each candidate: its frames, laid over its onset."""
    wanted = [clip_input.frames(spotted.onset, spotted.apex, spotted.offset) for spotted in found]
    faces: list[dict[int, np.ndarray]] = [{} for _ in wanted]
    for number, i, _, laid_over in _laid_over(clip, boxes, found, wanted, config.stabilize):
        faces[number][i] = cut(laid_over, boxes[found[number].onset], config.margin, clip_input.size)
    return [
        torch.from_numpy(clip_input.encode(np.stack([kept[i] for i in numbers])))
        for numbers, kept in zip(wanted, faces, strict=True)
    ]


def faces_of(
    source: str | Path,
    analysis: Analysis,
    movements: Sequence[Movement],
    size: int,
    config: SpotConfig | None = None,
    *,
    fps: float | None = None,
) -> list[Faces]:
    """Onset and apex of movements, to be looked at; the video is read once more.

    Args:
        source, config, fps: what :func:`predict` was given.
        analysis: what it gave.
        movements: of the analysis.
        size: side of a face, in pixels.
    """
    config, (clip, _) = config or SpotConfig(), _clip_of(source, fps)
    found = [movement.spotted for movement in movements]
    wanted = [(spotted.onset, spotted.apex) for spotted in found]
    seen: list[list[np.ndarray]] = [[] for _ in found]
    for number, i, frame, laid_over in _laid_over(clip, analysis.boxes, found, wanted, config.stabilize):
        box = analysis.boxes[found[number].onset]
        kept = [frame] if i == found[number].onset else [frame, laid_over]
        seen[number] += [cut(image, box, config.margin, size) for image in kept]
    place = place_in_cut(config.margin, size)
    return [Faces(onset, apex, registered, place) for onset, apex, registered in seen]
