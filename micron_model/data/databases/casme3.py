"""CAS(ME)³ part A: 860 expressions of 94 subjects at 30 frames a second (Li et al., IEEE T-PAMI 2023)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from .expressions import Dataset, Official
from .folders import Layout, Tree, find_frames, find_tree, subfolders
from .listed import Facts, Reading, clip_of, read_listed, subject_number, usual_columns
from .sheets import Row, find_sheet, read_sheet

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
LAYOUTS = (
    Layout("clips", CLIP, "spNo.1_b_166", _OF_PART_A),
    Layout("recordings", SUBJECT, "spNO.1", _OF_PART_A),
)
#: Of the sheet of macro-expressions, which has the same columns: …_part_A_MaE_label_JpgIndex_v2_emotion.xlsx
MACRO_SHEET = r"part_?a_mae_label"
FACTS = Facts(
    dataset="casme3",
    fps=30.0,
    releases=(OFFICIAL,),
    columns=usual_columns("Onset", "Apex", "Offset", "emotion"),
    trusted="apex",
)


def _folders(tree: Tree) -> dict[str, Path]:
    """Folders of colour frames, by ``1_b_166`` for clips and by ``1_b`` for recordings."""
    if tree.layout == "clips":
        return {clip.name.lower().removeprefix("spno."): clip for clip in subfolders(tree.folder, CLIP)}
    return {
        f"{subject.name.lower().removeprefix('spno.')}_{recording.name.lower()}": recording / "color"
        for subject in subfolders(tree.folder, SUBJECT)
        for recording in subfolders(subject)
    }


def load(
    root: str | Path,
    *,
    layout: str | None = None,
    sheet: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    reading: Reading | None = None,
) -> Dataset:
    """The expressions of part A of CAS(ME)³ under ``root``; of the frames, the coloured ones.

    A recording may show several expressions, so their names hold the onset: ``spNO.1/a/355``.

    Args:
        root: the folder that holds the sheet ``cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx`` and ``Part_A_ME_clip`` or
            ``part_A``.
        layout: ``"clips"`` or ``"recordings"``; if not given, the first of them that is there.
        sheet: the sheet, if it is elsewhere or one of several.
        columns: what the sheet calls its columns subject, filename, onset, apex, offset and emotion.
        reading: which clips are left out, and what is done about an apex that is the onset.

    Raises:
        FileNotFoundError: ``root``, the frames or the sheet are not there.
        ValueError: there are several sheets or trees of one layout, the sheet cannot be read, or most clips lack
            frames.
    """
    return load_listed(
        Path(root), FACTS, r"part_?a_me_label", layout=layout, sheet=sheet, columns=columns, reading=reading
    )


def load_listed(
    root: Path,
    facts: Facts,
    named: str,
    *,
    layout: str | None = None,
    sheet: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    reading: Reading | None = None,
) -> Dataset:
    """What :func:`load` gives, of the sheet whose name has the pattern ``named``."""
    tree = find_tree(root, LAYOUTS, layout)
    holds, example = f"{SUBJECT}|{CLIP}", "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx"
    path = find_sheet(root, holds, named, sheet, example=example)
    listed = read_sheet(path, facts.columns, worksheet="label", given=columns)
    found = _folders(tree)

    def place(row: Row) -> tuple[str, Path]:
        subject = subject_number("casme3", row["subject"])
        filename, onset = clip_of(row["filename"]).lower(), row["onset"]
        if tree.layout == "clips":
            key, usual = f"{subject}_{filename}_{onset}", Path(f"spNo.{subject}_{filename}_{onset}")
        else:
            key, usual = f"{subject}_{filename}", Path(f"spNO.{subject}", filename, "color")
        return f"spNO.{subject}/{filename}/{onset}", found.get(key, tree.folder / usual)

    # A recording is long, and listed once for each of its expressions, one after the other.
    return read_listed(facts, listed, tree, place, reading, functools.lru_cache(maxsize=4)(find_frames))
