"""From the rows in which a database lists its clips, and the folders of frames, to expressions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar

from ..clips.frames import Problem
from .expressions import Census, Dataset, Expression, Official, canonical_subject
from .sheets import Row


class Unusable(ValueError):
    """A row or clip that gives no expression; the message is the reason."""


def whole_number(text: str) -> int | None:
    """None for what is no number of a frame, such as ``/`` or an empty cell."""
    return int(text) if text.isdecimal() else None


class Interval(NamedTuple):
    """Numbers of frames, onset ≤ apex ≤ offset, and what was decided to have them so."""

    onset: int
    apex: int
    offset: int
    apex_from: Literal["annotation", "midpoint"]
    notes: tuple[str, ...]


def read_interval(onset: str, apex: str, offset: str, *, trusted: Literal["apex", "offset"]) -> Interval:
    """The interval that three cells state.

    An offset before the onset, or none, is replaced by the apex: the last frame that is known to belong to the
    expression. An apex outside the interval, or none, is replaced by the midpoint of onset and offset. Where the apex
    comes after the offset one of the two is wrong, and ``trusted`` says which is kept.

    Raises:
        Unusable: there is no onset, or neither apex nor offset can be used.
    """
    first, top, last = whole_number(onset), whole_number(apex), whole_number(offset)
    if first is None:
        raise Unusable(f"its onset {onset!r} is no number of a frame")
    notes = []
    apex_from: Literal["annotation", "midpoint"] = "annotation"
    follows = top if top is not None and top >= first else None
    apex_beyond = trusted == "apex" and follows is not None and last is not None and last < follows
    if last is None or last < first or apex_beyond:
        if follows is None:
            raise Unusable(
                f"neither its apex {apex!r} nor its offset {offset!r} comes after its onset {onset}"
            )
        notes.append(
            f"offset {offset!r} does not follow onset {first} and apex {follows}: the apex is taken for it"
        )
        last = follows
    if top is None or not first <= top <= last:
        outside = "is no number of a frame" if top is None else f"is outside {first} to {last}"
        top, apex_from = (first + last) // 2, "midpoint"
        notes.append(f"apex {apex!r} {outside}: the midpoint {top} is taken")
    return Interval(first, top, last, apex_from, tuple(notes))


def between(frames: dict[int, Path], onset: int, offset: int, folder: Path) -> tuple[tuple[int, Path], ...]:
    """The frames from onset to offset.

    Raises:
        Unusable: there is not one; the message names ``folder``, where they were looked for.
    """
    found = tuple((number, path) for number, path in frames.items() if onset <= number <= offset)
    if not found:
        there = f"its frames are {min(frames)} to {max(frames)}" if frames else "it holds no image"
        reason = there if folder.is_dir() else "there is no such folder"
        raise Unusable(f"no frame from {onset} to {offset} in {folder}: {reason}")
    return found


def subject_number(dataset: str, text: str) -> int:
    """Raises Unusable if there is none."""
    try:
        return int(canonical_subject(dataset, text).rpartition("/")[2])
    except ValueError as error:
        raise Unusable(str(error)) from None


class Columns(NamedTuple):
    """What a database calls its columns."""

    onset: str
    apex: str
    offset: str
    emotion: str
    subject: str = "Subject"
    filename: str = "Filename"


def read_expression(
    row: Row,
    columns: Columns,
    find: Callable[[Path], dict[int, Path]],
    *,
    dataset: str,
    name: str,
    folder: Path,
    fps: float,
    trusted: Literal["apex", "offset"],
) -> Expression:
    """The expression of a row.

    Args:
        find: gives the frames of a folder by number.
        folder: where those of this row are.
        trusted: as :func:`read_interval` takes it.

    Raises:
        Unusable: it has no onset, no emotion or no frame.
    """
    interval = read_interval(row[columns.onset], row[columns.apex], row[columns.offset], trusted=trusted)
    if not row[columns.emotion]:
        raise Unusable(f"its {columns.emotion!r} is empty")
    frames = between(find(folder), interval.onset, interval.offset, folder)
    return Expression(
        dataset=dataset,
        subject_text=row[columns.subject],
        name=name,
        emotion=row[columns.emotion].lower(),
        fps=fps,
        frames=frames,
        **interval._asdict(),
    )


class Listed(Protocol):
    """A row, or whatever else lists a clip."""

    @property
    def where(self) -> str: ...


L = TypeVar("L", bound=Listed)


def collect(
    dataset: str, official: Official, listed: Iterable[L], read: Callable[[L], Expression], source: str
) -> Dataset:
    """The expression of each row, and the census with those rows that give none.

    Args:
        read: makes an expression of a row, or raises Unusable.
        source: where the frames come from, for the notes.
    """
    where: dict[str, str] = {}
    expressions, dropped = [], []
    for row in listed:
        try:
            expression = read(row)
            if expression.name in where:
                raise Unusable(f"{expression.name} is listed already: {where[expression.name]}")
        except Unusable as error:
            dropped.append(Problem(row.where, str(error)))
        else:
            where[expression.name] = row.where
            expressions.append(expression)
    census = Census.of(dataset, official, expressions)
    census.dropped = dropped
    census.notes.insert(0, source)
    return Dataset(expressions, census)
