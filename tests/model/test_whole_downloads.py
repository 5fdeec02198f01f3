"""Databases as people have them: whole downloads, known gaps, sheets of other repositories, frames of other numbers."""

import pytest
from empty_trees import (
    CASME2_HEADER,
    CASME2_ROWS,
    READ,
    casme2_tree,
    intervals,
    touch,
    whole_smic,
    write_rows,
)

from micron_model.cli import main
from micron_model.data.databases import casme2, casme3, megc2019, samm, smic
from micron_model.data.databases.folders import find_frames
from micron_model.data.databases.listed import Reading
from micron_model.evaluation.protocols import check_census

# Which folders are trees


def test_videos_and_what_a_mac_packs_beside_are_no_trees(tmp_path):
    root = casme2_tree(tmp_path)
    video = root / "CASME2_Compressed video" / "CASME2_compressed" / "sub01" / "EP01_01f.avi"
    video.parent.mkdir(parents=True)
    video.touch()
    touch(root / "__MACOSX" / "CASME2-RAW" / "sub01" / "EP01_01f", [5])
    touch(root / ".Trash-1000" / "files" / "sub01" / "EP01_01f", [5])
    (root / "empty" / "sub01" / "EP01_01f").mkdir(parents=True)
    write_rows(root / "__MACOSX" / "CASME2-coding.csv", [["nothing"]])
    assert intervals(casme2.load(root)) == READ


def test_a_download_of_videos_alone_is_named_as_one(tmp_path):
    video = tmp_path / "CASME2_compressed" / "sub01" / "EP01_01f.avi"
    video.parent.mkdir(parents=True)
    video.touch()
    with pytest.raises(
        FileNotFoundError, match=r"CASME2_compressed holds videos, no frames.* a release of images"
    ):
        casme2.load(tmp_path)


def test_a_folder_that_may_not_be_read_is_passed_over_and_said(tmp_path, monkeypatch):
    root = casme2_tree(tmp_path)
    closed = root / "backup"
    touch(closed / "sub01" / "EP01_01f", [5])
    monkeypatch.setattr("micron_model.data.databases.folders._may_be_read", lambda folder: folder != closed)
    found = casme2.load(root)
    assert intervals(found) == READ
    assert f"{closed}: may not be read, and is passed over" in found.census.notes


def test_two_files_of_one_frame_are_a_reason_to_leave_the_clip_out(tmp_path):
    root = casme2_tree(tmp_path)
    (root / "CASME2-RAW" / "sub01" / "EP01_01f" / "img7.png").touch()
    (dropped,) = casme2.load(root).census.dropped
    assert dropped.reason.endswith("img7.jpg and img7.png are both frame 7; keep one of them")


@pytest.mark.parametrize("name", ["img{}_224x224.png", "img{}_v2.jpg", "s1_{:05d}.jpg", "reg_img{}.bmp"])
def test_the_number_of_a_frame_is_the_one_that_tells_it_from_others(tmp_path, name):
    touch(tmp_path, [9, 10, 11], name)
    assert list(find_frames(tmp_path)) == [9, 10, 11]


# Two official sheets of CASME II


@pytest.mark.parametrize(
    ("year", "of_2019"),
    [("20140508", {"surprise": 25, "sadness": 7}), ("20190701", {"surprise": 28, "sadness": 4})],
)
@pytest.mark.parametrize("named", [True, False])
def test_each_official_sheet_of_casme2_has_its_census(tmp_path, year, of_2019, named):
    counts = casme2.OFFICIAL.counts | of_2019
    emotions = [emotion for emotion, n in counts.items() for _ in range(n)]
    rows = [[1 + i % 26, f"EP{i:03d}_01f", 1, 2, 3, emotion] for i, emotion in enumerate(emotions)]
    for subject, filename, *_ in rows:
        touch(tmp_path / "Cropped" / f"sub{subject:02d}" / filename, [1, 2, 3])
    name = f"CASME2-coding-{year}.csv" if named else "coding.csv"
    write_rows(tmp_path / name, [CASME2_HEADER, *rows])
    census = casme2.load(tmp_path).census
    assert census.differences == []
    assert f"agrees with the official census of casme2 (release {year})" in census.describe()
    assert check_census([census]) == []


def test_a_part_of_a_sheet_is_held_against_the_release_that_its_name_says(tmp_path):
    root = casme2_tree(tmp_path)
    for year, surprise in (("20140508", 25), ("20190701", 28)):
        sheet = (root / "CASME2-coding.csv").rename(tmp_path / f"CASME2-coding-{year}.csv")
        assert f"surprise: 0 clips, official {surprise}" in casme2.load(root).census.differences
        sheet.rename(root / "CASME2-coding.csv")


