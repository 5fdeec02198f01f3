"""The loaders on trees that look like the databases, each quirk by its name."""

import csv

import cv2
import pytest

from lookalikes import change_sheet, copy, only, tiny_lookalike
from micron_model.data.databases import casme2, casme3, samm, smic
from micron_model.data.databases.datasets import DATASETS, load_dataset
from micron_model.data.databases.listed import Unusable
from micron_model.data.databases.sheets import read_tables


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """A function that gives the look-alike of a dataset in a layout; it is not to be changed."""
    made = {}

    def make(dataset, layout=None):
        if (dataset, layout) not in made:
            root = tmp_path_factory.mktemp(dataset) / "root"
            made[dataset, layout] = tiny_lookalike(dataset, root, layout=layout)
        return made[dataset, layout]

    return make


@pytest.fixture
def casme2_tree(trees, tmp_path):
    return copy(trees("casme2"), tmp_path / "casme2")


@pytest.fixture
def smic_tree(trees, tmp_path):
    return copy(trees("smic"), tmp_path / "smic")


def by_name(dataset):
    return {expression.name: expression for expression in dataset.expressions}


def rows_of(path):
    """The cells of the only worksheet."""
    (table,) = read_tables(path)[0].values()
    return list(table.values())


def reasons(problems):
    return {problem.path.rsplit("/", 1)[-1]: problem.reason for problem in problems}


@pytest.mark.parametrize(
    ("dataset", "layout"),
    [
        *(("casme2", name) for name in ("cropped", "selected", "raw")),
        *(("samm", name) for name in ("cropped", "raw")),
        *(("smic", name) for name in ("cropped", "raw", "extended")),
        *(("casme3", name) for name in ("clips", "recordings")),
        ("megc2019", "cropped"),
    ],
)
def test_every_layout_gives_its_expressions(trees, dataset, layout):
    found, census = load_dataset(dataset, trees(dataset, layout))
    assert len({expression.name for expression in found}) == len(found) == census.counts.total() >= 14
    for expression in found:
        numbers = [number for number, _ in expression.frames]
        assert numbers == sorted(set(numbers))
        assert expression.onset <= numbers[0]
        assert numbers[-1] <= expression.offset
        assert expression.onset <= expression.apex <= expression.offset
        assert all(path.is_file() for _, path in expression.frames)
        assert cv2.imread(str(expression.path(expression.apex))).shape == (8, 8, 3)
    assert any(f"layout {layout!r}" in note for note in census.notes)
    assert len(census.subjects) == (9 if dataset == "megc2019" else 3)


@pytest.mark.parametrize(
    ("dataset", "layout"), [("casme2", "raw"), ("casme3", "recordings"), ("smic", "raw"), ("samm", "cropped")]
)
def test_layouts_of_one_dataset_list_the_same_expressions(trees, dataset, layout):
    def summary(root):
        return {
            (e.name, e.emotion, e.onset, e.apex, e.offset, tuple(number for number, _ in e.frames))
            for e in load_dataset(dataset, root).expressions
        }

    assert summary(trees(dataset, layout)) == summary(trees(dataset))


def test_frame_rates_are_those_of_the_cameras(trees):
    rates = {"casme2": 200.0, "samm": 200.0, "smic": 100.0, "casme3": 30.0}
    assert {name: load_dataset(name, trees(name)).expressions[0].fps for name in rates} == rates


def test_frames_follow_their_numbers_and_clutter_is_passed_over(trees):
    first = by_name(casme2.load(trees("casme2")))["sub01/EP01_01f"]
    names = [path.name for _, path in first.frames]
    assert [name.lower() for name in names[:5]] == [f"reg_img{i}.jpg" for i in range(7, 12)]
    assert {path.suffix for _, path in first.frames} == {".jpg", ".JPG"}
    assert first.missing == []
    beside = {path.name for path in first.frames[0][1].parent.iterdir()} - set(names)
    assert beside == {"Thumbs.db", "._img8.jpg", "Desktop - Shortcut.lnk"}


