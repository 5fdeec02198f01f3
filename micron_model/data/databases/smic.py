"""SMIC, its part HS: 164 clips of 16 subjects at 100 frames a second (Li et al., FG 2013).

The cropped and the raw release have no sheet: their folders list the clips, which go from onset to offset. The clips of
the extended release, SMIC-HS-E, begin before and end after; its sheet has the intervals, up to three in a clip. Frames
have the same numbers in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from ..clips.frames import Problem
from .expressions import Dataset, Expression, Known, Official, Unusable, canonical_subject
from .folders import Layout, Tree, find_frames, find_tree, subfolders
from .listed import Reading, between, clip_of, collect, midpoint, read_interval, whole_number
from .sheets import Column, Row, Sheet, find_sheet, read_sheet

FPS = 100.0
OFFICIAL = Official(16, {"negative": 70, "positive": 51, "surprise": 43})
EMOTIONS = {"ne": "negative", "po": "positive", "sur": "surprise"}
SUBJECT = r"s\d+"
#: How many clips each subject has of ne, po and sur; they are numbered from 1.
_CLIPS = {
    1: (3, 2, 1),
    2: (0, 1, 5),
    3: (22, 11, 6),
    4: (10, 4, 5),
    5: (1, 0, 1),
    6: (2, 0, 2),
    8: (9, 4, 0),
    9: (0, 1, 3),
    11: (3, 3, 1),
    12: (0, 8, 1),
    13: (0, 10, 0),
    14: (3, 2, 5),
    15: (1, 1, 2),
    18: (2, 0, 5),
    19: (0, 1, 1),
    20: (14, 3, 5),
}
NAMES = tuple(
    f"s{subject}_{code}_{number:02d}"
    for subject, counts in _CLIPS.items()
    for code, count in zip(EMOTIONS, counts, strict=True)
    for number in range(1, count + 1)
)
#: Of the cropped release as it is published: its one empty folder, and how many frames of how many others have.
_EMPTY = "s18_sur_03"
_SHORT = {"s3_po_08": (30, 32), "s3_sur_01": (30, 31), "s3_sur_05": (27, 28), "s3_ne_16": (17, 18)}
#: The longest clip of the short releases has 58 frames.
_LONG = 60
# The folders of the other two cameras, NIR and VIS, are named and filled in the same way.
_OF_HS = r"^(?!.*(?<![a-z])(nir|vis)(?![a-z]))"
_EXTENDED = r"(smic|hs)[\W_]*(hs[\W_]*)?e(?![a-z])|(smic|hs)[\W_]*(long|extended)"
LAYOUTS = (
    Layout("cropped", SUBJECT, "s3", _OF_HS + rf"(?!.*({_EXTENDED})).*crop"),
    Layout("raw", SUBJECT, "s3", _OF_HS + rf"(?!.*({_EXTENDED}))"),
    Layout("extended", SUBJECT, "s3", _OF_HS),
)
COLUMNS = (
    Column("filename", "Filename"),
    Column("onset", "OnsetF"),
    Column("offset", "OffsetF"),
    Column("apex", "ApexF", required=False),
    Column("emotion", "Emotion", required=False),
    *(Column(f"{end}{k}", f"{end}{k}F", required=False) for k in (2, 3) for end in ("onset", "offset")),
)


class Clip(NamedTuple):
    """What lists a clip: its folder, or a row of the sheet."""

    text: str
    """Its name, as it is written."""
    folder: Path
    where: str
    row: Row | None = None
    cells: tuple[str, str | None, str] | None = None
    """Onset, apex and offset of the row."""


def clip_name(text: str) -> str:
    """``s18_sur_03``, whatever way it is written: ``s18_su_3``, ``s018_sur_03``. Raises Unusable if it is none."""
    found = re.fullmatch(r"s(\d+)_(ne|po|su)[a-z]*_(\d+)", text, re.IGNORECASE)
    if not found:
        raise Unusable(f"{text!r} is no name of a clip, such as s1_ne_01")
    code = found[2].lower()
    return f"s{int(found[1])}_{'sur' if code == 'su' else code}_{int(found[3]):02d}"


def _find_clips(tree: Path) -> Iterator[Path]:
    for subject in subfolders(tree, SUBJECT):
        yield from subfolders(subject, r"(?!(non_?)?micro$).*")
        for micro in subfolders(subject, "micro"):
            for emotion in subfolders(micro):
                yield from subfolders(emotion)


def _named(text: str) -> str:
    """The name of a clip, or what there is in its place."""
    try:
        return clip_name(text)
    except Unusable:
        return text


def _in_sheet(sheet: Sheet, tree: Tree) -> Iterator[Clip]:
    """The clips of each row. A further expression has the next number that no row has, and the folder of the first."""
    folders = {_named(folder.name): folder for folder in _find_clips(tree.folder)}
    taken = {_named(clip_of(row["filename"])) for row in sheet.rows}
    for row in sheet.rows:
        name = _named(clip_of(row["filename"]))
        folder = folders.get(name, tree.folder / name.split("_")[0] / name)
        apex = row["apex"] if "apex" in sheet.columns else None
        yield Clip(name, folder, row.where, row, (row["onset"], apex, row["offset"]))
        for k in (2, 3):
            if row[f"onset{k}"]:
                stem = name.rpartition("_")[0]
                free = [other for other in NAMES if other.rpartition("_")[0] == stem and other not in taken]
                further = next((other for other in free if other > name), free[0] if free else f"{name}, {k}")
                taken.add(further)
                cells = (row[f"onset{k}"], None, row[f"offset{k}"])
                yield Clip(further, folder, f"{row.where}, expression {k}", row, cells)


def _read_emotion(clip: Clip, name: str) -> str:
    """Of the code in its name, with which the folder of the class and the sheet must agree."""
    emotion, above = EMOTIONS[name.split("_")[1]], clip.folder.parent.name.lower()
    if above in EMOTIONS.values() and above != emotion:
        raise Unusable(f"its name says {emotion}, its folder {above}")
    stated = clip.row["emotion"].lower() if clip.row else ""
    if stated in EMOTIONS.values() and stated != emotion:
        raise Unusable(f"its name says {emotion}, its row {stated}")
    return emotion


def _read_apexes(path: str | Path) -> tuple[dict[str, Row], list[Problem]]:
    """Rows of spotted apexes by clip, and those that name none or one for the second time."""
    rows: dict[str, Row] = {}
    problems = []
    for row in read_sheet(Path(path), (Column("filename", "clip"), Column("apex", "apex"))).rows:
        try:
            name = clip_name(clip_of(row["filename"]))
            if name in rows:
                raise Unusable(f"{name} is in row {rows[name].number} already")
        except Unusable as error:
            problems.append(Problem(row.where, str(error)))
        else:
            rows[name] = row
    return rows, problems


def _choose_apex(
    spotted: Row | None, onset: int, offset: int
) -> tuple[int, Literal["midpoint", "spotting"], tuple[str, ...]]:
    """The apex, where it is from, and what is to be said of it."""
    middle = midpoint(onset, offset)
    if spotted is None:
        return middle, "midpoint", ()
    apex = whole_number(spotted["apex"])
    if apex is None or not onset <= apex <= offset:
        note = f"apex {spotted['apex']!r} of {spotted.where} is not in {onset} to {offset}: the midpoint is taken"
        return middle, "midpoint", (note,)
    return apex, "spotting", ()


def _read(clip: Clip, spotted: dict[str, Row]) -> Expression:
    name = clip_name(clip.text)
    emotion = _read_emotion(clip, name)
    found = find_frames(clip.folder)
    if clip.cells is not None:
        onset, apex, offset, apex_from, notes = read_interval(*clip.cells, trusted="offset")
        frames = between(found, onset, offset, clip.folder)
    elif found:
        frames, notes = tuple(found.items()), ()
        onset, offset, apex_from = min(found), max(found), "midpoint"
    else:
        raise Unusable("it holds no image")
    origin: Literal["annotation", "midpoint", "spotting"] = apex_from
    if origin == "midpoint" or name in spotted:
        apex, origin, more = _choose_apex(spotted.pop(name, None), onset, offset)
        notes += more
    there, whole = _SHORT.get(name, (0, 0))
    if len(frames) == there:
        notes += (f"has {there} of its {whole} frames, as the cropped release is published",)
    return Expression(
        dataset="smic",
        subject_text=name.split("_")[0],
        name=name,
        emotion=emotion,
        fps=FPS,
        frames=frames,
        onset=onset,
        apex=apex,
        offset=offset,
        apex_from=origin,
        notes=notes,
    )


def _find_sheet(root: Path, given: str | Path | None) -> Path:
    try:
        return find_sheet(root, SUBJECT, r"hs.*annot", given, example="SMIC-HS-E_annotation.xlsx")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}. Clips of SMIC-HS-E begin before the expression and end after it, and the sheet says where it is"
        ) from None


def _name_missing(found: Dataset, tree: Tree) -> None:
    """Which of the 164 clips are not there, if most are."""
    census = found.census
    names = {e.name for e in found.expressions} | {clip.name for clip in census.known}
    if 2 * len(names & set(NAMES)) < len(NAMES):
        return
    empty = [
        p for p in census.dropped if _named(Path(p.path).name) == _EMPTY and p.reason.endswith("no image")
    ]
    unnamed = [name for name in NAMES if name not in names]
    if tree.layout != "extended" and _EMPTY in unnamed:
        for problem in empty:
            census.dropped.remove(problem)
        census.known.append(
            Known(_EMPTY, canonical_subject("smic", "s18"), "surprise", "is empty in this release")
        )
        unnamed.remove(_EMPTY)
    said = "\n".join(f"{_named(Path(p.path).name)} {p.reason}" for p in census.dropped)
    census.dropped += [
        Problem(str(tree.folder), f"there is no {name}") for name in unnamed if name not in said
    ]


def load(
    root: str | Path,
    *,
    layout: str | None = None,
    sheet: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    apexes: str | Path | None = None,
    reading: Reading | None = None,
) -> Dataset:
    """The expressions of SMIC-HS under ``root``.

    Without a sheet, onset and offset are the first and the last frame of a clip.

    Args:
        root: the folder that holds ``SMIC_all_cropped``, ``SMIC_all_raw``, or ``SMIC-HS-E`` and its sheet
            ``SMIC-HS-E_annotation….xlsx``.
        layout: ``"cropped"``, ``"raw"`` or ``"extended"``; if not given, the first of them that is there.
        sheet: the sheet of the extended release, if it is elsewhere or one of several; with the others, a sheet whose
            intervals are taken.
        columns: what the sheet calls its columns filename, onset, offset, apex, emotion, onset2, offset2, onset3,
            offset3.
        apexes: a csv with columns ``clip`` and ``apex`` (number of the frame), as spotted by other means; without it,
            and for clips that it does not name, the apex is that of the sheet or the midpoint.
        reading: which clips are left out, and what is done about an apex that is the onset.

    Raises:
        FileNotFoundError: ``root``, the frames, the csv or the sheet are not there.
        ValueError: there are several trees of one layout, the csv or sheet cannot be read, most clips lack frames, or
            are too long to be those of a release without a sheet.
    """
    root = Path(root)
    tree = find_tree(root, LAYOUTS, layout)
    spotted, problems = _read_apexes(apexes) if apexes is not None else ({}, [])
    notes = [f"frames of layout {tree.layout!r}: {tree.folder}", *tree.notes]
    clips: Sequence[Clip]
    if tree.layout == "extended" or sheet is not None:
        listed = read_sheet(_find_sheet(root, sheet), COLUMNS, given=columns)
        notes += [f"intervals of {listed.path}", *listed.notes]
        clips = list(_in_sheet(listed, tree))
    else:
        clips = [Clip(folder.name, folder, str(folder)) for folder in _find_clips(tree.folder)]
    found = collect("smic", OFFICIAL, clips, lambda clip: _read(clip, spotted), notes, reading)
    long = [e.name for e in found.expressions if len(e.frames) > _LONG]
    if 2 * len(long) > len(found.expressions):
        raise ValueError(
            f"{tree.folder}: {len(long)} of {len(found.expressions)} clips have more than {_LONG} frames, and none of "
            "SMIC-HS has. If these are of the extended release, give its sheet with --sheet"
        )
    census = found.census
    census.dropped += problems
    census.dropped += [Problem(row.where, f"there is no usable clip {name}") for name, row in spotted.items()]
    _name_missing(found, tree)
    return found
