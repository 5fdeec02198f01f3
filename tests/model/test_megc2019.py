"""The composite, and the census of it and of a whole database."""

import csv

import pytest

from lookalikes import copy, tiny_lookalike
from micron_model.data.databases import megc2019
from micron_model.data.databases.expressions import Census, Official

CSV = "combined_3class_gt.csv"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """It is not to be changed."""
    return tiny_lookalike("megc2019", tmp_path_factory.mktemp("megc") / "root")


@pytest.fixture
def changeable(tree, tmp_path):
    return copy(tree, tmp_path / "root")


def test_each_row_takes_its_label_and_keeps_its_dataset(tree):
    with open(tree / CSV, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["casme2", "sub01", "EP01_01f", "1"]
    assert ["smic", "s01", "s01_ne_01", "0"] in rows
    dataset = megc2019.load(tree)
    assert {e.dataset for e in dataset.expressions} == {"casme2", "samm", "smic"}
    assert {e.emotion for e in dataset.expressions} == {"negative", "positive", "surprise"}
    dropped = {int(problem.path.rsplit(" ", 1)[1]) for problem in dataset.census.dropped}
    kept = [row for number, row in enumerate(rows, 1) if number not in dropped]
    assert [(e.dataset, e.emotion) for e in dataset.expressions] == [
        (row[0], megc2019.LABELS[row[3]]) for row in kept
    ]
    assert dataset.expressions[0].name == "sub01/EP01_01f"
    assert not any("labelled" in note for note in dataset.census.notes)


def test_rows_without_a_clip_are_dropped_and_the_reason_of_the_part_is_kept(tree):
    census = megc2019.load(tree).census
    reasons = [problem.reason for problem in census.dropped]
    assert reasons == [
        "casme2 has no usable clip sub03/EP05_03f",
        "samm has no usable clip 008/008_5_1",
        "smic has no usable clip s3_sur_05",
    ]
    assert "s3_sur_05: it holds no image" in census.describe()
    assert [len(part.dropped) for part in census.parts] == [1, 1, 1]


def test_missing_frames_and_notes_are_those_of_the_clips_in_it(tree):
    dataset = megc2019.load(tree)
    names = {e.name for e in dataset.expressions}
    assert dataset.census.incomplete
    for problem in dataset.census.incomplete:
        assert problem.reason.split(" ")[0] in names
    assert [note for note in dataset.census.notes if "layout" in note] == [
        f"casme2: frames of layout 'cropped': {tree}/casme2/Cropped",
        f"samm: frames of layout 'raw': {tree}/samm/SAMM",
        f"smic: frames of layout 'cropped': {tree}/smic/SMIC_all_cropped/HS",
    ]


def test_rows_of_other_words_and_of_other_cells_are_dropped(changeable):
    path = changeable / CSV
    whole = path.read_text()
    path.write_text(
        "dataset,sub,filename_o,label\n" + whole + "casme2,sub01,EP01_01f,1\nmmew,1,a,0\nsamm,6,a,7\n"
    )
    count = len(whole.splitlines())
    dropped = {int(p.path.rsplit(" ", 1)[1]): p.reason for p in megc2019.load(changeable).census.dropped}
    assert 1 not in dropped
    assert dropped[count + 2] == f"sub01/EP01_01f is listed already: {path}, row 2"
    assert dropped[count + 3].startswith("'mmew' is none of casme2, samm, smic")
    assert dropped[count + 4].endswith("or '7' none of 0, 1, 2")
    path.write_text(whole + "0,casme2,sub01,EP01_01f,1\n")
    (*_, last) = megc2019.load(changeable).census.dropped
    assert last == (
        f"{path}, row {count + 1}",
        "'0' is none of casme2, samm, smic, or 'EP01_01f' none of 0, 1, 2",
    )


def test_a_label_that_differs_from_the_dataset_is_noted(changeable):
    path = changeable / CSV
    path.write_text(path.read_text().replace("casme2,sub01,EP01_01f,1", "casme2,sub01,EP01_01f,0"))
    found, census = megc2019.load(changeable)
    assert found[0].emotion == "negative"
    assert "sub01/EP01_01f: labelled negative in the composite, happiness in casme2" in census.notes


def test_parts_are_found_in_any_case_or_where_they_are_said_to_be(changeable, tmp_path):
    expected = megc2019.load(changeable).census.counts
    (changeable / "casme2").rename(changeable / "CASME II")
    (changeable / "samm").rename(changeable / "SAMM")
    (changeable / "smic").rename(tmp_path / "elsewhere")
    assert megc2019.load(changeable, smic=tmp_path / "elsewhere").census.counts == expected
    with pytest.raises(
        FileNotFoundError, match=r"smic: .*no frames, .* like s3.*; name its folder with --smic"
    ):
        megc2019.load(changeable)
    copy(changeable / "CASME II", changeable / "CASME2")
    with pytest.raises(
        ValueError,
        match=r"casme2: .*CASME II/Cropped and .*CASME2/Cropped. Give .* with --casme2, .*--casme2-sheet",
    ):
        megc2019.load(changeable, smic=tmp_path / "elsewhere")


def test_a_census_names_each_difference_of_itself_and_its_parts():
    census = Census("whole", Official(2, {"negative": 1}), subjects={"a/1", "b/1"})
    census.counts.update(negative=1)
    assert census.differences == []
    part = Census("part", Official(1, {"negative": 1}))
    part.counts["joy"] = 2
    census.parts.append(part)
    assert census.differences == [
        "part: negative: 0 clips, official 1",
        "part: joy: 2 clips, official 0",
        "part: 0 subjects, official 1",
    ]
