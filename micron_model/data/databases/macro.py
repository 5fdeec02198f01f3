"""Clips of macro-expressions: the emotions of micro-expressions at their full width, to learn from beside them.

They come from a csv, from CREMA-D (Cao et al., IEEE TAFFC 2014: 7,442 videos of 91 actors), from the macro-expressions
of CAS(ME)³, or from folders that name person and emotion, as SMIC's ``non_micro`` does where it has been labelled.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...limits import read_csv
from ..clips.find import VIDEO_SUFFIXES, walk
from ..clips.frames import IMAGE_SUFFIXES, FrameError, Problem, VideoClip
from . import casme3
from .corpus import Corpus, numbered_subject
from .expressions import Dataset, Expression, Unusable, same_emotion
from .folders import find_frames
from .listed import Facts, Interval, Reading, between, collect, read_interval, usual_columns

#: Of people whose database is not known.
UNKNOWN = "macro"
LIST = "macro.csv"
CREMA_D = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happiness",
    "NEU": "neutral",
    "SAD": "sadness",
}
#: Actor, sentence, emotion and its intensity: low, middle, high, not stated.
_CREMA_D = re.compile(rf"(\d{{4}})_([A-Z]{{3}})_({'|'.join(CREMA_D)})_(LO|MD|HI|XX?)")
_OF_CREMA_D = (91, 7442)
#: Of a folder of images, which does not say; nothing is made of it but a length in seconds.
_FPS = 30.0
_EMOTIONS = (
    *(
        "happiness",
        "sadness",
        "surprise",
        "disgust",
        "anger",
        "fear",
        "contempt",
        "repression",
        "others",
        "neutral",
    ),
    *("negative", "positive"),
)
#: Of folders, which name neither a person nor an emotion.
_NON_MICRO = re.compile(r"non[\W_]?micro")
_NEEDS = (
    "Each needs a subject and an emotion: a csv with the columns clip, subject, emotion, given in place of the folder "
    f"or in it as {LIST}; or folders <subject>/<emotion>/<clip>; or CREMA-D's names"
)
_READING = Reading(allow_missing_frames=True)
_CASME3 = Facts(
    dataset="casme3",
    fps=30.0,
    releases=(casme3.OFFICIAL,),
    columns=usual_columns("Onset", "Apex", "Offset", "emotion"),
    trusted="apex",
    macro=True,
)


@dataclass(frozen=True)
class MacroExpression(Expression):
    """One whose subject may be of no database that is known, and have a name in place of a number."""

    @property
    def subject(self) -> str:
        """As that of others; of nobody's database ``macro/<text>``, the text in lower case."""
        return f"{UNKNOWN}/{self.subject_text.lower()}" if self.dataset == UNKNOWN else super().subject


class _Found(NamedTuple):
    """What lists a clip: its path, or a row of the csv."""

    name: str
    path: Path
    where: str
    cells: dict[str, str]
    """subject, emotion, and maybe dataset, onset, apex and offset."""


