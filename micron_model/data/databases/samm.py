"""SAMM: 159 clips of 29 subjects at 200 frames a second, grey (Davison et al., IEEE T-AFFC 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .expressions import Dataset, Official
from .folders import Layout, clip_folders, find_tree
from .listed import Facts, Reading, clip_of, read_listed, subject_number, usual_columns
from .sheets import Row, find_sheet, read_sheet

OFFICIAL = Official(
    29,
    {
        "anger": 57,
        "happiness": 26,
        "other": 26,
        "surprise": 15,
        "contempt": 12,
        "disgust": 9,
        "fear": 8,
        "sadness": 6,
    },
)
SUBJECT = r"\d{3}"
LAYOUTS = (Layout("cropped", SUBJECT, "006", r"crop[^/]*$"), Layout("raw", SUBJECT, "006"))
FACTS = Facts(
    dataset="samm",
    fps=200.0,
    releases=(OFFICIAL,),
    columns=usual_columns("Onset Frame", "Apex Frame", "Offset Frame", "Estimated Emotion"),
    trusted="offset",
    slips={"032/032_3_1": ("1930", "4930")},
)


def clip_name(subject: str, filename: str) -> str:
    """Of the form ``006/006_1_2``. Raises Unusable if there is no number in ``subject``."""
    return f"{subject_number('samm', subject):03d}/{filename}"


def load(
    root: str | Path,
    *,
    layout: str | None = None,
    sheet: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    reading: Reading | None = None,
) -> Dataset:
    """The expressions of SAMM under ``root``.

    Args:
        root: the folder that holds the sheet ``SAMM_Micro_FACS_Codes_v2.xlsx`` and the folder of the subjects.
        layout: ``"cropped"``, a tree whose name says so, or ``"raw"``; if not given, the first that is there.
        sheet: the sheet, if it is elsewhere or one of several.
        columns: what the sheet calls its columns subject, filename, onset, apex, offset and emotion.
        reading: which clips are left out, and what is done about an apex that is the onset.

    Raises:
        FileNotFoundError: ``root``, the frames or the sheet are not there.
        ValueError: there are several sheets or trees of one layout, the sheet cannot be read, or most clips lack
            frames.
    """
    root = Path(root)
    tree = find_tree(root, LAYOUTS, layout)
    path = find_sheet(root, SUBJECT, r"micro_facs", sheet, example="SAMM_Micro_FACS_Codes_v2.xlsx")
    listed = read_sheet(path, FACTS.columns, worksheet="MICRO_ONLY", given=columns)
    clips = clip_folders(tree.folder, SUBJECT, clip_name)

    def place(row: Row) -> tuple[str, Path]:
        name = clip_name(row["subject"], clip_of(row["filename"]))
        return name, clips.get(name.lower(), tree.folder / name)

    return read_listed(FACTS, listed, tree, place, reading)
