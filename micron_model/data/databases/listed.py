"""From the rows in which a database lists its clips, and the folders of frames, to expressions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar

from ..clips.find import VIDEO_SUFFIXES
from ..clips.frames import IMAGE_SUFFIXES, Problem
from .expressions import (
    Census,
    Dataset,
    Expression,
    Known,
    Official,
    Unusable,
    canonical_subject,
    same_emotion,
)
from .folders import Tree, find_frames
from .sheets import Column, Row, Sheet


class OtherFrames(Unusable):
    """There are frames, but none of the interval."""


@dataclass(frozen=True)
class Reading:
    """What is done with clips in which no movement can be seen, or too much else."""

    still_apex: Literal["midpoint", "drop"] = "midpoint"
    """Where the apex is the onset, so that between the two nothing moves: take the midpoint for it, or leave the clip
    out."""
    longest: float | None = None
    """Leave out clips that last longer than so many seconds."""
    allow_missing_frames: bool = False
    """Go on although most clips lack frames, as copies do that hold onset, apex and offset alone. Clips that lack their
    onset or apex are left out then."""

    def __post_init__(self) -> None:
        if self.longest is not None and not self.longest > 0:
            raise ValueError(f"--longest {self.longest}: it is a time in seconds, more than 0")


def whole_number(text: str) -> int | None:
    """None for what is no number of a frame, such as ``/`` or an empty cell."""
    return int(text) if text.isdecimal() else None


def midpoint(onset: int, offset: int) -> int:
    """After the onset, where there is a frame after it."""
    return min(offset, max(onset + 1, (onset + offset) // 2))


class Interval(NamedTuple):
    """Numbers of frames, onset ≤ apex ≤ offset, and what was decided to have them so."""

    onset: int
    apex: int
    offset: int
    apex_from: Literal["annotation", "midpoint"]
    notes: tuple[str, ...]


def read_interval(
    onset: str, apex: str | None, offset: str, *, trusted: Literal["apex", "offset"]
) -> Interval:
    """The interval that three cells state.

    An offset before the onset, or none, is replaced by the apex: the last frame that is known to belong to the
    expression. An apex outside the interval, or none, is replaced by the midpoint of onset and offset. Where the apex
    comes after the offset one of the two is wrong, and ``trusted`` says which is kept.

    Args:
        apex: None where the sheet has no column of them, of which nothing is noted.

    Raises:
        Unusable: there is no onset, or neither apex nor offset can be used.
    """
    first, top, last = whole_number(onset), whole_number(apex or ""), whole_number(offset)
    if first is None:
        raise Unusable(f"its onset {onset!r} is no number of a frame")
    notes = []
    apex_from: Literal["annotation", "midpoint"] = "annotation"
    follows = top if top is not None and top >= first else None
    apex_beyond = trusted == "apex" and follows is not None and last is not None and last < follows
    if last is None or last < first or apex_beyond:
        if follows is None:
            stated = f"its offset {offset!r} does not come" if apex is None else (
                f"neither its apex {apex!r} nor its offset {offset!r} comes"
            )  # fmt: skip
            raise Unusable(f"{stated} after its onset {onset}")
        notes.append(
            f"offset {offset!r} does not follow onset {first} and apex {follows}: the apex is taken for it"
        )
        last = follows
    if top is None or not first <= top <= last:
        outside = "is no number of a frame" if top is None else f"is outside {first} to {last}"
        top, apex_from = midpoint(first, last), "midpoint"
        if apex is not None:
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
        kind = OtherFrames if frames else Unusable
        raise kind(f"no frame from {onset} to {offset} in {folder}: {reason}")
    return found


def subject_number(dataset: str, text: str) -> int:
    """Raises Unusable if there is none."""
    try:
        return int(canonical_subject(dataset, text).rpartition("/")[2])
    except ValueError as error:
        raise Unusable(str(error)) from None


def clip_of(cell: str) -> str:
    """The name of a clip where a copy of the sheet has a path, also one of Windows, or a video."""
    parts = [part for part in re.split(r"[\\/]", cell) if part] or [cell]
    if len(parts) > 1 and Path(parts[-1]).suffix.lower() in IMAGE_SUFFIXES:
        parts.pop()
    name = parts[-1]
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in VIDEO_SUFFIXES else name


def spelled(emotion: str, official: Official) -> str:
    """An emotion in lower case, as its database spells it."""
    emotion = emotion.lower()
    if emotion in official.counts:
        return emotion
    return next((name for name in official.counts if same_emotion(name, emotion)), emotion)


class Facts(NamedTuple):
    """What is known of a database that lists its clips in a sheet.

    Attributes:
        dataset: key of ``DATASETS``.
        fps: frames a second.
        releases: official counts; where there are several sheets, of each.
        columns: of the sheet.
        trusted: as :func:`read_interval` takes it.
        absent: clips that some copies of the sheet are known to lack.
        short: clips of which a release is known to lack frames, and which release.
        slips: of clips, the apex that the published sheet has and the one that is meant.
        macro: whether it lists macro-expressions; the releases then give the spelling alone.
    """

    dataset: str
    fps: float
    releases: Sequence[Official]
    columns: Sequence[Column]
    trusted: Literal["apex", "offset"]
    absent: Sequence[str] = ()
    short: Mapping[str, str] = {}
    slips: Mapping[str, tuple[str, str]] = {}
    macro: bool = False


def usual_columns(onset: str, apex: str, offset: str, emotion: str) -> tuple[Column, ...]:
    """Those of most sheets, as the database calls them; copies may lack the apex."""
    return (
        Column("subject", "Subject"),
        Column("filename", "Filename"),
        Column("onset", onset),
        Column("apex", apex, required=False),
        Column("offset", offset),
        Column("emotion", emotion),
    )


def choose_release(releases: Sequence[Official], sheet: Sheet) -> Official:
    """That of which the sheet has every count; else the one that its name names; else the nearest."""
    counts = Counter(spelled(row["emotion"], releases[0]) for row in sheet.rows)

    def distance(release: Official) -> tuple[bool, bool, int]:
        differ = sum(abs(counts[e] - release.counts.get(e, 0)) for e in {*counts, *release.counts})
        return differ > 0, release.release not in sheet.path.name, differ

    return min(releases, key=distance)


def read_listed(
    facts: Facts,
    sheet: Sheet,
    tree: Tree,
    place: Callable[[Row], tuple[str, Path]],
    reading: Reading | None,
    find: Callable[[Path], dict[int, Path]] = find_frames,
) -> Dataset:
    """The expressions that a sheet lists.

    Args:
        place: the name of a row's clip and the folder of its frames.
        find: gives the frames of a folder by number.

    Raises:
        ValueError: its emotions are numbers, or what :func:`collect` raises.
    """
    official = choose_release(facts.releases, sheet)
    named = {row["emotion"] for row in sheet.rows if row["emotion"]}
    if named and all(re.fullmatch(r"-?\d+", name) for name in named):
        raise ValueError(
            f"{sheet.path}: its column {sheet.columns['emotion']!r} holds numbers ({', '.join(sorted(named)[:4])}), "
            "which name no emotion; say which column holds names: --columns emotion NAME"
        )
    notes = [f"rows of {sheet.path}", *tree.notes, *sheet.notes]
    if "apex" not in sheet.columns:
        notes.append(f"{sheet.path.name}: has no column of apexes, so midpoints are taken")
    renamed = Counter(
        (row["emotion"].lower(), spelled(row["emotion"], official)) for row in sheet.rows if row["emotion"]
    )
    notes += [f"emotion {a!r} is read as {b!r}, in {n} rows" for (a, b), n in renamed.items() if a != b]

    listed: set[str] = set()

    def read(row: Row) -> Expression:
        name, folder = place(row)
        listed.add(name)
        apex = row["apex"] if "apex" in sheet.columns else None
        written, meant = facts.slips.get(name, ("", ""))
        slip = apex is not None and apex == written
        interval = read_interval(row["onset"], meant if slip else apex, row["offset"], trusted=facts.trusted)
        if slip:
            note = f"apex {written!r} is a slip of the published sheet: {meant} is taken"
            interval = interval._replace(notes=(*interval.notes, note))
        if not row["emotion"]:
            raise Unusable(f"its {sheet.columns['emotion']!r} is empty")
        frames = between(find(folder), interval.onset, interval.offset, folder)
        return Expression(
            dataset=facts.dataset,
            subject_text=row["subject"],
            name=name,
            emotion=spelled(row["emotion"], official),
            fps=facts.fps,
            frames=frames,
            **interval._asdict(),
        )

    source = f"frames of layout {tree.layout!r}: {tree.folder}"
    counts = None if facts.macro else official
    found = collect(facts.dataset, counts, sheet.rows, read, [source, *notes], reading)
    found.census.incomplete = [
        Problem(
            path, reason + (f"; so in {facts.short[name]} as it is published" if name in facts.short else "")
        )
        for path, reason in found.census.incomplete
        for name in [reason.split(" ")[0]]
    ]
    lacking = [name for name in facts.absent if name not in listed]
    if lacking and 2 * len(found.expressions) > sum(official.counts.values()):
        found.census.dropped.append(
            Problem(
                str(sheet.path),
                f"lacks {', '.join(lacking)}, as some copies do; the published sheet has them",
            )
        )
    return found


class Listed(Protocol):
    """A row, or whatever else lists a clip."""

    @property
    def where(self) -> str: ...


L = TypeVar("L", bound=Listed)


def collect(
    dataset: str,
    official: Official | None,
    listed: Iterable[L],
    read: Callable[[L], Expression],
    notes: Sequence[str],
    reading: Reading | None = None,
) -> Dataset:
    """The expression of each row, and the census with those rows that give none.

    Args:
        official: None of macro-expressions, which nobody counts.
        read: makes an expression of a row, or raises Unusable.
        notes: of the whole, the first of them where the frames come from.
        reading: which expressions are left out.

    Raises:
        ValueError: most clips lack frames, and that is not allowed.
    """
    reading = reading or Reading()
    where: dict[str, str] = {}
    expressions: list[Expression] = []
    dropped, elsewhere, known = [], [], []
    for row in listed:
        try:
            expression = read(row)
            if expression.name in where:
                raise Unusable(f"{expression.name} is listed already: {where[expression.name]}")
        except (Unusable, PermissionError) as error:
            dropped.append(Problem(row.where, str(error)))
            if isinstance(error, OtherFrames):
                elsewhere.append(str(error))
            continue
        where[expression.name] = row.where
        if reason := _left_out(expression, reading):
            known.append(Known(expression.name, expression.subject, expression.emotion, reason))
        else:
            expressions.append(expression)
    still = [e for e in expressions if e.apex == e.onset < e.offset]
    expressions = [_with_moving_apex(e) for e in expressions]
    gaps = [f"{e.name} lacks {len(e.missing)} of {e.offset - e.onset + 1}" for e in expressions if e.missing]
    lacking, of = len(elsewhere) + len(gaps), len(elsewhere) + len(expressions)
    if 2 * lacking > of and not reading.allow_missing_frames:
        raise ValueError(
            f"{lacking} of {of} clips of {dataset} lack frames of their interval, for example: "
            f"{(elsewhere or gaps)[0]}. Were the frames renumbered, or thinned out? Their numbers must be those of the "
            "sheet. --allow-missing-frames uses the clips that have their onset and apex"
        )
    if reading.allow_missing_frames:
        for e in [e for e in expressions if {e.onset, e.apex} & set(e.missing)]:
            expressions.remove(e)
            dropped.append(Problem(where[e.name], f"{e.name} lacks the frame of its onset or apex"))
    census = Census.of(dataset, official, expressions)
    census.dropped, census.known, census.sources = dropped, known, list(notes)
    census.notes = [*notes, *census.notes]
    if still and official is not None:
        census.notes.append(
            f"apex = onset in {len(still)} of {len(expressions)} clips; their midpoints are taken, and --still-apex "
            "drop leaves them out"
        )
    return Dataset(expressions, census)


def _left_out(expression: Expression, reading: Reading) -> str | None:
    """Why, or None."""
    if reading.still_apex == "drop" and expression.apex == expression.onset:
        return "left out, as the apex is the onset (--still-apex drop)"
    if reading.longest is not None and expression.seconds > reading.longest:
        return f"left out, as longer than {reading.longest:g} s (--longest)"
    return None


def _with_moving_apex(expression: Expression) -> Expression:
    onset, offset = expression.onset, expression.offset
    if expression.apex > onset or offset == onset:
        return expression
    apex = midpoint(onset, offset)
    note = f"apex = onset {onset}, where nothing has moved yet: the midpoint {apex} is taken"
    return replace(expression, apex=apex, apex_from="midpoint", notes=(*expression.notes, note))
