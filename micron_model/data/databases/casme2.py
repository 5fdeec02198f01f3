"""CASME II: 255 clips of 26 subjects at 200 frames a second (Yan et al., PLoS ONE 2014)."""

from __future__ import annotations

from pathlib import Path

from .expressions import Dataset, Expression, Official
from .folders import Layout, clip_folders, find_frames, find_tree
from .listed import Columns, collect, read_expression, subject_number
from .sheets import Row, find_sheet, read_sheet

FPS = 200.0
OFFICIAL = Official(
    26,
    {
        "happiness": 32,
        "disgust": 63,
        "repression": 27,
        "surprise": 25,
        "sadness": 7,
        "fear": 2,
        "others": 99,
    },
)
SUBJECT = r"sub\d+"
LAYOUTS = (
    Layout("cropped", SUBJECT, r"crop[^/]*$"),
    Layout("selected", SUBJECT, r"selected[^/]*$"),
    Layout("raw", SUBJECT),
)
COLUMNS = Columns("OnsetFrame", "ApexFrame", "OffsetFrame", "Estimated Emotion")


def clip_name(subject: str, filename: str) -> str:
    """Raises Unusable if there is no number in ``subject``."""
    return f"sub{subject_number('casme2', subject):02d}/{filename}"


def load(root: str | Path, *, layout: str | None = None, sheet: str | Path | None = None) -> Dataset:
    """The expressions of CASME II under ``root``.

    Args:
        root: the folder that holds the sheet ``CASME2-coding-….xlsx`` and one or more of the folders ``Cropped``,
            ``CASME2_RAW_selected`` and ``CASME2-RAW``.
        layout: ``"cropped"``, ``"selected"`` or ``"raw"``; if not given, the first of them that is there.
        sheet: the sheet, if it is elsewhere or one of several.

    Raises:
        FileNotFoundError: ``root``, the frames or the sheet are not there.
        ValueError: there are several sheets or trees of one layout, or the sheet cannot be read.
    """
    root = Path(root)
    layout, tree = find_tree(root, LAYOUTS, layout)
    rows = read_sheet(find_sheet(root, SUBJECT, r"casme.*cod", sheet), COLUMNS)
    clips = clip_folders(tree, SUBJECT, clip_name)

    def read(row: Row) -> Expression:
        name = clip_name(row["Subject"], row["Filename"])
        folder = clips.get(name.lower(), tree / name)
        return read_expression(
            row, COLUMNS, find_frames, dataset="casme2", name=name, folder=folder, fps=FPS, trusted="offset"
        )

    return collect("casme2", OFFICIAL, rows, read, f"frames of layout {layout!r}: {tree}")
