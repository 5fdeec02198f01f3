"""A fault of the machine stops; it is never taken for a fault of a file."""

import contextlib
import errno
import io
import json
import os
import resource
import signal

import cv2
import numpy as np
import pytest

import micron_model.whole_file
from micron_model import MicronBERT, preset
from micron_model.cli import main
from micron_model.data.clips.frames import FrameError, VideoClip, read_image
from micron_model.data.databases.lookalike import LookalikeConfig, make_lookalike
from micron_model.data.shards.read import read_shard
from micron_model.faults import MachineFault, is_of_the_machine
from micron_model.recognizers.micron_bert import MicronBERTRecognizer
from micron_model.whole_file import whole_file, write_whole
from writers import grey, write_images, write_video

FAULTS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.EROFS]


@pytest.fixture
def full_disk(monkeypatch):
    """A function after which every file that ``whole_file`` writes finds the disk full, or fails in another way."""

    def fill(number=errno.ENOSPC):
        def fail(_handle):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(micron_model.whole_file.os, "fsync", fail)

    return fill


@pytest.fixture
def small_files():
    """A function after which this process may write files of so many bytes only: the system's own refusal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("number", FAULTS)
def test_a_file_that_cannot_be_written_is_named_and_what_was_there_stays(tmp_path, full_disk, number):
    path = tmp_path / "a" / "file"
    write_whole(path, "before")
    full_disk(number)
    with pytest.raises(OSError, match=os.strerror(number)) as error, whole_file(path) as file:
        file.write(b"after")
    assert error.value.filename == str(path)
    with pytest.raises(RuntimeError, match=rf"a/file: could not be written \({os.strerror(number)}\)"):
        write_whole(path, "after")
    assert [p.read_text() for p in path.parent.iterdir()] == ["before"]


def test_a_file_beyond_the_limit_of_the_system_is_named(tmp_path, small_files):
    small_files(1000)
    with pytest.raises(RuntimeError, match=r"file: could not be written \(File too large\)"):
        write_whole(tmp_path / "file", bytes(5000))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def database(tmp_path):
    root = tmp_path / "casme2"
    make_lookalike("casme2", root, LookalikeConfig(subjects=2, clips=5, side=64))
    MicronBERT(preset("tiny")).save_pretrained(tmp_path / "model")
    return root


def finetune(database, *more):
    folder = database.parent
    return [
        "finetune", "casme2", str(database), "--model", str(folder / "model"), "--out", str(folder / "recognizer"),
        "--cache", str(folder / "faces"), "--allow-differences", "--freeze", "encoder", "--epochs", "1", *more,
    ]  # fmt: skip


def test_a_full_disk_under_the_cache_drops_no_clip(database, full_disk, refused):
    full_disk()
    printed = refused(finetune(database))
    assert "No space left on device; nothing is passed over for that, so this stops" in printed
    assert str(database.parent / "faces") in printed
    assert not (database.parent / "recognizer" / "config.json").exists()


def test_a_recognizer_says_what_it_was_trained_on_not_what_there_was(database, capsys):
    (chosen, *_) = sorted((database / "Cropped").rglob("*.jpg"), key=lambda p: p.parent)
    clip = chosen.parent
    for path in clip.iterdir():
        path.write_bytes(b"no image")
    assert main(finetune(database)) == 0
    assert f"{clip.name}: left out" in capsys.readouterr().err.replace("\n", "")
    settings = json.loads((database.parent / "recognizer" / "config.json").read_text())
    assert settings["trained_on"].endswith("; 1 that could not be read")
    counted = int(settings["trained_on"].split(":")[1].split()[0])
    assert counted == len(list((database.parent / "faces").glob("*.npz")))


def raises(number):
    def fail(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", FAULTS)
def test_a_fault_of_the_machine_is_no_fault_of_an_image_or_shard(tmp_path, shards, monkeypatch, number):
    path = write_images(tmp_path / "clip", grey(2)) / "img1.png"
    monkeypatch.setattr("pathlib.Path.read_bytes", raises(number))
    monkeypatch.setattr("micron_model.limits.os.open", raises(number))
    with pytest.raises(MachineFault, match=rf"img1\.png: {os.strerror(number)}"):
        read_image(path)
    monkeypatch.setattr("builtins.open", raises(number))
    with pytest.raises(MachineFault, match=rf"\.tar: {os.strerror(number)}"):
        read_shard(shards[0])


def test_an_image_that_may_not_be_read_is_a_fault_of_its_own(tmp_path, monkeypatch):
    path = write_images(tmp_path / "clip", grey(2)) / "img1.png"
    monkeypatch.setattr("pathlib.Path.read_bytes", raises(errno.EACCES))
    monkeypatch.setattr("micron_model.limits.os.open", raises(errno.EACCES))
    with pytest.raises(FrameError, match=r"img1\.png: Permission denied"):
        read_image(path)


def test_want_of_memory_is_no_fault_of_an_image(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    path = write_images(tmp_path / "clip", grey(2)) / "img1.png"
    monkeypatch.setattr(cv2, "imdecode", fail)
    with pytest.raises(MachineFault, match=r"img1\.png: out of memory"):
        read_image(path)


def test_a_video_is_not_dropped_for_want_of_descriptors(tmp_path):
    path = write_video(tmp_path / "v.avi", grey(5))
    VideoClip.open(path)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        with contextlib.suppress(OSError):
            while True:
                opened.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(MachineFault, match=r"v\.avi: Too many open files"):
            VideoClip.open(path)
    finally:
        for handle in opened:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_disk_that_fails_in_the_middle_of_a_video_is_no_damage(tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.avi", grey(30))
    clip = VideoClip.open(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # all that FFmpeg hands on of such a disk
    opened = open

    class Failing(io.BytesIO):
        def read(self, *_):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def fail(name, *arguments, **options):
        return Failing() if name == str(path) else opened(name, *arguments, **options)

    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(MachineFault, match=r"v\.avi: Input/output error"):
        clip.read([29], 24)
    with pytest.raises(MachineFault, match=r"v\.avi: Input/output error"):
        list(clip.decode(0, 30, 24))
    monkeypatch.setattr("builtins.open", opened)
    with pytest.raises(FrameError, match="ends before the 30 frames it states"):
        clip.read([29], 24)


def test_faults_are_told_apart():
    assert is_of_the_machine(MemoryError())
    assert not is_of_the_machine(FileNotFoundError(errno.ENOENT, "no"))
    assert not is_of_the_machine(PermissionError(errno.EACCES, "no"))
    assert not is_of_the_machine(ValueError("No space left on device"))


@pytest.fixture
def recognizer(small, tmp_path):
    model = MicronBERTRecognizer.from_pretrained_backbone(small(), ("happiness", "surprise"), regions=2)
    model.save_pretrained(tmp_path / "recognizer")
    small().save_pretrained(tmp_path / "model")
    return tmp_path


@pytest.mark.parametrize("command", ["heatmap", "predict", "pretrain", "shard", "demo", "evaluate"])
def test_a_full_disk_ends_a_command_in_a_line_with_the_path(
    command, recognizer, clips, image_folder, full_disk, refused, tmp_path, request
):
    out = tmp_path / "out"
    face = str(write_video(tmp_path / "face.avi", clips[1].read(range(len(clips[1])), 128)))
    tiny = ["--steps", "1", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    commands = {
        "heatmap": [f"{image_folder}/img1.png", f"{image_folder}/img2.png", "--model", f"{recognizer}/model",
                    "--out", f"{out}/a.png"],
        "predict": [face, "--model", f"{recognizer}/recognizer", "--out", str(out)],
        "pretrain": ["--data", str(image_folder), "--out", str(out), "--preset", "tiny",
                     *(a.replace("--", "--training.") for a in tiny)],
        "shard": ["--data", str(image_folder), "--out", str(out), "--workers", "1"],
        "demo": ["--out", str(out)],
        "evaluate": [],
    }  # fmt: skip
    arguments = commands[command]
    if command == "evaluate":
        database = request.getfixturevalue("database")
        arguments = ["casme2", str(database), "--model", f"{recognizer}/model", "--out", str(out), "--cache",
                     str(tmp_path / "faces"), "--allow-differences", "--allow-overlap"]  # fmt: skip
    full_disk()
    printed = refused([command, *arguments])
    assert "error: " in printed
    assert "No space left on device" in printed
    assert str(tmp_path) in printed.split("error: ")[1]
    assert not [p for p in out.rglob("*") if p.is_file()]


def test_decoded_frames_are_what_they_are(tmp_path):
    path = write_images(tmp_path / "clip", grey(3)) / "img2.png"
    assert np.all(read_image(path) == 3)
