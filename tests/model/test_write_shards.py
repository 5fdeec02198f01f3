"""What shards hold, what interrupts the writing of them, and what is said of clips that cannot be read."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset

from micron_model.cli import main
from micron_model.data import Problem, find_shards, synthetic_clips
from micron_model.data.clips.frames import decode_image
from micron_model.data.shards import write as writing
from micron_model.data.shards.plan import ShardConfig, cut_clip
from micron_model.data.shards.read import read_shard
from micron_model.data.shards.write import ShardError, ShardingStopped
from writers import grey, write_images, write_small_shards, write_video


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_frame_comes_back_with_its_number(sources, tmp_path):
    written = write_small_shards(sources, tmp_path / "out", seconds=1.0, frames_per_shard=60)
    assert written == (len(find_shards([tmp_path / "out"])), 6, 170, [])
    seen = {}
    for shard in find_shards([tmp_path / "out"]):
        runs, problems = read_shard(shard)
        assert problems == []
        for run in runs:
            assert run.fps == 30
            for number, jpeg in run.frames.items():
                level = decode_image(jpeg).mean()
                assert abs(level - 3 * number) <= 3  # the video is lossy too
                assert seen.setdefault((run.clip, number), run.key) == run.key
    folder = tmp_path / "in"
    clips = {"s1/smile": 70, "s2/frown": 20, "s2/video.avi": 80}
    assert set(seen) == {(str(folder / name), i) for name, length in clips.items() for i in range(length)}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # by webdataset
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_shard_is_plain_webdataset(sources, tmp_path):
    write_small_shards(sources, tmp_path / "out", seconds=1.0, frames_per_shard=60)
    keys, subjects = [], {}
    pattern = str(tmp_path / "out" / "shard-{000000..000002}.tar")
    for sample in webdataset.WebDataset(pattern, shardshuffle=False):
        about = json.loads(sample["json"])
        keys.append(sample["__key__"])
        subjects[Path(about["clip"]).name] = about["subject"]
        images = [name for name in sample if name.endswith(".jpg")]
        assert [int(name[:-4]) for name in images] == about["frames"] == sorted(about["frames"])
        assert decode_image(sample[images[0]]).shape == (3, 24, 24)
        assert next(name for name in sample if not name.startswith("__")) == "json"
    assert len(set(keys)) == len(keys) == 6
    assert subjects == {"smile": "s1", "frown": "s2", "video.avi": "s2"}


def test_chroma_is_not_subsampled(tmp_path):
    frames = np.zeros((4, 3, 32, 32), np.uint8)
    frames[:, 0, :, ::2] = 255  # red and black columns
    write_small_shards([write_images(tmp_path / "clip", frames)], tmp_path / "out", size=32)
    ((run,), _) = read_shard(find_shards([tmp_path / "out"])[0])
    error = np.abs(decode_image(run.frames[0]).astype(int) - frames[0])
    assert error.mean() < 3  # 62 with chroma at half the resolution


def test_short_rests_join_the_run_before(tmp_path):
    assert cut_clip(200, 90) == [(0, 90), (90, 200)]
    assert cut_clip(230, 90) == [(0, 90), (90, 180), (180, 230)]
    assert cut_clip(20, 90) == [(0, 20)]
    assert cut_clip(5, 2) == [(0, 2), (2, 5)]


def test_the_subject_is_found_in_the_path(sources, tmp_path):
    write_small_shards(sources, tmp_path / "out", subject=r"/s(\d)/")
    with tarfile.open(find_shards([tmp_path / "out"])[0]) as tar:
        abouts = [json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith(".json")]
    assert {about["subject"] for about in abouts} == {"1", "2"}
    with pytest.raises(ValueError, match=r"subject='x\(.\)' finds no subject in .*smile"):
        write_small_shards(sources, tmp_path / "other", subject="x(.)")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"size": 0}, "size=0; it must be at least 1"),
        ({"quality": 101}, "quality=101; JPEG has 1 to 100"),
        ({"seconds": 0.1}, "seconds=0.1; a run holds both frames of a pair, which takes 0.4 or more"),
        ({"fps": 0.0}, "fps=0.0; it must be a positive number"),
        ({"subject": "s."}, "has 0 groups; one must hold the subject"),
        ({"subject": "s("}, "is no regular expression"),
    ],
)
def test_bad_settings_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        ShardConfig(**setting)


IN_WORKERS = """
import json, pathlib, sys
from micron_model.data.shards.plan import ShardConfig
from micron_model.data.shards.write import write_shards
write_shards([sys.argv[1]], pathlib.Path(sys.argv[2]), ShardConfig(**json.loads(sys.argv[3])), workers=2)
"""


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    for i in range(6):
        write_images(tmp_path / "in" / f"clip{i}", grey(80, 200))
    settings = {"size": 224, "seconds": 1.0, "frames_per_shard": 30}
    write_small_shards([tmp_path / "in"], tmp_path / "whole", **settings)
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", IN_WORKERS, tmp_path / "in", killed, json.dumps(settings)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(killed.glob("shard-*.json"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    time.sleep(0.3)  # for its workers to see that they are alone
    first = {path.name: path.stat().st_mtime_ns for path in killed.glob("shard-*.json")}
    last = max((tmp_path / "whole").glob("*.tar")).stem
    assert f"{last}.json" not in first
    (killed / ".shard-000009.tar.1.part").write_bytes(b"half of a sh")
    (killed / f"{last}.tar").write_bytes(b"a shard without the file that says it is finished")
    write_small_shards([tmp_path / "in"], killed, **settings)
    assert content(killed) == content(tmp_path / "whole")
    assert all((killed / name).stat().st_mtime_ns == when for name, when in first.items())


def test_a_signal_stops_cleanly(sources, tmp_path, monkeypatch):
    settings = {"seconds": 1.0, "frames_per_shard": 8}
    write_small_shards(sources, tmp_path / "whole", **settings)
    out = tmp_path / "out"
    jpeg, calls = writing._jpeg, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 100:
            os.kill(os.getpid(), signal.SIGTERM)
        return jpeg(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_jpeg", interrupted)
        with pytest.raises(ShardingStopped, match=r"stopped by SIGTERM: \d of 6 shards"):
            write_small_shards(sources, out, **settings)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert 0 < len(list(out.glob("*.tar"))) < 6
    assert not list(out.glob(".*"))
    write_small_shards(sources, out, **settings)
    assert content(out) == content(tmp_path / "whole")


def test_what_cannot_be_read_is_left_out_and_listed_once(tmp_path, capsys):
    folder = write_images(tmp_path / "in" / "clip", grey(40))
    (folder / "img8.png").write_bytes(b"broken")
    (folder / "img10.png").write_bytes(b"")
    lonely = write_images(tmp_path / "in" / "lonely", grey(3))
    for i in (1, 2):
        (lonely / f"img{i}.png").write_bytes(b"broken")
    path = write_video(tmp_path / "in" / "cut.avi", synthetic_clips([0])[0].read(range(44), 48))
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 2])
    (tmp_path / "in" / "zero.mp4").touch()
    out = tmp_path / "out"
    arguments = ["shard", "--data", str(tmp_path / "in"), "--out", str(out), "--size", "24", "--workers", "1"]
    assert main([*arguments, "--seconds", "0.4"]) == 0
    printed = "".join(capsys.readouterr().err.split("\n")).replace(" ", "")  # lines break anywhere
    assert "6fileswerepassedover" in printed
    for reason in (
        "img8.png: is not an image that can be decoded (6 bytes)",
        "img10.png: is empty (0 bytes)",
        "img1.png: is not an image",
        "img2.png: is not an image",
        "cut.avi: ends before the 44 frames it states",
        "zero.mp4: no frame can be decoded from this video",
    ):
        assert printed.count(reason.replace(" ", "")) == 1, reason
    frames = {}
    runs, _ = read_shard(find_shards([out])[0])
    for run in runs:
        frames.setdefault(Path(run.clip).name, set()).update(run.frames)
    assert frames.keys() == {"clip", "cut.avi"}
    assert frames["clip"] == set(range(40)) - {7, 9}
    assert frames["cut.avi"] == set(range(max(frames["cut.avi"]) + 1))
    assert 4 < len(frames["cut.avi"]) < 40
    assert f"1shards,{len(runs)}runs,{38 + len(frames['cut.avi'])}frames" in printed


def test_a_damaged_frame_of_a_video_costs_that_frame(tmp_path):
    path = write_video(tmp_path / "v.avi", grey(40))
    data = bytearray(path.read_bytes())
    frame = [m.start() for m in re.finditer(b"00dc", data)][11]  # the first is in the header
    length = int.from_bytes(data[frame + 4 : frame + 8], "little")
    data[frame + 8 : frame + 8 + length] = bytes(length)
    path.write_bytes(data)
    written = write_small_shards([path], tmp_path / "out")
    assert written[1:] == (1, 39, [Problem(str(path), "frame 10 cannot be decoded")])
    ((run,), _) = read_shard(find_shards([tmp_path / "out"])[0])
    assert all(abs(decode_image(jpeg).mean() - 3 * n) <= 3 for n, jpeg in run.frames.items())


def test_nothing_that_can_be_decoded_is_an_error(tmp_path):
    folder = write_images(tmp_path / "clip", grey(5))
    for path in folder.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(
        ValueError, match=r"no run of 2 frames could be decoded: .*img1\.png: is not an image"
    ):
        write_small_shards([folder], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_another_plan_is_refused(sources, tmp_path, shards):
    before = content(tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"another plan: size was 24, is 32; seconds was 1\.0, is 2\.0\. Give"
    ):
        write_small_shards(sources, tmp_path / "out", seconds=2.0, frames_per_shard=8, size=32)
    write_images(tmp_path / "in" / "new", grey(5))
    with pytest.raises(ValueError, match=r"data was 3 clips .*, is 4 clips"):
        write_small_shards(sources, tmp_path / "out", seconds=1.0, frames_per_shard=8)
    assert content(tmp_path / "out") == before
    (tmp_path / "out" / "plan.json").unlink()
    with pytest.raises(ValueError, match=r"holds tar files and no plan\.json"):
        write_small_shards(sources, tmp_path / "out")


@pytest.fixture
def files_of_60_kb():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_and_finished_shards_stay(tmp_path, files_of_60_kb, capsys):
    write_images(tmp_path / "in" / "a", grey(20))
    write_images(tmp_path / "in" / "b", np.random.default_rng(0).integers(0, 256, (90, 3, 24, 24), np.uint8))
    out = tmp_path / "out"
    arguments = ["shard", "--data", str(tmp_path / "in"), "--out", str(out), "--size", "24", "--workers", "1"]
    arguments += ["--frames-per-shard", "2", "--seed", "1"]
    assert main(arguments) == 1
    printed = " ".join(capsys.readouterr().err.split())
    assert "could not be written (File too large); finished shards are intact" in printed
    finished = {p.stem for p in out.glob("*.json")} - {"plan"}
    assert len(finished) == 1
    assert {p.stem for p in out.glob("*.tar")} == finished
    assert not list(out.glob(".*"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
    assert main(arguments) == 0


def test_a_folder_that_cannot_be_made_is_named(sources, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ShardError, match=r"file: cannot be written to \(File exists\)"):
        write_small_shards(sources, tmp_path / "file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "{tmp}/missing"], "missing: no such file or folder"),
        (["--data", "{tmp}"], "no image and no video was found"),
        (["--data", "{tmp}", "--quality", "0"], "quality=0; JPEG has 1 to 100"),
        (["--data", "{tmp}", "--workers", "0"], "workers=0; at least 1 process must write"),
        ([], "--data"),
    ],
)
def test_bad_input_is_named_without_a_traceback(arguments, message, tmp_path, refused):
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    assert message in refused(["shard", *filled, "--out", str(tmp_path / "out")])
