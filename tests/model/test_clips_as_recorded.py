"""Clips as people have them: names, rates, depths, sizes and folders of all kinds."""

import os
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from micron_model.data import FramePairs, find_clips, synthetic_clips
from micron_model.data.clips import find
from micron_model.data.clips.find import describe_clips
from micron_model.data.clips.frames import VIDEO_SUFFIXES, FrameError, Problem, Rhythm, VideoClip, read_image
from micron_model.prediction import SpotConfig, _whole_frames, predict
from writers import grey, vary_rate, write_images, write_small_shards, write_video

#: The head of these videos does.
STILL = SpotConfig(stabilize=False)


def levels(clip, indices, size=24):
    """The grey levels that ``grey`` gave: a third of them is the number of the frame."""
    return (clip.read(indices, size)[:, 0, 5, 5] / 3).round().astype(int).tolist()


@pytest.fixture
def variable(tmp_path):
    """A video of 4.5 seconds: 45 frames at 30 a second, then 45 at 15."""
    path = write_video(tmp_path / "v.mp4", grey(85, 32)[:85], fps=30.0, codec="mp4v")
    return vary_rate(path, [1] * 45 + [2] * 40)


def test_the_times_of_a_video_are_those_in_it(variable):
    (clip,), problems = find_clips([variable])
    assert problems == []
    assert clip.fps == pytest.approx(30, abs=0.01)
    assert len(clip) == 45 + 2 * 40 - 1
    assert clip.seconds(len(clip) - 1) == pytest.approx(45 / 30 + 39 / 15)
    wanted = [0, 10, 44, 45, 47, 51, 123]  # near and far, from tick to tick
    for indices in (wanted, wanted[::-1], [123], [101]):
        expected = [i if i < 45 else 45 + (i - 45) // 2 for i in indices]
        assert np.abs(np.subtract(levels(clip, indices), expected)).max() <= 1
    assert "1 videos have a variable frame rate" in describe_clips([clip])[0]
    constant = VideoClip.open(variable, 20.0)
    assert (constant.fps, len(constant), describe_clips([constant])) == (20.0, 85, [])


def test_ticks_that_repeat_a_frame_are_left_out_of_a_run(variable):
    (clip,), _ = find_clips([variable])
    assert [i for i, _ in clip.decode(0, len(clip), 24)] == [*range(45), *range(45, 125, 2)][:85]
    part = {i: round(int(image[0, 5, 5]) / 3) for i, image in clip.decode(100, 110, 24)}
    assert part.keys() == {100, 101, 103, 105, 107, 109}
    assert all(abs(n - (45 + (i - 45) // 2)) <= 1 for i, n in part.items())
    frames = list(_whole_frames(clip))
    assert len(frames) == len(clip)
    assert np.array_equal(frames[101], frames[102])


def test_delta_of_a_variable_rate_is_in_seconds(variable):
    """Of a mean rate, 8 frames of 30 would be anything from 6 to 12."""
    (clip,), _ = find_clips([variable])
    pairs = FramePairs([clip], 24, delta=(8, 8), flip=False)
    for i in range(20):
        one, other = (round(int(pairs[i][name][0, 5, 5]) / 3) for name in ("frames", "later"))
        when = [n / 30 if n < 45 else 1.5 + (n - 45) / 15 for n in (one, other)]
        assert when[1] - when[0] == pytest.approx(8 / 30, abs=2.5 / 30)


def test_shards_of_a_variable_rate_keep_its_times(variable, tmp_path):
    from micron_model.data.shards.read import read_shard

    write_small_shards([variable], tmp_path / "out", seconds=10)
    ((run,), problems) = read_shard(str(tmp_path / "out" / "shard-000000.tar"))
    assert problems == []
    assert run.fps == pytest.approx(30, abs=0.01)
    assert list(run.frames) == [*range(45), *range(45, 125, 2)][:85]


@pytest.mark.parametrize("times", [[], [0.0], [0, 1 / 30], [0] * 9, np.arange(90) / 30, 7 + np.arange(9) / 3])
def test_a_constant_rate_has_no_rhythm(times):
    assert Rhythm.of(np.array(times, float)) is None
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, len(times)) / 30
    assert (
        len(times) < 9 or Rhythm.of(np.sort(np.array(times, float) + jitter)) is None or times[0] == times[1]
    )


def test_times_that_no_camera_has_are_refused():
    with pytest.raises(
        FrameError, match=r"states times of its 4 frames that no camera has, up to 1e\+09 s; give a rate"
    ):
        Rhythm.of(np.array([0, 0.01, 0.02, 1e9]))


@pytest.fixture
def face(tmp_path):
    """A function that writes a video of a face, of frames at these numbers."""
    clip = synthetic_clips(range(4))[1]

    def write(numbers, name="face.avi"):
        return write_video(tmp_path / name, clip.read(numbers, 128), fps=60.0)

    return write


@pytest.fixture(scope="module")
def recognizer():
    from micron_model.recognizers.flow import FlowRecognizer, FlowRecognizerConfig

    return FlowRecognizer(FlowRecognizerConfig(classes=("a", "b"), size=32, parts=4)).eval()


def damage_frame(path, number):
    """Of an AVI."""
    data = bytearray(path.read_bytes())
    at = [m.start() for m in re.finditer(b"00dc", data)][number + 1]  # the first is in the header
    length = int.from_bytes(data[at + 4 : at + 8], "little")
    data[at + 8 : at + 8 + length] = bytes(length)
    path.write_bytes(data)


def test_a_damaged_frame_does_not_end_a_prediction(face, recognizer, tmp_path):
    path = face(range(150))
    whole = predict(path, recognizer, STILL)
    damage_frame(path, 5)
    found = predict(path, recognizer, STILL)
    assert found.problems == [Problem(str(path), "frame 5 cannot be decoded")]
    assert len(found.curve) == len(whole.curve) == 150
    assert [c.frames for c in found.candidates] == [c.frames for c in whole.candidates] != []
    assert found.as_json()["passed_over"] == [f"{path}: frame 5 cannot be decoded"]


def test_an_image_that_is_cut_short_does_not_end_a_prediction(recognizer, tmp_path):
    clip = synthetic_clips(range(4))[1]
    folder = write_images(tmp_path / "clip", clip.read(range(60), 128))
    for number in (1, 33):  # the first too
        path = folder / f"img{number}.png"
        path.write_bytes(path.read_bytes()[:100])
    found = predict(folder, recognizer, replace(STILL, strength=1e9), fps=60.0)
    assert [Path(p.path).name for p in found.problems] == ["img1.png", "img33.png"]
    assert len(found.curve) == 60


def test_nothing_found_says_where_it_was_fastest(face, recognizer, tmp_path, capsys):
    from micron_model.cli import main

    path = face(range(150))
    (candidate,) = predict(path, recognizer, STILL).candidates
    found = predict(path, recognizer, replace(STILL, strength=1000.0))
    assert found.candidates == []
    when, strength = found.highest
    assert candidate.seconds[0] <= when <= candidate.seconds[2]
    assert strength == candidate.spotted.strength
    assert found.threshold > found.curve.max()
    json = found.as_json()
    assert json["highest_peak"] == {"seconds": when, "strength": strength}
    recognizer.save_pretrained(tmp_path / "recognizer")
    arguments = [
        "predict",
        str(path),
        "--model",
        str(tmp_path / "recognizer"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*arguments, "--strength", "1000", "--no-stabilize"]) == 0
    said = capsys.readouterr().out
    assert f"It is fastest at {when:.2f} s: {found.curve.max():.2f} of the {found.threshold:.2f} that" in said


def test_frames_of_two_sizes_are_told(recognizer, tmp_path):
    folder = write_images(tmp_path / "clip", grey(6, 24))
    for number in (4, 5):
        cv2.imwrite(str(folder / f"img{number}.png"), np.zeros((48, 32, 3), np.uint8))
    (clip,), _ = find_clips([folder])
    reason = "has 32 × 48 pixels, others of its clip 24 × 24"
    with pytest.raises(FrameError, match=rf"img4\.png: {reason}"):
        clip.read([0, 3], 24)
    problems = [(i, frame.reason) for i, frame in clip.decode(0, 6, 24) if isinstance(frame, Problem)]
    assert problems == [(3, reason), (4, reason)]
    with pytest.raises(FrameError, match=rf"img4\.png: {reason}; a face is followed in frames of one size"):
        list(_whole_frames(clip))


@pytest.mark.parametrize(
    "form", ["img{}_224x224.png", "img{}_v2.png", "2x/{}.png", "IMG{}.png", "frame {} of 12.png", "{}-2.png"]
)
def test_frames_are_in_natural_order(tmp_path, form):
    for i in range(12):
        path = tmp_path / form.format(i)
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), grey(12)[i].transpose(1, 2, 0))
    (clip,), _ = find_clips([tmp_path])
    assert levels(clip, range(12)) == list(range(12))


@pytest.mark.parametrize("other", ["img07.png", "img7.jpg", "IMG7.png"])
def test_two_frames_of_one_place_are_an_error(tmp_path, other):
    folder = write_images(tmp_path / "clip", grey(9))
    cv2.imwrite(str(folder / other), np.zeros((24, 24, 3), np.uint8))
    with pytest.raises(
        ValueError, match=r"(?i)img0?7\.\w+ and img0?7\.\w+ have one place in the order of frames"
    ):
        find_clips([folder])


def test_folders_behind_links_are_found_once(tmp_path):
    write_images(tmp_path / "elsewhere" / "clip", grey(3))
    write_images(tmp_path / "in" / "z" / "own", grey(3))
    (tmp_path / "in" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "b").symlink_to(tmp_path / "elsewhere")  # again
    (tmp_path / "in" / "c").symlink_to(tmp_path / "in" / "z")  # what is there
    (tmp_path / "in" / "z" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "dangling").symlink_to(tmp_path / "nowhere")
    clips, problems = find_clips([tmp_path / "in"])
    assert [c.name for c in clips] == [f"{tmp_path}/in/a/clip", f"{tmp_path}/in/z/own"]
    assert problems == []
    (clip,), _ = find_clips([tmp_path / "in" / "b"])
    assert clip.name == f"{tmp_path}/in/b/clip"
    assert len(find_clips([tmp_path / "in", tmp_path / "in" / "z"])[0]) == 2


@pytest.mark.parametrize(
    "name", [".ipynb_checkpoints", ".Trash-1000", "__MACOSX", "$RECYCLE.BIN", "lost+found", "@eaDir"]
)
def test_hidden_folders_and_those_of_systems_are_no_clips(tmp_path, name):
    write_images(tmp_path / "clip", grey(3))
    write_images(tmp_path / name / "deeper", grey(3))
    write_images(tmp_path / "clip" / name, grey(3))
    clips, problems = find_clips([tmp_path])
    assert ([c.name for c in clips], problems) == ([str(tmp_path / "clip")], [])
    assert len(find_clips([tmp_path / name])[0]) == 1  # asked for by name


def test_a_folder_that_may_not_be_entered_is_named(tmp_path, monkeypatch):
    write_images(tmp_path / "good", grey(3))
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(find.os, "scandir", refuse)
    (clip,), problems = find_clips([tmp_path])
    assert clip.name == str(tmp_path / "good")
    assert problems == [Problem(str(tmp_path / "closed"), "cannot be entered (Permission denied)")]


def deep_images(folder, bits, count=40):
    """Frames of a camera of so many bits, whose highest level is in frame 17 alone."""
    folder.mkdir()
    ramp = np.arange(24 * 24, dtype=np.float64).reshape(24, 24, 1) / 575
    for i in range(count):
        top = (2**bits - 1) * (1.0 if i == 17 else 0.3 + 0.01 * i)
        cv2.imwrite(str(folder / f"img{i}.png"), (ramp * top).round().astype(np.uint16).repeat(3, 2))
    return folder


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_the_bits_of_a_camera_are_kept(tmp_path, bits):
    (clip,), problems = find_clips([deep_images(tmp_path / "clip", bits)])
    assert (clip.bits, problems) == (bits, [])
    frames = clip.read([0, 17, 39], 24)
    assert frames.max(axis=(1, 2, 3)).tolist() == [int(255.99 * 0.3), 255, int(255.99 * 0.69)]
    assert len(np.unique(frames[0])) > 60
    assert (bits > 8) == bool(describe_clips([clip]))
    whole = [frame for _, frame in clip.decode(0, 40, 24)]
    assert np.array_equal(whole[17], frames[1])


def test_a_frame_of_more_bits_than_its_clip_is_an_error(tmp_path):
    folder = deep_images(tmp_path / "clip", 12)
    (clip,), _ = find_clips([folder])
    cv2.imwrite(str(folder / "img3.png"), np.full((24, 24), 5000, np.uint16))
    with pytest.raises(FrameError, match=r"img3\.png: holds grey levels up to 5000; .* have 12 bits"):
        clip.read([3], 24)
    assert read_image(folder / "img3.png").max() == 5000 >> 6  # alone, of 14


def test_images_of_real_numbers_are_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "a.tif"), np.zeros((9, 9), np.float32))
    with pytest.raises(
        FrameError, match=r"a\.tif: (holds float32; grey levels of 8|is not an image that can be)"
    ):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", [".webm", ".mpg", ".wmv", ".mts", ".3gp", ".MP4", ".flv", ".m2ts"])
