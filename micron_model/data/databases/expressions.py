"""Micro-expressions as the databases list them, and the census of what was found of them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..clips.problems import Problem


class Unusable(ValueError):
    """A row or clip that gives no expression; the message is the reason."""


#: Names of one emotion; a database knows one of them.
_SAME = (
    {"happiness", "happy"},
    {"sadness", "sad"},
    {"surprise", "surprised"},
    {"disgust", "disgusted"},
    {"anger", "angry"},
    {"fear", "fearful"},
    {"contempt", "contemptuous"},
    {"repression", "repressed"},
    {"others", "other"},
)


def same_emotion(one: str, other: str) -> bool:
    """Whether two names, in lower case, are of one emotion."""
    return one == other or any({one, other} <= names for names in _SAME)


def canonical_subject(dataset: str, text: object) -> str:
    """``<dataset>/<number>``, whatever way a subject is written: 1, "01", "sub01", "s1", "006", "spNO.1".

    Raises:
        ValueError: there is no number in ``text``.
    """
    numbers = re.findall(r"\d+", str(text))
    if not numbers:
        raise ValueError(f"subject {text!r} of {dataset} has no number, so it cannot be told from others")
    return f"{dataset}/{int(numbers[-1])}"


@dataclass(frozen=True)
class Expression:
    """One labelled micro-expression.

    Attributes:
        dataset: key of ``DATASETS``.
        subject_text: the subject as the database writes it.
        name: of the clip, unique in the dataset, for example ``sub01/EP02_01f``.
        emotion: the label of the database, lower case, spelling made uniform.
        fps: frames a second.
        frames: number and file of each frame from onset to offset that is there, ascending.
        onset, apex, offset: numbers of frames, onset ≤ apex ≤ offset.
        apex_from: ``"annotation"``; ``"midpoint"`` of onset and offset where there is none; ``"file"`` or
            ``"spotting"`` where it was found afterwards.
        notes: what was decided about this one where the database leaves it open.
    """

    dataset: str
    subject_text: str
    name: str
    emotion: str
    fps: float
    frames: tuple[tuple[int, Path], ...]
    onset: int
    apex: int
    offset: int
    apex_from: Literal["annotation", "midpoint", "file", "spotting"] = "annotation"
    notes: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """Canonical: those of two datasets never meet."""
        return canonical_subject(self.dataset, self.subject_text)

    @property
    def seconds(self) -> float:
        """From onset to offset."""
        return (self.offset - self.onset) / self.fps

    @property
    def missing(self) -> list[int]:
        """Numbers of the frames from onset to offset that are not there."""
        there = {number for number, _ in self.frames}
        return [number for number in range(self.onset, self.offset + 1) if number not in there]

    def path(self, number: int) -> Path:
        """The file of the frame of that number, or of the nearest one there is."""
        return min(self.frames, key=lambda frame: (abs(frame[0] - number), frame[0]))[1]


class Official(NamedTuple):
    """What the database's authors state."""

    subjects: int
    counts: Mapping[str, int]
    """Clips of each emotion."""
    release: str = ""
    """Of several, which: a part of the name of its sheet."""


class Known(NamedTuple):
    """A clip that is not there, and need not be: its release lacks it, or a setting leaves it out."""

    name: str
    subject: str
    """Canonical."""
    emotion: str
    reason: str
    """To be read after the name of the clip, or after several."""


def _missing_frames(expression: Expression) -> Problem:
    missing, length = expression.missing, expression.offset - expression.onset + 1
    numbers = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
    apex = ", the apex among them" if expression.apex in missing else ""
    return Problem(
        str(expression.frames[0][1].parent),
        f"{expression.name} lacks {len(missing)} of its {length} frames: {numbers}{apex}",
    )


#: Of lines that are alike, so many are listed one by one.
_ALIKE = 5


