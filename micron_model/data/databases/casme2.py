"""CASME II: 255 clips of 26 subjects at 200 frames a second (Yan et al., PLoS ONE 2014)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .expressions import Dataset, Official
from .folders import Layout, clip_folders, find_tree
from .listed import Facts, Reading, clip_of, read_listed, subject_number, usual_columns
from .sheets import Row, find_sheet, read_sheet

_2014 = {
    "happiness": 32,
    "disgust": 63,
    "repression": 27,
    "surprise": 25,
    "sadness": 7,
    "fear": 2,
    "others": 99,
}
#: The sheet of 2019 calls three clips of subject 24 surprise that the older one calls sadness.
RELEASES = (
    Official(26, _2014, "20140508"),
    Official(26, _2014 | {"surprise": 28, "sadness": 4}, "20190701"),
)
OFFICIAL = RELEASES[0]
SUBJECT = r"sub\d+"
LAYOUTS = (
    Layout("cropped", SUBJECT, "sub01", r"crop[^/]*$"),
    Layout("selected", SUBJECT, "sub01", r"selected[^/]*$"),
    Layout("raw", SUBJECT, "sub01"),
)
FACTS = Facts(
    dataset="casme2",
    fps=200.0,
    releases=RELEASES,
    columns=usual_columns("OnsetFrame", "ApexFrame", "OffsetFrame", "Estimated Emotion"),
    trusted="offset",
    absent=("sub05/EP05_03", "sub05/EP07_01", "sub05/EP13_04f", "sub19/EP11_01f", "sub26/EP13_01"),
    short={"sub16/EP01_08": "Cropped"},
)


def clip_name(subject: str, filename: str) -> str:
    """Raises Unusable if there is no number in ``subject``."""
    return f"sub{subject_number('casme2', subject):02d}/{filename}"


def load(
    root: str | Path,
    *,
    layout: str | None = None,
    sheet: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    reading: Reading | None = None,
) -> Dataset:
    """The expressions of CASME II under ``root``.

    Args:
        root: the folder that holds the sheet ``CASME2-coding-….xlsx`` and one or more of the folders ``Cropped``,
            ``CASME2_RAW_selected`` and ``CASME2-RAW``.
        layout: ``"cropped"``, ``"selected"`` or ``"raw"``; if not given, the first of them that is there.
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
    path = find_sheet(root, SUBJECT, r"casme.*cod", sheet, example="CASME2-coding-20140508.xlsx")
    listed = read_sheet(path, FACTS.columns, given=columns)
    clips = clip_folders(tree.folder, SUBJECT, clip_name)

    def place(row: Row) -> tuple[str, Path]:
        name = clip_name(row["subject"], clip_of(row["filename"]))
        return name, clips.get(name.lower(), tree.folder / name)

    return read_listed(FACTS, listed, tree, place, reading)
