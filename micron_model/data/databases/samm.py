"""SAMM: 159 clips of 29 subjects at 200 frames a second, grey (Davison et al., IEEE T-AFFC 2018)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .expressions import Dataset, Expression, Official
from .folders import Layout, clip_folders, find_frames, find_tree
from .listed import Columns, collect, read_expression, subject_number
from .sheets import Row, find_sheet, read_sheet

FPS = 200.0
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
LAYOUTS = (Layout("cropped", SUBJECT, r"crop[^/]*$"), Layout("raw", SUBJECT))
COLUMNS = Columns("Onset Frame", "Apex Frame", "Offset Frame", "Estimated Emotion")


def clip_name(subject: str, filename: str) -> str:
    """Of the form ``006/006_1_2``. Raises Unusable if there is no number in ``subject``."""
    return f"{subject_number('samm', subject):03d}/{filename}"


def load(root: str | Path, *, layout: str | None = None, sheet: str | Path | None = None) -> Dataset:
    """The expressions of SAMM under ``root``.

    Args:
        root: the folder that holds the sheet ``SAMM_Micro_FACS_Codes_v2.xlsx`` and the folder of the subjects.
        layout: ``"cropped"``, a tree whose name says so, or ``"raw"``; if not given, the first that is there.
        sheet: the sheet, if it is elsewhere or one of several.

    Raises:
        FileNotFoundError: ``root``, the frames or the sheet are not there.
        ValueError: there are several sheets or trees of one layout, or the sheet cannot be read.
    """
    root = Path(root)
    layout, tree = find_tree(root, LAYOUTS, layout)
    path = find_sheet(root, SUBJECT, r"micro_facs", sheet)
    rows = read_sheet(path, COLUMNS, worksheet="MICRO_ONLY")
    clips = clip_folders(tree, SUBJECT, clip_name)

    def read(row: Row) -> Expression:
        name = clip_name(row["Subject"], row["Filename"])
        folder = clips.get(name.lower(), tree / name)
        found = read_expression(
            row, COLUMNS, find_frames, dataset="samm", name=name, folder=folder, fps=FPS, trusted="offset"
        )
        return replace(found, emotion="other") if found.emotion == "others" else found

    return collect("samm", OFFICIAL, rows, read, f"frames of layout {layout!r}: {tree}")
