"""SMIC, its part HS: 164 clips of 16 subjects at 100 frames a second (Li et al., FG 2013). It has no sheet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from ..clips.frames import Problem
from .expressions import Dataset, Expression, Official
from .folders import Layout, find_frames, find_tree, subfolders
from .listed import Unusable, collect, whole_number
from .sheets import Row, read_sheet

FPS = 100.0
OFFICIAL = Official(16, {"negative": 70, "positive": 51, "surprise": 43})
EMOTIONS = {"ne": "negative", "po": "positive", "sur": "surprise"}
SUBJECT = r"s\d+"
# The folders of the other two cameras, NIR and VIS, are named and filled in the same way.
_OF_HS = r"^(?!.*(?<![a-z])(nir|vis)(?![a-z]))"
LAYOUTS = (
    Layout("cropped", SUBJECT, _OF_HS + r".*crop"),
    Layout("raw", SUBJECT, _OF_HS + r"(?!.*_e$)"),
    Layout("extended", SUBJECT, _OF_HS),
)


class Clip(NamedTuple):
    """A folder of frames: without a sheet, it is the folders that list the clips."""

    folder: Path

    @property
    def where(self) -> str:
        return str(self.folder)


def clip_name(text: str) -> str:
    """``s18_sur_03``, whatever way it is written: ``s18_su_3``, ``s018_sur_03``. Raises Unusable if it is none."""
    found = re.fullmatch(r"s(\d+)_(ne|po|su)[a-z]*_(\d+)", text, re.IGNORECASE)
    if not found:
        raise Unusable(f"{text!r} is no name of a clip, such as s1_ne_01")
    code = found[2].lower()
    return f"s{int(found[1])}_{'sur' if code == 'su' else code}_{int(found[3]):02d}"


def _find_clips(tree: Path) -> Iterator[Clip]:
    for subject in subfolders(tree, SUBJECT):
        for folder in subfolders(subject, r"(?!(non_?)?micro$).*"):
            yield Clip(folder)
        for micro in subfolders(subject, "micro"):
            for emotion in subfolders(micro):
                for folder in subfolders(emotion):
                    yield Clip(folder)


def _read_emotion(folder: Path, name: str) -> str:
    """Of the code in its name, with which the folder of the class must agree where there is one."""
    emotion, above = EMOTIONS[name.split("_")[1]], folder.parent.name.lower()
    if above in EMOTIONS.values() and above != emotion:
        raise Unusable(f"its name says {emotion}, its folder {above}")
    return emotion


def _read_apexes(path: str | Path) -> tuple[dict[str, Row], list[Problem]]:
    """Rows of spotted apexes by clip, and those that name none or one for the second time."""
    rows: dict[str, Row] = {}
    problems = []
    for row in read_sheet(Path(path), ("clip", "apex"), header="clip"):
        try:
            name = clip_name(row["clip"])
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
    midpoint = (onset + offset) // 2
    if spotted is None:
        return midpoint, "midpoint", ()
    apex = whole_number(spotted["apex"])
    if apex is None or not onset <= apex <= offset:
        note = f"apex {spotted['apex']!r} of {spotted.where} is not in {onset} to {offset}: the midpoint is taken"
        return midpoint, "midpoint", (note,)
    return apex, "spotting", ()


def load(root: str | Path, *, layout: str | None = None, apexes: str | Path | None = None) -> Dataset:
    """The expressions of SMIC-HS under ``root``. Onset and offset are the first and the last frame of a clip.

    Args:
        root: the folder that holds ``SMIC_all_cropped``, the same uncropped, or ``SMIC_HS_E``.
        layout: ``"cropped"``, ``"raw"`` or ``"extended"``; if not given, the first of them that is there.
        apexes: a csv with columns ``clip`` and ``apex`` (number of the frame), as spotted by other means; without it,
            and for clips that it does not name, the apex is the midpoint.

    Raises:
        FileNotFoundError: ``root``, the frames or the csv are not there.
        ValueError: there are several trees of one layout, or the csv cannot be read.
    """
    layout, tree = find_tree(Path(root), LAYOUTS, layout)
    spotted, problems = _read_apexes(apexes) if apexes is not None else ({}, [])

    def read(clip: Clip) -> Expression:
        name = clip_name(clip.folder.name)
        emotion = _read_emotion(clip.folder, name)
        frames = tuple(find_frames(clip.folder).items())
        if not frames:
            raise Unusable("it holds no image")
        onset, offset = frames[0][0], frames[-1][0]
        apex, apex_from, notes = _choose_apex(spotted.pop(name, None), onset, offset)
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
            apex_from=apex_from,
            notes=notes,
        )

    found = collect("smic", OFFICIAL, _find_clips(tree), read, f"frames of layout {layout!r}: {tree}")
    census = found.census
    census.dropped += problems
    census.dropped += [Problem(row.where, f"there is no usable clip {name}") for name, row in spotted.items()]
    if layout == "extended":
        census.notes.append("clips of layout 'extended' begin before the expression and end after it")
    return found