def test_frames_around_the_expression_are_left_out(trees):
    found = by_name(casme2.load(trees("casme2", "raw")))["sub01/EP04_01f"]
    there = sorted(int(p.stem.removeprefix("img")) for p in found.frames[0][1].parent.iterdir())
    assert (there[0], there[-1]) == (found.onset - 2, found.offset + 2)
    assert [number for number, _ in found.frames] == there[2:-2]


def test_an_apex_that_is_a_slash_becomes_the_midpoint_and_is_noted(trees):
    dataset = casme2.load(trees("casme2"))
    found = by_name(dataset)["sub01/EP02_01f"]
    assert found.apex == (found.onset + found.offset) // 2
    assert found.apex_from == "midpoint"
    assert f"sub01/EP02_01f: apex '/' is no number of a frame: the midpoint {found.apex} is taken" in (
        dataset.census.notes
    )
    assert "apexes: 13 from annotation, 1 from midpoint" in dataset.census.notes


def test_a_missing_frame_is_named_and_the_clip_is_kept(trees):
    dataset = casme2.load(trees("casme2"))
    found = by_name(dataset)["sub01/EP03_01f"]
    (problem,) = dataset.census.incomplete
    assert found.missing == [found.apex + 1]
    assert problem.path.endswith("Cropped/sub01/EP03_01f")
    length = found.offset - found.onset + 1
    assert problem.reason == f"sub01/EP03_01f lacks 1 of its {length} frames: {found.apex + 1}"


def test_a_missing_apex_is_said_and_its_neighbour_read(casme2_tree):
    found = by_name(casme2.load(casme2_tree))["sub01/EP01_01f"]
    found.path(found.apex).unlink()
    dataset = casme2.load(casme2_tree)
    assert dataset.census.incomplete[0].reason.endswith(f": {found.apex}, the apex among them")
    assert by_name(dataset)["sub01/EP01_01f"].path(found.apex) == found.path(found.apex - 1)


def test_a_row_without_a_folder_is_dropped_by_file_and_row(trees):
    dataset = casme2.load(trees("casme2"))
    (dropped,) = dataset.census.dropped
    assert dropped.path == f"{trees('casme2') / 'CASME2-coding-20140508.xlsx'}, row 16"
    assert dropped.reason.endswith("Cropped/sub03/EP05_03f: there is no such folder")
    assert len(dataset.expressions) == 14


def test_rows_that_cannot_be_used_are_dropped_each_with_its_reason(casme2_tree):
    def spoil(sheet):
        sheet["A2"] = "unknown"
        sheet["D3"] = "?"
        sheet["I4"] = None
        sheet["D5"], sheet["F5"] = 9000, 9010
        sheet["E6"], sheet["F6"] = "/", None
        sheet.append(["1", "EP06_01f", None, 1, 2, 3, None, "4", "fear"])
        for column, cell in enumerate(sheet[7], 1):
            sheet.cell(18, column, cell.value)

    path = casme2_tree / "CASME2-coding-20140508.xlsx"
    change_sheet(path, spoil)
    (casme2_tree / "Cropped/sub01/EP06_01f").mkdir()
    dropped = reasons(casme2.load(casme2_tree).census.dropped)
    expected = {
        2: "subject 'unknown' of casme2 has no number",
        3: "its onset '?' is no number of a frame",
        4: "its 'Estimated Emotion' is empty",
        5: "EP04_01f: its frames are ",
        6: "neither its apex '/' nor its offset '' comes after its onset",
        16: "there is no such folder",
        17: "EP06_01f: it holds no image",
        18: f"sub02/EP01_02f is listed already: {path}, row 7",
    }
    assert list(dropped) == [f"{path.name}, row {row}" for row in expected]
    for reason, part in zip(dropped.values(), expected.values(), strict=True):
        assert part in reason


