"""The composite of MEGC 2019: 442 clips of 68 subjects from CASME II, SAMM and SMIC (See et al., FG 2019)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..clips.frames import Problem
from . import casme2 as of_casme2
from . import samm as of_samm
from . import smic as of_smic
from .classes import SCHEMES
from .expressions import Census, Dataset, Expression, Known, Official, Unusable
from .folders import subfolders
from .listed import Reading, clip_of, collect
from .sheets import Column, Row, Sheet, find_sheet, read_sheet, read_tables

LABELS = {"0": "negative", "1": "positive", "2": "surprise"}
OFFICIAL = Official(68, {"negative": 250, "positive": 109, "surprise": 83})
PARTS = {
    "casme2": Official(24, {"negative": 88, "positive": 32, "surprise": 25}),
    "samm": Official(28, {"negative": 92, "positive": 26, "surprise": 15}),
    "smic": Official(16, {"negative": 70, "positive": 51, "surprise": 43}),
}
_LOADERS: dict[str, Callable[..., Dataset]] = {
    "casme2": of_casme2.load,
    "samm": of_samm.load,
    "smic": of_smic.load,
}
#: How the folder of a part begins.
_NAMES = {"casme2": r"cas\W?me[\W_]*(2|ii)(?![\di])", "samm": r"samm(?![\W_]*(lv|long))", "smic": r"smic"}
_CLIPS = {"casme2": r"ep\d+_\d+[a-z]?", "samm": r"\d{3}_\d+_\d+", "smic": r"s\d+_(ne|po|su)[a-z]*_\d+"}
_CLIP_NAMES: dict[str, Callable[[str, str], str]] = {
    "casme2": of_casme2.clip_name,
    "samm": of_samm.clip_name,
    "smic": lambda _subject, filename: of_smic.clip_name(filename),
}
#: A clip that one copy of the csv lacks.
_ABSENT = ("samm", "032/032_3_1")
COLUMNS = tuple(Column(name, name) for name in ("dataset", "subject", "filename", "label"))


@dataclass(frozen=True)
class Part:
    """Where a part of the composite is, if the folder of the whole does not say."""

    root: Path | None = None
    """Its folder."""
    layout: str | None = None
    """Of several layouts of its frames, the one to read."""
    sheet: Path | None = None
    """Its sheet, if it is elsewhere or one of several."""
    columns: dict[str, str] | None = None
    """What its sheet calls its columns."""


def _part_of(text: str) -> str | None:
    """Of a cell of the csv."""
    return next((p for p, name in _NAMES.items() if re.fullmatch(rf"{name}([\W_]*hs)?", text, re.I)), None)


def _label_of(text: str) -> str | None:
    return LABELS.get(text) or (text.lower() if text.lower() in LABELS.values() else None)


def _clip_of(row: Row) -> tuple[str, str, str]:
    """Part, name and label. Raises Unusable if it has none."""
    part, label = _part_of(row["dataset"]), _label_of(row["label"])
    if part is None or label is None:
        raise Unusable(
            f"{row['dataset']!r} is none of {', '.join(PARTS)}, or {row['label']!r} none of {', '.join(LABELS)}"
        )
    return part, _CLIP_NAMES[part](row["subject"], clip_of(row["filename"])), label


def _is_clip(cells: Sequence[str], dataset: int, filename: int) -> bool:
    part, name = _part_of(cells[dataset]), clip_of(cells[filename])
    return part is not None and re.fullmatch(_CLIPS[part], name, re.IGNORECASE) is not None


def _is_subject(cells: Sequence[str], dataset: int, filename: int, subject: int) -> bool:
    """That of the clip, whose name begins with it in SAMM and SMIC."""
    found = re.fullmatch(r"[a-z]*0*(\d+)", cells[subject], re.IGNORECASE)
    own = re.match(r"s?0*(\d+)_", clip_of(cells[filename]), re.IGNORECASE)
    if _part_of(cells[dataset]) == "casme2":
        return found is not None
    return found is not None and own is not None and found[1] == own[1]


def _places(rows: Sequence[Sequence[str]], known: dict[str, int]) -> dict[str, int]:
    """Which column of a csv without a header is which: the one whose cells can be nothing else.

    Args:
        known: those that the user named.
    """
    places = dict(known)
    columns = range(min(map(len, rows), default=0))

    def choose(role: str, fits: Callable[[Sequence[str], int], bool]) -> None:
        if role not in places:
            counts = [sum(fits(row, column) for row in rows) for column in columns]
            best = max(counts, default=0)
            if 2 * best > len(rows):
                places[role] = counts.index(best)

    choose("dataset", lambda row, column: _part_of(row[column]) is not None)
    if "dataset" in places:
        choose("filename", lambda row, column: _is_clip(row, places["dataset"], column))
    if "filename" in places:
        choose("subject", lambda r, column: _is_subject(r, places["dataset"], places["filename"], column))
    choose("label", lambda row, column: _label_of(row[column]) is not None)
    return places


def _read_rows(path: Path, given: Mapping[str, str] | None) -> Sheet:
    """The published csv has no header; copies have one, more columns, or both.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it cannot be read, or which column is which cannot be told.
    """
    given = given or {}
    numbers = {role: int(name) - 1 for role, name in given.items() if name.isdecimal()}
    if not numbers:
        try:
            return read_sheet(path, COLUMNS, given=given)
        except ValueError:
            if given:
                raise
    tables, notes = read_tables(path)
    table = next(iter(tables.values()), {})
    places = _places([cells for cells in table.values() if len(cells) >= len(COLUMNS)], numbers)
    if missing := [column.role for column in COLUMNS if column.role not in places]:
        raise ValueError(
            f"{path}: which column holds {' and '.join(missing)} cannot be told. Say it by the name in its header, or "
            f"by number from 1: --columns {missing[0]} NAME"
        )
    rows = [
        Row(path, n, {role: cells[i] if i < len(cells) else "" for role, i in places.items()})
        for n, cells in table.items()
    ]
    return Sheet(path, rows, {role: f"column {i + 1}" for role, i in places.items()}, notes)


def _load_part(root: Path, part: str, at: Part, layout: str | None, options: Mapping[str, Any]) -> Dataset:
    """That of the only folder of such a name; or else of all of ``root``, where sheet and frames may lie apart.

    Raises FileNotFoundError or ValueError that names this command's options.
    """
    options = {**options, "layout": at.layout or layout, "sheet": at.sheet, "columns": at.columns}
    named = subfolders(root, f"{_NAMES[part]}.*")
    places = [at.root] if at.root else [*named, root] if len(named) == 1 else [root]
    failed: Exception | None = None
    for place in places:
        try:
            return _LOADERS[part](place, **options)
        except (FileNotFoundError, ValueError) as error:
            failed = failed or error
            if not isinstance(error, FileNotFoundError):
                break
    assert failed is not None
    text = re.sub(r"(?<![\w-])--(sheet|layout|columns)\b", rf"--{part}-\1", str(failed))
    text = re.sub(r"\bas ROOT\b", f"with --{part}", text)
    text = text.replace("give the folder that was unpacked", f"name its folder with --{part}")
    raise type(failed)(f"{part}: {text}") from None


def _labelled(expression: Expression, emotion: str) -> Expression:
    """The expression with the composite's label, and a note where the dataset's own says otherwise."""
    own = SCHEMES["3"].class_of(expression.dataset, expression.emotion)
    if own == emotion:
        return replace(expression, emotion=emotion)
    note = f"labelled {emotion} in the composite, {expression.emotion} in {expression.dataset}"
    return replace(expression, emotion=emotion, notes=(*expression.notes, note))


def load(
    root: str | Path,
    *,
    layout: str | None = None,
    sheet: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    apexes: str | Path | None = None,
    reading: Reading | None = None,
    casme2: str | Path | Part | None = None,
    samm: str | Path | Part | None = None,
    smic: str | Path | Part | None = None,
) -> Dataset:
    """The expressions of the composite: of each dataset those in its csv, with the csv's label as emotion.

    Args:
        root: the folder that holds ``combined_3class_gt.csv`` and the folders of the three datasets.
        layout: of all three: ``"cropped"`` or ``"raw"``; if not given, of each the first that is there.
        sheet: the csv, if it is elsewhere.
        columns: which columns of the csv are dataset, subject, filename and label; by name, or without a header by
            number from 1. If not given, what is in them says it.
        apexes: as SMIC's loader takes it.
        reading: which clips are left out, and what is done about an apex that is the onset.
        casme2, samm, smic: where that dataset is, if it is not in ``root`` under its name: its folder, or more.

    Raises:
        FileNotFoundError: the csv, a folder, or what a dataset's own loader needs is not there.
        ValueError: the csv or a sheet cannot be read, or there is a choice.
    """
    root = Path(root)
    listed = _read_rows(
        find_sheet(root, ".*", "combined_3", sheet, example="combined_3class_gt.csv"), columns
    )
    loaded = {}
    for part, at in zip(PARTS, (casme2, samm, smic), strict=True):
        where = at if isinstance(at, Part) else Part(None if at is None else Path(at))
        options = {"reading": reading} | ({"apexes": apexes} if part == "smic" else {})
        loaded[part] = _load_part(root, part, where, layout, options)
    clips = {(part, e.name.lower()): e for part, found in loaded.items() for e in found.expressions}
    absent = {(part, clip.name.lower()): clip for part, f in loaded.items() for clip in f.census.known}
    known: dict[str, list[Known]] = {part: [] for part in PARTS}

    listed_clips: set[tuple[str, str]] = set()

    def is_known(row: Row) -> bool:
        try:
            part, name, label = _clip_of(row)
        except Unusable:
            return False
        listed_clips.add((part, name))
        clip = absent.get((part, name.lower()))
        if clip is not None:
            known[part].append(clip._replace(emotion=label))
        return clip is not None

    def read(row: Row) -> Expression:
        part, name, label = _clip_of(row)
        if (part, name.lower()) not in clips:
            raise Unusable(f"{part} has no usable clip {name}")
        return _labelled(clips[part, name.lower()], label)

    notes = [f"rows of {listed.path}", *listed.notes]
    rows = [row for row in listed.rows if not is_known(row)]
    dataset = collect("megc2019", OFFICIAL, rows, read, notes, reading)
    dataset.census.known = [
        clip._replace(name=f"{clip.name} of {part}") for part in PARTS for clip in known[part]
    ]
    if 2 * len(dataset.expressions) > sum(OFFICIAL.counts.values()) and _ABSENT not in listed_clips:
        dataset.census.dropped.append(
            Problem(
                str(listed.path),
                f"lacks {_ABSENT[1]} of {_ABSENT[0]}, as one copy does; the published csv has it",
            )
        )
    for part, found in loaded.items():
        census = Census.of(part, PARTS[part], [e for e in dataset.expressions if e.dataset == part])
        census.dropped, census.known = found.census.dropped, known[part]
        dataset.census.parts.append(census)
        dataset.census.notes += [f"{part}: {source}" for source in found.census.sources]
    return dataset
