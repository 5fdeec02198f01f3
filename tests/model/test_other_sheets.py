"""Sheets as other repositories write them: columns, separators, names of emotions, paths."""

import pytest
from empty_trees import CASME2_HEADER, CASME2_ROWS, READ, casme2_tree, intervals, touch, write_rows

from micron_model.cli import main
from micron_model.data.databases import casme2, samm


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(
    "header",
    [
        ["Subject", "Filename", "Onset", "Apex", "Offset", "Emotion"],
        ["sub", "filename_o", "onset_frame", "apex_frame", "offset_frame", "Label"],
        ["subject", "clip", "OnsetF", "ApexF", "OffsetF", "emotion"],
    ],
)
def test_columns_and_separators_of_other_repositories_are_read(tmp_path, header, separator):
    found = casme2.load(casme2_tree(tmp_path, header=header, separator=separator))
    assert intervals(found) == READ
    said = [note for note in found.census.notes if "is taken for" in note]
    assert f"CASME2-coding.csv: the column {header[5]!r} is taken for 'Estimated Emotion'" in said
    assert len(said) == len(set(said)) >= 2


def test_other_columns_are_named_with_the_option(tmp_path):
    root = casme2_tree(tmp_path, header=["Subject", "Filename", "begin", "peak", "end", "class"])
    with pytest.raises(
        ValueError, match=r"no column 'OnsetFrame', 'OffsetFrame', 'Estimated Emotion'; .* end, class\."
    ):
        casme2.load(root)
    arguments = [
        "data",
        "check",
        "casme2",
        str(root),
        "--columns",
        "onset",
        "begin",
        "apex",
        "peak",
        "offset",
        "end",
    ]
    assert main([*arguments, "emotion", "class"]) == 3  # two clips are not the whole of it
    columns = {"onset": "begin", "apex": "peak", "offset": "end", "emotion": "class"}
    assert intervals(casme2.load(root, columns=columns)) == READ


def test_without_a_column_of_apexes_midpoints_are_taken_and_it_is_said_once(tmp_path):
    header = [name for name in CASME2_HEADER if name != "ApexFrame"]
    root = casme2_tree(tmp_path, [[*row[:3], *row[4:]] for row in CASME2_ROWS], header=header)
    found = casme2.load(root)
    assert intervals(found) == READ
    assert [note for note in found.census.notes if "apexes" in note and "layout" not in note] == [
        "CASME2-coding.csv: has no column of apexes, so midpoints are taken",
        "apexes: 2 from midpoint",
    ]


def test_other_names_of_an_emotion_are_read_and_said_and_numbers_are_refused(tmp_path):
    words = ["Happy", "Surprised"]
    rows = [[*row[:5], word] for row, word in zip(CASME2_ROWS, words, strict=True)]
    found = casme2.load(casme2_tree(tmp_path, rows))
    assert [e.emotion for e in found.expressions] == ["happiness", "surprise"]
    assert "emotion 'happy' is read as 'happiness', in 1 rows" in found.census.notes
    rows = [[*row[:5], i] for i, row in enumerate(CASME2_ROWS)]
    with pytest.raises(
        ValueError, match=r"'Estimated Emotion' holds numbers \(0, 1\).* --columns emotion NAME"
    ):
        casme2.load(casme2_tree(tmp_path, rows))


@pytest.mark.parametrize("filename", ["D:\\data\\sub01\\{}", "sub01/{}", "{}.avi", "sub01\\{}\\img5.jpg"])
def test_a_path_in_place_of_a_name_is_read(tmp_path, filename):
    rows = [[row[0], filename.format(row[1]), *row[2:]] for row in CASME2_ROWS]
    assert intervals(casme2.load(casme2_tree(tmp_path, rows))) == READ


def test_a_slip_of_samms_sheet_is_mended_and_said(tmp_path):
    touch(tmp_path / "SAMM" / "032" / "032_3_1", range(4925, 4936), "032_{}.jpg")
    header = ["Subject", "Filename", "Onset Frame", "Apex Frame", "Offset Frame", "Estimated Emotion"]
    write_rows(tmp_path / "SAMM_Micro_FACS.csv", [header, ["032", "032_3_1", 4925, 1930, 4935, "Anger"]])
    found = samm.load(tmp_path)
    assert intervals(found) == {"032/032_3_1": (4925, 4930, 4935)}
    assert "032/032_3_1: apex '1930' is a slip of the published sheet: 4930 is taken" in found.census.notes
