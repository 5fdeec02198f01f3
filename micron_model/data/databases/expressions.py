"""Micro-expressions as the databases list them, and the census of what was found of them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from ..clips.frames import Problem


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


def _missing_frames(expression: Expression) -> Problem:
    missing, length = expression.missing, expression.offset - expression.onset + 1
    numbers = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
    apex = ", the apex among them" if expression.apex in missing else ""
    return Problem(
        str(expression.frames[0][1].parent),
        f"{expression.name} lacks {len(missing)} of its {length} frames: {numbers}{apex}",
    )


@dataclass
class Census:
    """What was found of a dataset, beside what its authors state."""

    dataset: str
    official: Official
    counts: Counter[str] = field(default_factory=Counter)
    """Usable clips of each emotion."""
    subjects: set[str] = field(default_factory=set)
    subjects_of: dict[str, set[str]] = field(default_factory=dict)
    """Subjects of the usable clips of each emotion."""
    dropped: list[Problem] = field(default_factory=list)
    """Each row or clip that cannot be used, and why."""
    incomplete: list[Problem] = field(default_factory=list)
    """Each clip that is used although frames of it are missing, and which."""
    notes: list[str] = field(default_factory=list)
    """What was decided where the database leaves it open, for example apexes taken from the midpoint."""
    parts: list[Census] = field(default_factory=list)
    """Of each dataset that a composite is made of."""

    @classmethod
    def of(cls, dataset: str, official: Official, expressions: Sequence[Expression]) -> Census:
        """Counts, missing frames and notes of ``expressions``; what was dropped is the caller's to add."""
        census = cls(dataset, official)
        census.counts.update(expression.emotion for expression in expressions)
        census.subjects = {expression.subject for expression in expressions}
        subjects_of: defaultdict[str, set[str]] = defaultdict(set)
        for expression in expressions:
            subjects_of[expression.emotion].add(expression.subject)
        census.subjects_of = dict(subjects_of)
        census.incomplete = [_missing_frames(e) for e in expressions if e.missing]
        census.notes = [f"{e.name}: {note}" for e in expressions for note in e.notes]
        apexes = Counter(expression.apex_from for expression in expressions)
        if set(apexes) - {"annotation"}:
            listed = ", ".join(f"{count} from {origin}" for origin, count in apexes.most_common())
            census.notes.insert(0, f"apexes: {listed}")
        return census

    @property
    def emotions(self) -> list[str]:
        """The official ones, then what else was found."""
        return list(dict.fromkeys([*self.official.counts, *self.counts]))

    @property
    def differences(self) -> list[str]:
        """Where it departs from the official numbers; empty if it does not."""
        lines = []
        for emotion in self.emotions:
            found, stated = self.counts[emotion], self.official.counts.get(emotion, 0)
            if found != stated:
                lines.append(f"{emotion}: {found} clips, official {stated}")
        if len(self.subjects) != self.official.subjects:
            lines.append(f"{len(self.subjects)} subjects, official {self.official.subjects}")
        return lines + [f"{part.dataset}: {line}" for part in self.parts for line in part.differences]

    def _table(self) -> list[str]:
        rows = [(self.dataset, "clips", "official", "subjects", "official")]
        for emotion in self.emotions:
            stated, subjects = self.official.counts.get(emotion, 0), self.subjects_of.get(emotion, set())
            rows.append((emotion, f"{self.counts[emotion]}", f"{stated}", f"{len(subjects)}", ""))
        stated, subjects = sum(self.official.counts.values()), self.subjects
        rows.append(
            ("all", f"{self.counts.total()}", f"{stated}", f"{len(subjects)}", f"{self.official.subjects}")
        )
        name = max(len(row[0]) for row in rows)
        lines = (f"{row[0]:<{name}}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows)
        return [line.rstrip() for line in lines]

    def describe(self) -> str:
        """Counts beside the official ones, every dropped row with its reason, missing frames, notes, differences."""
        sections = [self._table(), *(part._table() for part in self.parts)]
        listed = {
            "dropped": [f"{p.path}: {p.reason}" for p in self.dropped],
            **{f"dropped of {c.dataset}": [f"{p.path}: {p.reason}" for p in c.dropped] for c in self.parts},
            "used with frames missing": [f"{p.path}: {p.reason}" for p in self.incomplete],
            "notes": self.notes,
            f"differs from the official census of {self.dataset}": self.differences,
        }
        for title, lines in listed.items():
            if lines:
                sections.append([f"{title} ({len(lines)}):", *(f"  {line}" for line in lines)])
        if not self.differences:
            sections.append([f"agrees with the official census of {self.dataset}"])
        return "\n\n".join("\n".join(section) for section in sections)


class Dataset(NamedTuple):
    """What a loader gives."""

    expressions: list[Expression]
    census: Census