# SMIC: known gaps, and the extended release


def test_the_gap_of_smic_all_cropped_is_known_and_every_output_says_it(tmp_path):
    whole_smic(tmp_path / "SMIC_all_cropped" / "HS", without=["s18_sur_03"])
    census = smic.load(tmp_path).census
    assert census.differences == census.dropped == []
    assert census.gaps == ["163 of 164: s18_sur_03 is empty in this release"]
    assert check_census([census]) == ["smic: 163 of 164: s18_sur_03 is empty in this release"]
    (tmp_path / "SMIC_all_cropped/HS/s18/micro/surprise/s18_sur_03").rmdir()  # archives may leave it out
    (tmp_path / "SMIC_all_cropped/HS/s20/micro/positive/s20_po_02").rename(tmp_path / "gone")
    census = smic.load(tmp_path).census
    assert census.differences == ["positive: 50 clips, official 51"]
    assert [problem.reason for problem in census.dropped] == ["there is no s20_po_02"]
    with pytest.raises(ValueError, match="--allow-differences runs it anyway"):
        check_census([census])


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """SMIC-HS-E as it is unpacked: 161 folders for 164 expressions, beside the raw release and another camera."""
    root = tmp_path_factory.mktemp("smic")
    top = root / "SMIC-E_raw image"
    further = {"s3_ne_02": [(40, 44)], "s4_ne_04": [(40, 44), (50, 54)]}
    header = "Subject,Filename,OnsetF,OffsetF,TotalMF1,Emotion,FirstF,LastF,TotalVL"
    rows = [[*header.split(","), "Onset2F", "Offset2F", "TotalMF2", "Onset3F", "Offset3F", "TotalMF3"]]
    for name in smic.NAMES:
        if name in ("s3_ne_03", "s4_ne_05", "s4_ne_06"):
            continue
        subject, code, _ = name.split("_")
        more = [cell for a, b in further.get(name, []) for cell in (a, b, b - a + 1)]
        rows.append([subject[1:], name, 21, 25, 5, smic.EMOTIONS[code], 1, 60, 60, *more])
        numbers = range(19, 56) if more else range(19, 28)
        touch(top / "HS_long" / "SMIC-HS-E" / f"s{int(subject[1:]):02d}" / name, numbers)
    write_rows(top / "HS_long" / "SMIC-HS-E_annotation.csv", rows)
    touch(top / "NIR_long" / "SMIC-NIR-E" / "s11" / "s11_ne_01", [1])
    write_rows(top / "NIR_long" / "SMIC-NIR-E_annotation.csv", rows[:2])
    return root


def test_the_extended_release_is_known_by_its_name_and_its_sheet_gives_the_intervals(extended):
    found = smic.load(extended)
    assert found.census.differences == []
    assert found.census.notes[0].startswith("frames of layout 'extended'")
    expected = dict.fromkeys(smic.NAMES, (21, 23, 25))
    expected |= {"s3_ne_03": (40, 42, 44), "s4_ne_05": (40, 42, 44), "s4_ne_06": (50, 52, 54)}
    assert intervals(found) == expected
    in_one = {e.name: e.frames[0][1].parent.name for e in found.expressions}
    assert in_one["s4_ne_04"] == in_one["s4_ne_06"] == "s4_ne_04"


def test_the_extended_release_is_not_read_without_its_sheet(extended, tmp_path):
    tree = extended / "SMIC-E_raw image" / "HS_long" / "SMIC-HS-E"
    with pytest.raises(FileNotFoundError, match="Clips of SMIC-HS-E begin before the expression"):
        smic.load(tree)
    sheet = tree.parent / "SMIC-HS-E_annotation.csv"
    assert len(smic.load(tree, sheet=sheet).expressions) == 164
    renamed = tmp_path / "SMIC"
    for name in smic.NAMES[:5]:
        touch(renamed / "s1" / name, range(100))
    with pytest.raises(
        ValueError, match=r"none of SMIC-HS has\. If these are of the extended release, .* --sheet"
    ):
        smic.load(renamed)


