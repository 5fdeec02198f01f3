"""Macro-expressions: where they are read from, what is dropped and why, and whom they show."""

import csv
import shutil

import numpy as np
import openpyxl
import pytest

from lookalikes import only, tiny_lookalike
from micron_model.cli import main
from micron_model.data.clips.inputs import OnsetApex
from micron_model.data.databases import casme2, macro
from micron_model.data.databases.lookalike import LookalikeConfig
from micron_model.data.databases.prepared import FaceConfig, prepare
from writers import write_images, write_video


def write_list(path, rows, columns=("clip", "subject", "emotion")):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def reasons(census):
    return [problem.reason for problem in census.dropped]


def clip(folder, frames=4, level=0):
    """Grey images, one of which, the last but one, is lighter."""
    values = np.full((frames, 3, 8, 8), level, np.uint8)
    values[-2] = 200
    return write_images(folder, values)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return tiny_lookalike("macro", tmp_path_factory.mktemp("macro") / "listed", side=64)


def test_a_lookalike_moves_several_pixels_in_longer_clips_of_other_people(tree, tmp_path):
    wide = macro.load(tree).expressions
    small = casme2.load(tiny_lookalike("casme2", tmp_path / "casme2", quirks=False, side=64)).expressions
    assert min(len(e.frames) for e in wide) > max(len(e.frames) for e in small)
    assert not macro.overlap(wide, tree, small)
    face = FaceConfig(detect=False, spot_apex=True)

    def moved(expressions):
        values = prepare(expressions[:6], OnsetApex(64), face).values.float()
        return (values[:, 1] - values[:, 0]).abs().mean().item()

    assert moved(wide) > 1.5 * moved(small)


@pytest.mark.parametrize("layout", ["folders", "crema-d"])
def test_every_layout_of_a_lookalike_gives_the_clips_of_its_emotions(tmp_path, layout):
    root = tiny_lookalike("macro", tmp_path / layout, layout=layout, quirks=False, side=16)
    found = macro.load(root)
    assert not found.census.dropped
    assert found.census.counts.total() == 15
    assert len(found.census.subjects) == 3
    assert set(found.census.counts) <= {*macro.CREMA_D.values(), *macro._EMOTIONS}


def test_what_cannot_be_used_is_in_the_census_with_its_reason(tmp_path):
    clip(tmp_path / "good")
    clip(tmp_path / "one", 2)
    only(tmp_path / "one", "img1.png").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    rows = [
        ("good", "Anna", "Happy"), ("good", "Anna", "happy"), ("one", "Anna", "fear"), ("gone", "Anna", "fear"),
        ("empty", "Anna", "fear"), ("broken.mp4", "Anna", "fear"), ("good", "", "fear"), ("good", "Anna", ""),
        ("good", "Anna", "3"), ("nine", "x", "fear", "casme3"),
    ]  # fmt: skip
    found = macro.load(
        write_list(
            tmp_path / "list.csv", [(*row, "")[:4] for row in rows], ("clip", "subject", "emotion", "dataset")
        )
    )
    assert [(e.name, e.subject, e.emotion) for e in found.expressions] == [
        ("good", "macro/anna", "happiness")
    ]
    said = "\n".join(reasons(found.census))
    assert len(found.census.dropped) == len(rows) - 1
    for reason in (
        "good is listed already", "has 1 frame, which", "no such file", "empty holds no image",
        "broken.mp4: no frame can", "nothing says whose face", "nothing says its emotion", "'3' is a number",
    ):  # fmt: skip
        assert reason in said
    assert "official" not in found.census.describe()
    assert not found.census.differences


def test_clips_without_labels_are_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match=r"no column 'emotion'; its columns are clip, subject"):
        macro.load(write_list(tmp_path / "list.csv", [("a", "b")], ("clip", "subject")))
    with pytest.raises(ValueError, match="none of 0 clips can be used"):
        macro.load(write_list(tmp_path / "empty.csv", []))
    clip(tmp_path / "smic" / "s1" / "non_micro" / "s1_01")
    with pytest.raises(
        ValueError, match=r"none of 1 clips .*SMIC's non_micro clips have none.* clip, subject, emotion"
    ):
        macro.load(tmp_path / "smic")
    with pytest.raises(FileNotFoundError, match="gone: no such file"):
        macro.load(tmp_path / "gone")


def test_labelled_clips_of_smic_are_those_of_its_subjects_and_micro_ones_are_not_taken(tmp_path):
    clip(tmp_path / "HS/s1/non_micro/negative/s1_01")
    clip(tmp_path / "HS/s1/micro/negative/s1_ne_01")
    found = macro.load(tmp_path)
    assert [(e.subject, e.emotion) for e in found.expressions] == [("smic/1", "negative")]
    assert reasons(found.census) == ["lies below a folder 'micro': it is a micro-expression"]