def test_a_redistributed_sheet_gives_the_same_expressions(casme2_tree):
    """It lacks the columns without a name and pads the subjects with zeros."""
    whole = casme2.load(casme2_tree)
    path = casme2_tree / "CASME2-coding-20140508.xlsx"
    rows = rows_of(path)
    path.unlink()
    with open(casme2_tree / "coding.csv", "w", newline="") as file:
        for row in rows:
            kept = [cell for i, cell in enumerate(row) if i not in (2, 6)]
            csv.writer(file).writerow([kept[0].zfill(2) if kept[0].isdigit() else kept[0], *kept[1:]])
    again = casme2.load(casme2_tree)
    assert again.expressions[0].subject_text == "01"
    assert [e.name for e in again.expressions] == [e.name for e in whole.expressions]
    assert again.census.subjects == whole.census.subjects == {"casme2/1", "casme2/2", "casme2/3"}
    assert again.census.counts == whole.census.counts


def test_folders_are_found_in_whatever_case_and_with_whatever_zeros(casme2_tree):
    expected = [e.name for e in casme2.load(casme2_tree).expressions]
    subject = casme2_tree / "Cropped" / "sub01"
    (subject / "EP01_01f").rename(subject / "ep01_01F")
    subject.rename(casme2_tree / "Cropped" / "Sub1")
    (casme2_tree / "Cropped").rename(casme2_tree / "CROPPED")
    assert [e.name for e in casme2.load(casme2_tree, layout="cropped").expressions] == expected


def test_the_most_prepared_layout_is_preferred_and_another_can_be_asked_for(casme2_tree):
    for name in ("CASME2_RAW_selected", "CASME2-RAW"):
        copy(casme2_tree / "Cropped", casme2_tree / name)
    for asked, folder in ((None, "Cropped"), ("selected", "CASME2_RAW_selected"), ("raw", "CASME2-RAW")):
        found = casme2.load(casme2_tree, layout=asked).expressions[0]
        assert found.frames[0][1].parts[-4] == folder
    with pytest.raises(ValueError, match="--layout clips: the layouts are cropped, selected, raw"):
        casme2.load(casme2_tree, layout="clips")


def test_two_trees_of_one_layout_are_a_question_for_the_user(casme2_tree):
    copy(casme2_tree / "Cropped", casme2_tree / "old" / "Cropped")
    with pytest.raises(
        ValueError,
        match=r"several trees of layout 'cropped': .*Cropped and .*old/Cropped. Give the one .* as ROOT",
    ):
        casme2.load(casme2_tree)


def test_a_layout_that_is_not_there_is_said_with_those_that_are(casme2_tree):
    with pytest.raises(
        FileNotFoundError, match=r"of layout 'raw', .*; there is .*Cropped \(--layout cropped\)$"
    ):
        casme2.load(casme2_tree, layout="raw")