def test_videos_are_known_by_many_suffixes(tmp_path, suffix):
    """A container is what its content says: the one that the tests can write, under each name."""
    assert suffix.lower() in VIDEO_SUFFIXES
    write_video(tmp_path / "v.avi", grey(5)).rename(tmp_path / f"v{suffix}")
    (clip,), problems = find_clips([tmp_path])
    assert (len(clip), problems) == (5, [])


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".webm", "VP80"), (".mpg", "PIM1"), (".wmv", "WMV2"), (".3gp", "mp4v")]
)
def test_containers_are_read_where_opencv_reads_them(tmp_path, suffix, codec):
    path = tmp_path / f"v{suffix}"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 25.0, (32, 32))
    if not writer.isOpened():
        pytest.skip(f"OpenCV cannot write {suffix} here")
    for frame in grey(20, 32):
        writer.write(np.ascontiguousarray(frame.transpose(1, 2, 0)))
    writer.release()
    (clip,), _ = find_clips([tmp_path])
    assert clip.fps == pytest.approx(25, abs=0.1)
    assert np.abs(np.subtract(levels(clip, [3, 11]), [3, 11])).max() <= 1


def test_what_is_ignored_is_counted(tmp_path):
    write_images(tmp_path / "clip", grey(3))
    for name in ("a.txt", "b.TXT", "clip/c.csv", "README", "clip/Thumbs.db", ".hidden"):
        (tmp_path / name).write_text("x")
    _, problems = find_clips([tmp_path])
    reason = "holds files that are neither image nor video: 2 .txt, 1 without a suffix, 1 .csv"
    assert problems == [Problem(str(tmp_path), reason)]


def test_names_that_are_no_text_are_found_everywhere(tmp_path):
    inside = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    Path(inside).mkdir()
    write_images(tmp_path / "clip", grey(3)).rename(Path(inside) / "clip")
    write_video(tmp_path / "v.avi", grey(5)).rename(Path(inside) / os.fsdecode(b"\xff.avi"))
    clips, problems = find_clips([tmp_path])
    assert problems == []
    assert [clip.read([1], 24).shape for clip in clips] == [(1, 3, 24, 24)] * 2