def test_casme3_lists_its_macro_expressions_in_a_sheet_of_its_own(tmp_path):
    root = tiny_lookalike("casme3", tmp_path / "casme3", layout="recordings", quirks=False, subjects=2)
    sheet = only(root, "*.xlsx")
    shutil.copy(sheet, root / "cas(me)3_part_A_MaE_label_JpgIndex_v2_emotion.xlsx")
    book = openpyxl.load_workbook(sheet)
    kept = book.worksheets[0].max_row - 1
    found = macro.load(root)
    assert len(found.expressions) == kept
    assert {e.subject for e in found.expressions} == {"casme3/1", "casme3/2"}
    assert all(e.apex_from == "annotation" for e in found.expressions)


def test_names_of_crema_d_are_read_and_others_are_dropped(tmp_path):
    frames = np.zeros((4, 3, 16, 16), np.uint8)
    for name in ("1001_DFA_ANG_XX.mp4", "1001_IEO_HAP_LO.mp4", "1002_ITH_SAD_X.flv", "notes.mp4"):
        (tmp_path / "VideoFlash").mkdir(exist_ok=True)
        write_video(tmp_path / "VideoFlash" / name, frames, codec="FLV1" if name.endswith("flv") else "mp4v")
    found = macro.load(tmp_path)
    assert sorted((e.subject, e.emotion, len(e.frames)) for e in found.expressions) == [
        ("crema-d/1001", "anger", 4), ("crema-d/1001", "happiness", 4), ("crema-d/1002", "sadness", 4)
    ]  # fmt: skip
    assert reasons(found.census) == ["nothing says its emotion"]
    assert "3 of the 7442 clips and 2 of the 91 actors of CREMA-D" in found.census.notes


@pytest.mark.parametrize("suffix", [".mp4", ".flv"])
def test_a_video_gives_what_the_images_of_its_frames_do(tmp_path, suffix):
    from micron_model.data import synthetic_clips

    one = synthetic_clips([1])[0]
    frames = one.read(range(one.onset, one.offset), 64)
    write_video(tmp_path / f"v{suffix}", frames, codec="FLV1" if suffix == ".flv" else "mp4v")
    write_images(tmp_path / "images", frames)
    expressions = macro.load(
        write_list(tmp_path / "l.csv", [(f"v{suffix}", "a", "fear"), ("images", "a", "fear")])
    ).expressions
    found = prepare(expressions, OnsetApex(32), FaceConfig(detect=False, spot_apex=True))
    assert [e.apex_from for e in found.expressions] == ["spotting"] * 2
    video, images = found.expressions
    assert abs(video.apex - (images.apex - 1)) <= 2  # compressed
    assert (found.values[0].float() - found.values[1].float()).abs().mean() < 8


def test_whom_macro_expressions_may_show_is_told_by_name_number_file_and_path(tmp_path):
    tested = casme2.load(tiny_lookalike("casme2", tmp_path / "t", quirks=False)).expressions
    clip(tmp_path / "m" / "a")
    clip(tmp_path / "m" / "CASME2" / "sub02" / "x")

    def seen(clip_name, *cells):
        columns = ("clip", "subject", "emotion", "dataset")[: 3 + (len(cells) > 1)]
        row = (clip_name, cells[0], "fear", *cells[1:])
        path = write_list(tmp_path / "m" / "list.csv", [row], columns)
        return macro.overlap(macro.load(path).expressions, path, tested)

    assert seen("a", "Anna") == seen("a", "person01") == seen("a", "2", "casme3") == seen("a", "77") == []
    assert seen("a", "sub02") == seen("a", "02") == ["casme2/2"]  # nobody says that it is another person
    assert seen("a", "3", "casme2") == ["casme2/3"]
    assert seen("CASME2/sub02/x", "Anna") == ["casme2/2"]
    assert seen(str(tested[0].frames[0][1].parent), "Anna") == [tested[0].subject]


def test_the_command_line_checks_and_writes_them(tmp_path, capsys, refused):
    root = tmp_path / "macro"
    assert main(["data", "make-lookalike", "macro", str(root), "--subjects", "1", "--side", "8"]) == 0
    assert main(["data", "check", "macro", str(root)]) == 0
    assert "disgust" in capsys.readouterr().out
    assert "--layout is for a database's sheet" in refused(
        ["data", "check", "macro", str(root), "--layout", "raw"]
    )
    with pytest.raises(ValueError, match="layout='raw' is none of listed, folders, crema-d of macro"):
        tiny_lookalike("macro", tmp_path / "b", layout="raw")
    assert LookalikeConfig(layout="crema-d").layout == "crema-d"


def test_macro_expressions_that_are_not_there_are_refused_before_the_database_is_read(tmp_path, refused):
    command = ["evaluate", "casme2", str(tmp_path), "--recognizer", "lightman", "--model", "none"]
    command += ["--preset", "tiny", "--out", str(tmp_path / "out"), "--macro", "gone.csv"]
    assert "gone.csv: no such file or folder" in refused(command)