def load(path: str | Path, advance: Callable[[int, int], object] = lambda done, total: None) -> Dataset:
    """The macro-expressions at ``path``. An apex that is not listed is the midpoint, to be spotted.

    Args:
        path: a csv with the columns clip (a folder of images or a video, from where the csv lies), subject, emotion,
            and if they are known dataset (that the subject is of, for example casme3), onset, apex and offset (numbers
            of frames); or a folder that holds such a csv as ``macro.csv``, or the sheet of CAS(ME)³'s
            macro-expressions and its part A, or CREMA-D's videos (``1001_DFA_ANG_XX.flv``), or clips in folders
            ``<subject>/<emotion>/<clip>`` or ``<emotion>/<subject>/<clip>``.
        advance: told after each clip how many are read, and of how many; not of CAS(ME)³'s sheet.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the csv lacks a column, or there is no clip with subject and emotion.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not path.is_dir():
        return _collect(path, _listed(path), [f"rows of {path}"], advance)
    if (path / LIST).exists():
        return _collect(path / LIST, _listed(path / LIST), [f"rows of {path / LIST}"], advance)
    files, problems = list[Path](), list[Problem]()
    folders = list[Path]()
    for folder, inside in walk(path, problems.append):
        images = [file for file in inside if file.suffix.lower() in IMAGE_SUFFIXES]
        folders += [folder] if images else []
        files += [file for file in inside if file not in images]
    if any(re.search(casme3.MACRO_SHEET, file.name, re.IGNORECASE) for file in files):
        return casme3.load_listed(path, _CASME3, casme3.MACRO_SHEET, layout="recordings", reading=_READING)
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    notes = [f"clips below {path}", *(f"{problem.path}: {problem.reason}" for problem in problems)]
    if others := len(files) - len(videos):
        notes.append(f"{others} files are neither image nor video")
    if any(_CREMA_D.fullmatch(video.stem) for video in videos):
        found = _collect(path, _of_crema_d(path, videos), notes, advance)
        subjects, clips = _OF_CREMA_D
        found.census.notes.append(
            f"{len(found.expressions)} of the {clips} clips and {len(found.census.subjects)} of the {subjects} actors "
            "of CREMA-D"
        )
        return found
    return _collect(path, _in_folders(path, sorted([*folders, *videos])), notes, advance)


def load_of_person(path: Path) -> Dataset:
    """Clips of one person, micro-expressions too: a csv as :func:`load` takes it, in which the subject may be left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the csv lacks a column, names several subjects, or no clip has an emotion.
    """
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; clips of a person are listed in a csv, by clip and emotion")
    needs = "Each needs an emotion, in the column of that name, and frames that can be read"
    found = _collect(path, _listed(path, ("clip", "emotion")), [f"rows of {path}"], needs=needs)
    if len(people := sorted(found.census.subjects)) > 1:
        raise ValueError(
            f"{path}: lists clips of {len(people)} people ({', '.join(people[:4])}); give those of one"
        )
    return found


def _listed(path: Path, needed: Sequence[str] = ("clip", "subject", "emotion")) -> Iterator[_Found]:
    columns, *rows = read_csv(path) or [[]]
    roles = [column.strip().lower() for column in columns]
    for role in needed:
        if role not in roles:
            raise ValueError(
                f"{path}: no column {role!r}; its columns are {', '.join(columns) or '(none)'}. Clips are listed by "
                f"{', '.join(needed)}, and if it is known dataset, onset, apex, offset"
            )
    for number, row in enumerate(rows, 2):
        cells = {role: cell.strip() for role, cell in zip(roles, row, strict=False)}
        if any(cells.values()):
            if "subject" not in roles:
                cells["subject"] = "the person"
            clip = cells.get("clip", "")
            yield _Found(clip, path.parent / clip, f"{path}, row {number}", cells)


def _of_crema_d(root: Path, videos: Sequence[Path]) -> Iterator[_Found]:
    for video in videos:
        cells = {}
        if match := _CREMA_D.fullmatch(video.stem):
            cells = {"subject": match[1], "emotion": CREMA_D[match[3]], "dataset": "crema-d"}
        yield _Found(video.stem if cells else _below(video, root), video, str(video), cells)


def _in_folders(root: Path, clips: Sequence[Path]) -> Iterator[_Found]:
    """Person and emotion by the folders above a clip, of which the lowest count."""
    for clip in clips:
        above = clip.relative_to(root).parts[:-1]
        named = [part for part in above if _emotion_of(part)]
        persons = [
            p for p in above if p not in named and not re.fullmatch(f"{_NON_MICRO.pattern}|micro", p.lower())
        ]
        cells = {"emotion": named[-1] if named else "", "subject": persons[-1] if persons else ""}
        if any(_NON_MICRO.fullmatch(part.lower()) for part in above):
            cells["dataset"] = "smic"
        if "micro" in map(str.lower, above):
            cells["micro"] = "yes"
        yield _Found(_below(clip, root), clip, str(clip), cells)


def _emotion_of(text: str) -> str | None:
    return next((emotion for emotion in _EMOTIONS if same_emotion(emotion, text.lower())), None)


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _collect(
    path: Path,
    listed: Iterator[_Found],
    notes: Sequence[str],
    advance: Callable[[int, int], object] = lambda done, total: None,
    needs: str = _NEEDS,
) -> Dataset:
    """Raises ValueError where no clip can be used."""
    clips = list(listed)

    def counted() -> Iterator[_Found]:
        for done, clip in enumerate(clips, 1):
            yield clip
            advance(done, len(clips))

    found = collect(UNKNOWN, None, counted(), _read, notes, _READING)
    if not found.expressions:
        reasons = found.census.dropped
        some = "; ".join(f"{problem.path}: {problem.reason}" for problem in reasons[:3])
        raise ValueError(
            f"{path}: none of {len(reasons)} clips can be used{': ' * bool(some)}{some}. {needs}"
        )
    return found


def _read(found: _Found) -> MacroExpression:
    cells = found.cells
    if "micro" in cells:
        raise Unusable("lies below a folder 'micro': it is a micro-expression")
    subject, emotion, dataset = (cells.get(name, "") for name in ("subject", "emotion", "dataset"))
    if not emotion:
        published = ", as SMIC's non_micro clips have none where nobody has labelled them" * (
            dataset == "smic"
        )
        raise Unusable(f"nothing says its emotion{published}")
    if re.fullmatch(r"-?\d+", emotion):
        raise Unusable(f"its emotion {emotion!r} is a number, which names no emotion")
    if not subject:
        raise Unusable("nothing says whose face it is")
    dataset = dataset.lower() or UNKNOWN
    frames, fps = _frames_of(found.path)
    numbers = sorted(frames)
    interval = Interval(numbers[0], numbers[len(numbers) // 2], numbers[-1], "midpoint", ())
    if cells.get("onset") or cells.get("offset"):
        apex = cells.get("apex") or None
        interval = read_interval(cells.get("onset", ""), apex, cells.get("offset", ""), trusted="offset")
    within = between(frames, interval.onset, interval.offset, found.path)
    if len(within) < 2:
        raise Unusable(f"it has {len(within)} frame, which shows no movement")
    expression = MacroExpression(
        dataset=dataset,
        subject_text=subject,
        name=found.name,
        emotion=_emotion_of(emotion) or emotion.lower(),
        fps=fps,
        frames=within,
        **interval._asdict(),
    )
    try:
        _ = expression.subject
    except ValueError as error:
        raise Unusable(str(error)) from None
    return expression


def _frames_of(path: Path) -> tuple[dict[int, Path], float]:
    """Frames by number, and their rate; of a video each has the path of the file."""
    if path.is_dir():
        frames = find_frames(path)
        if not frames:
            raise Unusable(f"{path} holds no image")
        return frames, _FPS
    try:
        video = VideoClip.open(path)
    except FrameError as error:
        raise Unusable(str(error)) from None
    return dict.fromkeys(range(len(video)), path), video.fps


def overlap(macro: Sequence[Expression], root: Path, tested: Sequence[Expression]) -> list[str]:
    """Canonical subjects of ``tested`` whom macro-expressions may show, ascending.

    They do where their lists say so, where their files are those that are tested, or where their paths below ``root``
    name subject and database as :meth:`Corpus.overlap` reads them. A subject of no stated database that is a number,
    or written as databases write one, may be anyone's of that number.
    """
    subjects = {expression.subject for expression in tested}
    folders = {os.path.realpath(e.frames[0][1].parent): e.subject for e in tested}
    below = root if root.is_dir() else root.parent
    written = []
    found: set[str] = set()
    for expression in macro:
        path = expression.frames[0][1]
        place = path if path.suffix.lower() in VIDEO_SUFFIXES else path.parent
        written.append(os.path.relpath(place, below))
        found |= {s for folder, s in folders.items() if folder == os.path.realpath(path.parent)}
        number = numbered_subject(expression.subject_text) if expression.dataset == UNKNOWN else None
        found |= {s for s in subjects if s == expression.subject or s.endswith(f"/{number}")}
    return sorted(found | set(Corpus(tuple(written)).overlap(tested)))