@pytest.mark.parametrize("dataset", DATASETS)
def test_an_empty_root_and_none_are_refused(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_dataset(dataset, tmp_path)
    with pytest.raises(FileNotFoundError, match="away: no such folder"):
        load_dataset(dataset, tmp_path / "away")


def test_two_sheets_are_a_question_and_can_be_chosen_from(casme2_tree):
    other = casme2_tree / "CASME2-coding-20190701.xlsx"
    other.write_bytes((casme2_tree / "CASME2-coding-20140508.xlsx").read_bytes())
    with pytest.raises(
        ValueError, match=r"several spreadsheets: .*20140508\.xlsx, .*20190701\.xlsx; name the one"
    ):
        casme2.load(casme2_tree)
    (dropped,) = casme2.load(casme2_tree, sheet=other).census.dropped
    assert dropped.path == f"{other}, row 16"


def test_a_missing_column_is_named_with_those_there_are(casme2_tree):
    path = casme2_tree / "CASME2-coding-20140508.xlsx"
    change_sheet(path, lambda sheet: sheet.__setitem__("I1", "Feeling"))
    with pytest.raises(
        ValueError,
        match=r"no column 'Estimated Emotion'; its columns are .*, Feeling\. .*: --columns emotion NAME$",
    ):
        casme2.load(casme2_tree)


def test_an_option_of_another_dataset_and_an_unknown_dataset_are_refused(trees):
    with pytest.raises(ValueError, match="--apexes is no option of casme2; it takes --layout, --sheet"):
        load_dataset("casme2", trees("casme2"), apexes="a.csv")
    with pytest.raises(ValueError, match="dataset='casme' is none of casme2, samm, smic, casme3, megc2019"):
        load_dataset("casme", trees("casme2"))


def test_samm_is_read_beneath_its_notes_and_both_spellings_of_other_are_one(trees):
    cells = rows_of(trees("samm") / "SAMM_Micro_FACS_Codes_v2.xlsx")
    assert cells[13][0] == "Subject"
    assert {row[9] for row in cells[14:]} >= {"Other", "Others", "Anger"}
    dataset = samm.load(trees("samm"))
    assert set(dataset.census.counts) <= set(samm.OFFICIAL.counts)
    assert dataset.census.counts["other"] == 2
    assert "emotion 'others' is read as 'other', in 1 rows" in dataset.census.notes
    assert dataset.expressions[0].subject_text == "006"
    assert dataset.expressions[0].subject == "samm/6"


def test_an_apex_outside_its_interval_becomes_the_midpoint(trees):
    dataset = samm.load(trees("samm"))
    found = by_name(dataset)["006/006_2_1"]
    assert (found.apex, found.apex_from) == ((found.onset + found.offset) // 2, "midpoint")
    assert found.notes == (
        f"apex '{found.offset + 40}' is outside {found.onset} to {found.offset}: the midpoint {found.apex} is taken",
    )


def test_frames_of_four_and_five_digits_are_read_as_numbers(trees):
    found = by_name(samm.load(trees("samm")))
    four, five = found["006/006_1_1"], found["007/007_1_1"]
    assert four.frames[0][1].name == f"006_{four.onset:04d}.jpg"
    assert five.frames[0][1].name == f"007_{five.onset:05d}.jpg"
    assert cv2.imread(str(four.frames[0][1]), cv2.IMREAD_UNCHANGED).ndim == 2


def test_smic_goes_from_first_to_last_frame_with_the_apex_between(trees):
    dataset = smic.load(trees("smic"))
    for found in dataset.expressions:
        assert (found.onset, found.offset) == (found.frames[0][0], found.frames[-1][0])
        assert (found.apex, found.apex_from) == ((found.onset + found.offset) // 2, "midpoint")
    assert "apexes: 14 from midpoint" in dataset.census.notes
    assert reasons(dataset.census.dropped) == {"s3_sur_05": "it holds no image"}
    assert reasons(dataset.census.incomplete).keys() == {"s1_sur_03"}


def test_other_cameras_and_clips_of_no_expression_are_not_read(trees):
    assert only(trees("smic"), "*/NIR/s1/micro/negative/*").is_dir()
    assert only(trees("smic"), "*/HS/s1/non_micro/*").is_dir()
    for found in smic.load(trees("smic")).expressions:
        parts = found.frames[0][1].parts
        assert parts[-6] == "HS"
        assert parts[-4] == "micro"


def test_names_of_smic_clips_are_one_whatever_way_they_are_written():
    for text in ("s18_sur_03", "S18_su_3", "s018_sur_03"):
        assert smic.clip_name(text) == "s18_sur_03"
    with pytest.raises(Unusable, match="'s18_xx_03' is no name of a clip"):
        smic.clip_name("s18_xx_03")


def test_a_smic_folder_that_contradicts_its_name_or_has_none_is_dropped(smic_tree):
    micro = smic_tree / "SMIC_all_cropped/HS/s1/micro"
    (micro / "negative/s1_ne_01").rename(micro / "positive/s1_ne_01")
    (micro / "surprise/s1_sur_03").rename(micro / "surprise/s1-3")
    dropped = reasons(smic.load(smic_tree).census.dropped)
    assert dropped["s1_ne_01"] == "its name says negative, its folder positive"
    assert dropped["s1-3"] == "'s1-3' is no name of a clip, such as s1_ne_01"


def test_spotted_apexes_are_taken_and_each_row_that_is_not_is_said(trees, tmp_path):
    first = by_name(smic.load(trees("smic")))["s1_ne_01"]
    path = tmp_path / "apexes.csv"
    path.write_text(
        f"clip,apex\ns01_ne_01,{first.onset + 1}\ns1_po_02,999999\ns1_ne_1,5\ns99_ne_01,5\nnothing,5\n"
    )
    dataset = smic.load(trees("smic"), apexes=path)
    found = by_name(dataset)
    assert (found["s1_ne_01"].apex, found["s1_ne_01"].apex_from) == (first.onset + 1, "spotting")
    outside = found["s1_po_02"]
    assert outside.apex_from == "midpoint"
    assert outside.notes == (
        f"apex '999999' of {path}, row 3 is not in {outside.onset} to {outside.offset}: the midpoint is taken",
    )
    dropped = reasons(dataset.census.dropped)
    assert dropped["apexes.csv, row 4"] == "s1_ne_01 is in row 2 already"
    assert dropped["apexes.csv, row 5"] == "there is no usable clip s99_ne_01"
    assert dropped["apexes.csv, row 6"] == "'nothing' is no name of a clip, such as s1_ne_01"
    path.write_text("s1_ne_01,5\n")
    with pytest.raises(ValueError, match="has the cells 'clip', 'apex', by which the header is known"):
        smic.load(trees("smic"), apexes=path)


def test_expressions_of_one_recording_are_told_apart_by_their_onset(trees):
    found = by_name(casme3.load(trees("casme3", "recordings")))
    first, second = (found[name] for name in found if name.startswith("spNO.1/a/"))
    assert first.name == f"spNO.1/a/{first.onset}"
    assert first.frames[0][1].parent == second.frames[0][1].parent
    assert first.offset < second.onset
    assert len(first.frames) == first.offset - first.onset + 1


@pytest.mark.parametrize("layout", ["clips", "recordings"])
def test_depth_is_not_taken_for_frames(trees, layout):
    root = trees("casme3", layout)
    assert list(root.rglob("depth"))
    for found in casme3.load(root).expressions:
        assert all(path.suffix == ".jpg" and "depth" not in path.parts for _, path in found.frames)


def test_an_offset_that_is_zero_or_before_the_apex_becomes_the_apex(trees):
    dataset = casme3.load(trees("casme3"))
    changed = [found for found in dataset.expressions if found.notes]
    assert [found.name.split("/")[:2] for found in changed] == [["spNO.1", "a"], ["spNO.1", "b"]]
    for found, offset in zip(changed, (0, changed[1].apex - 1), strict=True):
        assert (found.offset, found.apex_from) == (found.apex, "annotation")
        assert found.frames[-1][0] == found.apex
        assert found.notes[0].startswith(f"offset '{offset}' does not follow onset {found.onset} and apex")
    assert dataset.census.counts["others"] == 2
    assert "Others" in {row[7] for row in rows_of(only(trees("casme3"), "*.xlsx"))}


def test_only_the_sheet_of_part_a_is_read_and_no_frames_of_part_b(trees, tmp_path):
    root = copy(trees("casme3", "recordings"), tmp_path / "casme3")
    only(root, "*ME_label*").rename(root / "part_A" / "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx")
    (root / "cas(me)3_part_A_MaE_label_JpgIndex_v2.xlsx").touch()
    copy(root / "part_A" / "spNo.1", root / "part_B" / "spNO.1")
    assert len(casme3.load(root).expressions) == 14