@pytest.mark.parametrize(
    ("path", "layout"),
    [
        ("SMIC_all_cropped/HS", "cropped"),
        ("HS_cropped", "cropped"),
        ("SMIC_all_raw/HS", "raw"),
        ("SMIC/HS", "raw"),
        ("SMIC_E_raw_image/HS_long/SMIC-HS-E/HS", "extended"),
        ("SMIC_HS_E", "extended"),
        ("SMIC-E_raw image/HS", "extended"),
        ("SMIC/HS_long", "extended"),
    ],
)
def test_the_release_of_smic_is_told_by_its_folders(tmp_path, path, layout):
    touch(tmp_path / path / "s3" / "s3_sur_01", [5, 6, 7])
    write_rows(
        tmp_path / "SMIC-HS-E_annotation.csv", [["Filename", "OnsetF", "OffsetF"], ["s3_sur_01", 5, 7]]
    )
    found = smic.load(tmp_path)
    assert found.census.notes[0] == f"frames of layout {layout!r}: {tmp_path / path}"
    assert intervals(found) == {"s3_sur_01": (5, 6, 7)}


# What moves too little, or too long


@pytest.fixture(scope="module")
def casme3_tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("casme3")
    rows = [["a", 10, 10, 20], ["b", 10, 12, 60], ["c", 10, 15, 20], ["d", 10, 10, 11]]
    for filename, onset, _, offset in rows:
        touch(root / "Part_A_ME_clip" / "frame" / f"spNo.1_{filename}_10", range(onset, offset + 1), "{}.jpg")
    cells = [["spNO.1", *row, "5", "II", "disgust"] for row in rows]
    header = ["Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Objective class", "emotion"]
    write_rows(root / "cas(me)3_part_A_ME_label_JpgIndex_v2.csv", [header, *cells])
    return root


def test_an_apex_that_is_the_onset_becomes_the_midpoint_or_is_left_out(casme3_tree):
    found = casme3.load(casme3_tree)
    assert [e.apex for e in found.expressions] == [15, 12, 15, 11]
    assert found.expressions[0].apex_from == "midpoint"
    assert any(note.startswith("apex = onset in 2 of 4 clips") for note in found.census.notes)
    found = casme3.load(casme3_tree, reading=Reading(still_apex="drop"))
    assert [e.name for e in found.expressions] == ["spNO.1/b/10", "spNO.1/c/10"]
    assert found.census.gaps == [
        "858 of 860: spNO.1/a/10, spNO.1/d/10 left out, as the apex is the onset (--still-apex drop)"
    ]
    assert "disgust: 2 clips, official 250" in found.census.differences


def test_long_clips_are_counted_and_can_be_left_out(casme3_tree):
    notes = casme3.load(casme3_tree).census.notes
    assert (
        "1 of 4 clips last longer than 1 s, spNO.1/b/10 the longest with 1.7 s; --longest 1 leaves them out"
        in notes
    )
    census = casme3.load(casme3_tree, reading=Reading(longest=1)).census
    assert census.gaps == ["859 of 860: spNO.1/b/10 left out, as longer than 1 s (--longest)"]
    with pytest.raises(ValueError, match=r"--longest 0: it is a time"):
        Reading(longest=0)


# What fails alike


def test_renumbered_frames_are_an_error_of_their_own_whatever_is_allowed(tmp_path):
    rows = [["1", f"EP{i:02d}_01f", 40 + i, 44 + i, 50 + i, "fear"] for i in range(1, 6)]
    for _, filename, *_ in rows:
        touch(tmp_path / "Cropped" / "sub01" / filename, range(1, 12))
    write_rows(tmp_path / "CASME2-coding.csv", [CASME2_HEADER, *rows])
    with pytest.raises(
        ValueError, match=r"5 of 5 clips of casme2 lack frames .* 1 to 11\. Were the frames renumbered"
    ):
        casme2.load(tmp_path)
    touch(tmp_path / "Cropped" / "sub01" / "EP01_01f", [41, 45, 51])  # as a copy of three frames a clip
    found = casme2.load(tmp_path, reading=Reading(allow_missing_frames=True))
    assert intervals(found) == {"sub01/EP01_01f": (41, 45, 51)}


def test_rows_that_fail_alike_are_one_line(tmp_path, capsys):
    root = casme2_tree(tmp_path, [*CASME2_ROWS, *(["3", f"EP{i}", "1", "2", "3", "fear"] for i in range(50))])
    main(["data", "check", "casme2", str(root)])
    shown = capsys.readouterr().out
    assert "dropped (50):\n  50 like this one: " in shown
    assert len(shown.splitlines()) < 40
    main(["data", "check", "casme2", str(root), "--every"])
    assert len(capsys.readouterr().out.splitlines()) > 70


# The composite


