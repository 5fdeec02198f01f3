"""Micro-expressions as the databases list them, and the census of what was found of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from .frames import Problem


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

    @property
    def subject(self) -> str:
        """Canonical: those of two datasets never meet."""
        return canonical_subject(self.dataset, self.subject_text)

    def path(self, number: int) -> Path:
        """The file of the frame of that number, or of the nearest one there is."""
        return min(self.frames, key=lambda frame: (abs(frame[0] - number), frame[0]))[1]


class Official(NamedTuple):
    """What the database's authors state."""

    subjects: int
    counts: Mapping[str, int]
    """Clips of each emotion."""


@dataclass
class Census:
    """What was found of a dataset, beside what its authors state."""

    dataset: str
    official: Official
    counts: Counter[str] = field(default_factory=Counter)
    """Usable clips of each emotion."""
    subjects: set[str] = field(default_factory=set)
    dropped: list[Problem] = field(default_factory=list)
    """Each row or clip that cannot be used, and why."""
    incomplete: list[Problem] = field(default_factory=list)
    """Each clip that is used although frames of it are missing, and which."""
    notes: list[str] = field(default_factory=list)
    """What was decided where the database leaves it open, for example apexes taken from the midpoint."""

    @classmethod
    def of(cls, dataset: str, official: Official, expressions: Sequence[Expression]) -> Census:
        census = cls(dataset, official)
        census.counts.update(expression.emotion for expression in expressions)
        census.subjects = {expression.subject for expression in expressions}
        return census

    @property
    def differences(self) -> list[str]:
        """Where it departs from the official numbers; empty if it does not."""
        lines = []
        for emotion in dict.fromkeys([*self.official.counts, *self.counts]):
            found, stated = self.counts[emotion], self.official.counts.get(emotion, 0)
            if found != stated:
                lines.append(f"{emotion}: {found} clips, official {stated}")
        if len(self.subjects) != self.official.subjects:
            lines.append(f"{len(self.subjects)} subjects, official {self.official.subjects}")
        return lines


class Dataset(NamedTuple):
    """What a loader gives."""

    expressions: list[Expression]
    census: Census
