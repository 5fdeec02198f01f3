"""CAS(ME)³ part A: 860 expressions of 94 subjects at 30 frames a second (Li et al., IEEE T-PAMI 2023)."""

from __future__ import annotations

import functools
from pathlib import Path

from .expressions import Dataset, Expression, Official
from .folders import Layout, find_frames, find_tree, subfolders
from .listed import Columns, collect, read_expression, subject_number
from .sheets import Row, find_sheet, read_sheet

FPS = 30.0
OFFICIAL = Official(
    94,
    {
        "disgust": 250,
        "surprise": 187,
        "others": 161,
        "fear": 86,
        "anger": 64,
        "sad": 57,
        "happy": 55,
    },
)
SUBJECT, CLIP = r"spno\.\d+", r"spno\.\d+_[a-z]+_\d+"
# Depth has folders of the same names; parts B and C have no expressions of this sheet.
_OF_PART_A = r"^(?!.*part_?[bc](?![a-z]))(?!.*/depth$)"
LAYOUTS = (Layout("clips", CLIP, _OF_PART_A), Layout("recordings", SUBJECT, _OF_PART_A))
COLUMNS = Columns("Onset", "Apex", "Offset", "emotion")


def _folders(layout: str, tree: Path) -> dict[str, Path]:
    """Folders of colour frames, by ``1_b_166`` for clips and by ``1_b`` for recordings."""
    if layout == "clips":
        return {clip.name.lower().removeprefix("spno."): clip for clip in subfolders(tree, CLIP)}
    return {
        f"{subject.name.lower().removeprefix('spno.')}_{recording.name.lower()}": recording / "color"
        for subject in subfolders(tree, SUBJECT)
        for recording in subfolders(subject)
    }


def load(root: str | Path, *, layout: str | None = None, sheet: str | Path | None = None) -> Dataset:
    """The expressions of part A of CAS(ME)³ under ``root``; of the frames, the coloured ones.

    A recording may show several expressions, so their names hold the onset: ``spNO.1/a/355``.

    Args:
        root: the folder that holds the sheet ``cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx`` and ``Part_A_ME_clip`` or
            ``part_A``.
        layout: ``"clips"`` or ``"recordings"``; if not given, the first of them that is there.
        sheet: the sheet, if it is elsewhere or one of several.

    Raises:
        FileNotFoundError: ``root``, the frames or the sheet are not there.
        ValueError: there are several sheets or trees of one layout, or the sheet cannot be read.
    """
    root = Path(root)
    layout, tree = find_tree(root, LAYOUTS, layout)
    path = find_sheet(root, f"{SUBJECT}|{CLIP}", r"part_?a_me_label", sheet)
    rows = read_sheet(path, COLUMNS, worksheet="label")
    found = _folders(layout, tree)
    # A recording is long, and listed once for each of its expressions, one after the other.
    frames_of = functools.lru_cache(maxsize=4)(find_frames)

    def read(row: Row) -> Expression:
        subject = subject_number("casme3", row["Subject"])
        filename, onset = row["Filename"].lower(), row["Onset"]
        if layout == "clips":
            folder = found.get(f"{subject}_{filename}_{onset}", tree / f"spNo.{subject}_{filename}_{onset}")
        else:
            folder = found.get(f"{subject}_{filename}", tree / f"spNO.{subject}" / filename / "color")
        name = f"spNO.{subject}/{filename}/{onset}"
        return read_expression(
            row, COLUMNS, frames_of, dataset="casme3", name=name, folder=folder, fps=FPS, trusted="apex"
        )

    return collect("casme3", OFFICIAL, rows, read, f"frames of layout {layout!r}: {tree}")