def _alike(lines: Sequence[str]) -> list[str]:
    """Lines that differ in names and numbers alone, if they are many, as one: their count and an example."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for line in lines:
        groups[re.sub(r"'[^']*'|\S*[\d/\\]\S*", "#", line)].append(line)
    return [
        line
        for group in groups.values()
        for line in (group if len(group) <= _ALIKE else [f"{len(group)} like this one: {group[0]}"])
    ]


@dataclass
class Census:
    """What was found of a dataset, beside what its authors state."""

    dataset: str
    official: Official | None
    """None of macro-expressions, which are not compared with anything."""
    counts: Counter[str] = field(default_factory=Counter)
    """Usable clips of each emotion."""
    subjects: set[str] = field(default_factory=set)
    subjects_of: dict[str, set[str]] = field(default_factory=dict)
    """Subjects of the usable clips of each emotion."""
    known: list[Known] = field(default_factory=list)
    """Clips that the official counts hold and that need not be there; they make no difference, but are said."""
    dropped: list[Problem] = field(default_factory=list)
    """Each row or clip that cannot be used, and why."""
    incomplete: list[Problem] = field(default_factory=list)
    """Each clip that is used although frames of it are missing, and which."""
    sources: list[str] = field(default_factory=list)
    """Where frames and rows are from, and how they were read."""
    notes: list[str] = field(default_factory=list)
    """The sources, and what was decided where the database leaves it open, for example midpoints taken for apexes."""
    parts: list[Census] = field(default_factory=list)
    """Of each dataset that a composite is made of."""

    @classmethod
    def of(cls, dataset: str, official: Official | None, expressions: Sequence[Expression]) -> Census:
        """Counts, missing frames and notes of ``expressions``; what was dropped is the caller's to add."""
        census = cls(dataset, official)
        census.counts.update(expression.emotion for expression in expressions)
        census.subjects = {expression.subject for expression in expressions}
        subjects_of: defaultdict[str, set[str]] = defaultdict(set)
        for expression in expressions:
            subjects_of[expression.emotion].add(expression.subject)
        census.subjects_of = dict(subjects_of)
        census.incomplete = [_missing_frames(e) for e in expressions if e.missing]
        apexes = Counter(expression.apex_from for expression in expressions)
        if set(apexes) - {"annotation"}:
            listed = ", ".join(f"{count} from {origin}" for origin, count in apexes.most_common())
            census.notes.append(f"apexes: {listed}")
        if still := [e.name for e in expressions if e.offset == e.onset]:
            census.notes.append(
                f"{len(still)} clips are of one frame, which shows no movement: {_some(still)}"
            )
        long = sorted((e for e in expressions if e.seconds > 1), key=lambda e: -e.seconds)
        if long and official is not None:
            census.notes.append(
                f"{len(long)} of {len(expressions)} clips last longer than 1 s, {long[0].name} the longest with "
                f"{long[0].seconds:.1f} s; --longest 1 leaves them out"
            )
        census.notes += [f"{e.name}: {note}" for e in expressions for note in e.notes]
        return census

    @property
    def emotions(self) -> list[str]:
        """The official ones, then what else was found."""
        return list(dict.fromkeys([*(self.official.counts if self.official else ()), *self.counts]))

    @property
    def differences(self) -> list[str]:
        """Where it departs from the official numbers, but for what is known; empty if it does not."""
        if self.official is None:
            return []
        lines = []
        known = Counter(clip.emotion for clip in self.known)
        for emotion in self.emotions:
            found, stated = self.counts[emotion], self.official.counts.get(emotion, 0)
            if found + known[emotion] != stated:
                lines.append(f"{emotion}: {found} clips, official {stated}")
        if len(self.subjects | {clip.subject for clip in self.known}) != self.official.subjects:
            lines.append(f"{len(self.subjects)} subjects, official {self.official.subjects}")
        return lines + [f"{part.dataset}: {line}" for part in self.parts for line in part.differences]

    @property
    def gaps(self) -> list[str]:
        """What every output must say: clips that are not there, for each reason that is known."""
        if self.official is None:
            return []
        names: defaultdict[str, list[str]] = defaultdict(list)
        for clip in self.known:
            names[clip.reason].append(clip.name)
        total = sum(self.official.counts.values())
        return [f"{total - len(few)} of {total}: {_some(few)} {reason}" for reason, few in names.items()]

    def as_json(self) -> dict[str, Any]:
        """All of it, each row that is dropped, incomplete or noted among it; null for numbers that nobody states."""
        official = self.official
        return {
            "dataset": self.dataset,
            "release": (official and official.release) or None,
            "agrees": not self.differences,
            "differences": self.differences,
            "clips": {"found": self.counts.total(), "official": official and sum(official.counts.values())},
            "subjects": {"found": len(self.subjects), "official": official and official.subjects},
            "emotions": {
                emotion: {
                    "clips": self.counts[emotion],
                    "official": official and official.counts.get(emotion, 0),
                    "subjects": len(self.subjects_of.get(emotion, ())),
                }
                for emotion in self.emotions
            },
            "dropped": [problem._asdict() for problem in self.dropped],
            "incomplete": [problem._asdict() for problem in self.incomplete],
            "known_to_be_missing": [clip._asdict() for clip in self.known],
            "notes": self.notes,
            "parts": [part.as_json() for part in self.parts],
        }

    def _table(self) -> list[str]:
        official = self.official
        rows: list[tuple[str, ...]] = [(self.dataset, "clips", "official", "subjects", "official")]
        for emotion in self.emotions:
            stated = f"{official.counts.get(emotion, 0)}" if official else ""
            subjects = self.subjects_of.get(emotion, set())
            rows.append((emotion, f"{self.counts[emotion]}", stated, f"{len(subjects)}", ""))
        both = (f"{sum(official.counts.values())}", f"{official.subjects}") if official else ("", "")
        rows.append(("all", f"{self.counts.total()}", both[0], f"{len(self.subjects)}", both[1]))
        if official is None:
            rows = [(row[0], row[1], row[3]) for row in rows]
        name = max(len(row[0]) for row in rows)
        lines = (f"{row[0]:<{name}}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows)
        return [line.rstrip() for line in lines]

    def describe(self, *, every: bool = False) -> str:
        """Counts beside the official ones, dropped rows with their reasons, missing frames, notes, differences.

        Args:
            every: list each row, also where many are alike.
        """
        sections = [self._table(), *(part._table() for part in self.parts)]
        listed = {
            "dropped": [f"{p.path}: {p.reason}" for p in self.dropped],
            **{f"dropped of {c.dataset}": [f"{p.path}: {p.reason}" for p in c.dropped] for c in self.parts},
            "used with frames missing": [f"{p.path}: {p.reason}" for p in self.incomplete],
            "notes": self.notes,
            "known to be missing": self.gaps,
            f"differs from the official census of {self.dataset}": self.differences,
        }
        for title, lines in listed.items():
            if lines:
                shown = lines if every else _alike(lines)
                sections.append([f"{title} ({len(lines)}):", *(f"  {line}" for line in shown)])
        if self.official is not None and not self.differences:
            release = f" (release {self.official.release})" if self.official.release else ""
            but = ", but for what is known to be missing" if self.known else ""
            sections.append([f"agrees with the official census of {self.dataset}{release}{but}"])
        return "\n\n".join("\n".join(section) for section in sections)


def _some(names: Sequence[str]) -> str:
    """Names, or if they are many the first and the count."""
    return ", ".join(names) if len(names) <= _ALIKE else f"{', '.join(names[:3])}, … ({len(names)} clips)"


class Dataset(NamedTuple):
    """What a loader gives."""

    expressions: list[Expression]
    census: Census