def composite(root, rows, *, casme2_folder="CASME_II", smic_folder="SMIC_all_raw"):
    casme2_tree(root / casme2_folder)
    touch(root / "SAMM" / "006" / "006_1_2", range(11, 14), "006_{:05d}.jpg")
    header = ["Subject", "Filename", "Onset Frame", "Apex Frame", "Offset Frame", "Estimated Emotion"]
    write_rows(
        root / "SAMM" / "SAMM_Micro_FACS_Codes_v2.csv", [header, ["006", "006_1_2", 11, 12, 13, "Anger"]]
    )
    touch(root / smic_folder / "HS" / "s1" / "micro" / "surprise" / "s1_sur_01", range(21, 24))
    write_rows(root / "combined_3class_gt.csv", rows)
    return root


ROWS = [
    ["casme2", "sub01", "EP01_01f", "1"],
    ["casme2", "sub02", "EP02_01f", "0"],
    ["samm", "6", "006_1_2", "0"],
    ["smic", "s01", "s01_sur_01", "2"],
]
CLASSES = ["positive", "negative", "negative", "surprise"]
NAMED = {"0": "negative", "1": "positive", "2": "surprise"}


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        [["dataset", "sub", "filename_o", "label"], *ROWS],
        [["", "Dataset", "Subject", "Filename", "Class"], *([i, *row] for i, row in enumerate(ROWS))],
        [[i, *row] for i, row in enumerate(ROWS)],
        [[*row[:3], NAMED[row[3]]] for row in ROWS],
        [[i, *row[:3], 5, 7, row[3]] for i, row in enumerate(ROWS)],
    ],
    ids=["published", "header", "index and header", "index", "names", "seven columns"],
)
def test_copies_of_the_composites_csv_are_read(tmp_path, rows):
    found = megc2019.load(composite(tmp_path, rows))
    assert [e.emotion for e in found.expressions] == CLASSES
    assert found.census.dropped == []


def test_columns_of_the_composites_csv_that_cannot_be_told_are_asked_for(tmp_path):
    rows = [[*row[:3], "xyz"[int(row[3])], row[3] if i else "?"] for i, row in enumerate(ROWS)]
    root = composite(tmp_path, [[*row[:3], "x"] for row in ROWS])
    with pytest.raises(ValueError, match=r"which column holds label cannot be told.*: --columns label NAME"):
        megc2019.load(root)
    write_rows(root / "combined_3class_gt.csv", rows)
    found = megc2019.load(root, columns={"label": "5"})
    assert [e.emotion for e in found.expressions] == CLASSES[1:]


def test_each_part_has_its_own_sheet_layout_and_folder(tmp_path, capsys):
    root = composite(tmp_path / "root", ROWS)
    other = tmp_path / "elsewhere"
    casme2_tree(other, tree="CASME2_RAW_selected")
    casme2_tree(other, [[*row[:5], "fear"] for row in CASME2_ROWS])
    (other / "CASME2-coding.csv").rename(other / "CASME2-coding-20190701.csv")
    casme2_tree(other)
    arguments = ["data", "check", "megc2019", str(root), "--casme2", str(other)]
    assert main(arguments) == 1
    assert "name the one to be read with --casme2-sheet" in capsys.readouterr().err
    for sheet in ("CASME2-coding.csv", str(other / "CASME2-coding.csv")):
        assert (
            main([*arguments, "--casme2-sheet", sheet, "--casme2-layout", "raw", "--smic-layout", "raw"]) == 3
        )
        shown = capsys.readouterr().out
        assert f"casme2: frames of layout 'raw': {other / 'CASME2-RAW'}" in shown
    assert main([*arguments, "--casme2-sheet", sheet, "--samm-layout", "cropped"]) == 1
    assert "(--samm-layout raw)" in capsys.readouterr().err


def test_parts_may_lie_side_by_side_without_a_folder_of_their_own(tmp_path):
    root = composite(tmp_path, ROWS, casme2_folder=".", smic_folder=".")
    assert len(megc2019.load(root).expressions) == 4


@pytest.mark.parametrize(
    ("name", "layout"), [("SAMM_Cropped", "cropped"), ("SAMM_CROP", "cropped"), ("SAMM_clip", "raw")]
)
def test_samm_is_found_in_folders_of_other_names(tmp_path, name, layout):
    root = composite(tmp_path, ROWS) / "SAMM"
    (root / name).mkdir()
    (root / "006").rename(root / name / "006")
    found = samm.load(root)
    assert found.census.notes[0] == f"frames of layout {layout!r}: {root / name}"
    assert intervals(found) == {"006/006_1_2": (11, 12, 13)}
