"""Machines as they are: consoles, schedulers, full and shared disks, little shared memory, data that was moved."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import micron_model.saved_model
from micron_model import MicronBERT
from micron_model.cli import main
from micron_model.data import find_clips
from micron_model.data.databases.corpus import Corpus
from micron_model.data.databases.lookalike import LookalikeConfig, make_lookalike
from micron_model.loading import load_recognizer
from micron_model.safe_load import safe_load
from micron_model.training import CheckpointError, Stopped, pretrain
from micron_model.training.log import read_log
from writers import grey, write_images, write_small_shards

QUIET = Console(quiet=True)
SMALL = [
    *("--preset", "tiny", "--model.image-size", "32", "--model.width", "32", "--model.decoder-width", "32"),
    *("--model.depth", "1", "--model.decoder-depth", "1", "--training.device", "cpu"),
    *("--training.steps", "2", "--training.batch-size", "2"),
]


def test_a_command_runs_from_a_notebook_on_a_console_of_few_signs():
    odd = {
        "MPLBACKEND": "module://matplotlib_inline.nowhere",
        "PYTHONIOENCODING": "cp1252",
        "PYTHONUTF8": "0",
    }
    environment = os.environ | odd | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "micron_model.cli", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"Pre-train a \u03bc-BERT on your frames" in done.stdout


def test_what_is_said_of_a_name_that_a_console_has_not(monkeypatch, tmp_path, capfdbinary):
    out = open(os.dup(2), "w", encoding="cp1252")  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", out)
    assert main(["score", str(tmp_path / "μ.csv")]) == 1
    out.close()
    assert b"\\u03bc.csv: no such file" in capfdbinary.readouterr().err


def test_sigterm_to_the_whole_job_leaves_a_checkpoint(training, small_config, image_folder, tmp_path):
    """As a scheduler sends it; the readers are processes of the job too."""
    clips, _ = find_clips([image_folder])
    config = training(steps=50, workers=1, evaluate_every=2, checkpoint_every=50)

    steps = []

    def stop(model):
        steps.append(2 * len(steps))
        if steps[-1] == 2:
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGTERM)
        if steps[-1] == 8:  # after more batches than were read by then
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(Stopped, match="SIGTERM after step 8"):
        pretrain(config, small_config, clips, tmp_path / "out", evaluate=stop, console=QUIET)
    assert safe_load(tmp_path / "out" / "checkpoint.pt")["step"] == 8


@pytest.fixture
def database(tmp_path):
    make_lookalike("casme2", tmp_path / "casme2", LookalikeConfig(subjects=2, clips=5, side=48))
    return [
        "casme2", str(tmp_path / "casme2"), "--recognizer", "flow", "--size", "32", "--parts", "4", "--cache",
        str(tmp_path / "faces"), "--allow-differences",
    ]  # fmt: skip


def test_what_was_trained_is_kept_where_there_is_room(database, tmp_path, monkeypatch, refused):
    write = micron_model.saved_model.write_whole

    def full(path, content):
        if path.is_relative_to(tmp_path / "out"):
            raise RuntimeError(f"{path}: could not be written (No space left on device)")
        write(path, content)

    monkeypatch.setattr(micron_model.saved_model, "write_whole", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    printed = refused(["finetune", *database, "--out", str(tmp_path / "out")])
    assert "No space left on device" in printed
    (kept,) = tmp_path.glob("micron-recognizer-*")
    assert f"What was trained is kept in {kept}: move it" in printed
    assert load_recognizer(kept).config.trained_on


@pytest.mark.parametrize(
    "command", ["finetune", "evaluate", "pretrain", "shard", "predict", "demo", "heatmap"]
)
@pytest.mark.parametrize("out", ["file", "below a file", "read-only"])
def test_where_nothing_can_be_written_a_line_says_so(
    command, out, image_folder, small, tmp_path, refused, monkeypatch
):
    from micron_model.recognizers.flow import FlowRecognizer, FlowRecognizerConfig

    (tmp_path / "file").write_text("mine")
    where = {
        "file": tmp_path / "file",
        "below a file": tmp_path / "file" / "out",
        "read-only": tmp_path / "new",
    }[out]
    pair = [str(image_folder / f"img{i}.png") for i in (1, 2)]
    if command == "heatmap":
        small().save_pretrained(tmp_path / "model")
        where = where / "a.png" if out != "file" else where
        if out == "file":
            return  # a picture is a file
    if command == "predict":
        FlowRecognizer(FlowRecognizerConfig(classes=("a", "b"), size=32, parts=4)).save_pretrained(
            tmp_path / "flow"
        )
    if out == "read-only":
        mkdir = os.mkdir

        def refuse(path, *arguments, **options):
            if Path(path) == tmp_path / "new":
                raise OSError(30, "Read-only file system", str(path))
            mkdir(path, *arguments, **options)

        monkeypatch.setattr(os, "mkdir", refuse)
    arguments = {
        "finetune": ["casme2", str(tmp_path), "--recognizer", "flow"],
        "evaluate": ["casme2", str(tmp_path), "--recognizer", "flow"],
        "pretrain": ["--data", str(image_folder), *SMALL],
        "shard": ["--data", str(image_folder), "--workers", "1"],
        "predict": [str(image_folder), "--model", str(tmp_path / "flow")],
        "demo": [],
        "heatmap": [*pair, "--model", str(tmp_path / "model")],
    }[command]
    printed = refused([command, *arguments, "--out", str(where)])
    assert str(tmp_path / ("new" if out == "read-only" else "file")) in printed.split("error: ")[1]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="modes as POSIX has them")
def test_who_may_not_read_a_model_is_told_so_and_modes_follow_the_umask(small, refused, image_folder):
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    before, root = os.umask(0o022), os.geteuid() == 0
    try:
        small().save_pretrained(folder / "model")
        assert {p.stat().st_mode & 0o777 for p in (folder / "model").iterdir()} == {0o644}
        for name in ("model.safetensors", "config.json"):
            (folder / "model" / name).chmod(0)
            if root:
                os.seteuid(65534)
            with pytest.raises(PermissionError, match="Permission denied"):
                MicronBERT.from_pretrained(folder / "model")
            if root:
                os.seteuid(0)
            (folder / "model" / name).chmod(0o644)
    finally:
        if root:
            os.seteuid(0)
        os.umask(before)
        shutil.rmtree(folder)


def test_a_run_goes_on_after_its_data_moved_and_for_more_steps(training, small_config, tmp_path, capsys):
    write_images(tmp_path / "here" / "s1" / "a", grey(20, 32))
    write_images(tmp_path / "here" / "s2" / "a", grey(30, 32))
    config = training(steps=2, checkpoint_every=1)
    pretrain(config, small_config, find_clips([tmp_path / "here"])[0], tmp_path / "out", console=QUIET)
    (tmp_path / "here").rename(tmp_path / "there")
    clips, _ = find_clips([tmp_path / "there"])
    more = replace(config, steps=4)
    pretrain(more, small_config, clips, tmp_path / "out", resume=True)
    assert "steps was 2, is 4: the learning rate goes on where that has it" in capsys.readouterr().err
    assert [e["step"] for e in read_log(tmp_path / "out")] == [1, 2, 3, 4]
    with pytest.raises(CheckpointError, match="steps was 4, is 3"):
        pretrain(replace(config, steps=3), small_config, clips, tmp_path / "out", resume=True)
    write_images(tmp_path / "there" / "s3" / "a", grey(9, 32))
    with pytest.raises(CheckpointError, match="data was 2 clips"):
        pretrain(more, small_config, find_clips([tmp_path / "there"])[0], tmp_path / "out", resume=True)


def test_shards_go_on_after_their_clips_moved(tmp_path):
    write_images(tmp_path / "here" / "s1" / "a", grey(20))
    write_small_shards([tmp_path / "here"], tmp_path / "out")
    (tmp_path / "here").rename(tmp_path / "there")
    assert write_small_shards([tmp_path / "there"], tmp_path / "out").frames == 20


@pytest.fixture
def trained(image_folder, tmp_path):
    """A run of two steps of a small model, and what it was told."""
    assert main(["pretrain", "--data", str(image_folder), "--out", str(tmp_path / "first"), *SMALL]) == 0
    return tmp_path / "first" / "model"


def test_training_starts_from_weights_and_remembers_whom_they_have_seen(trained, tmp_path, refused):
    other = write_images(tmp_path / "other", grey(20, 32))
    out = tmp_path / "second"
    given = ["--data", str(other), "--out", str(out), "--model.from", str(trained), "--preset", "tiny"]
    brief = ["--training.steps", "1", "--training.batch-size", "2", "--training.learning-rate", "0"]
    brief += ["--training.device", "cpu", "--training.weight-decay", "0"]
    assert main(["pretrain", *given, *brief]) == 0
    before, after = (MicronBERT.from_pretrained(path).encoder for path in (trained, out / "model"))
    assert all(torch.equal(*pair) for pair in zip(before.parameters(), after.parameters(), strict=True))
    seen = Corpus.read(out / "model").clips
    assert seen == tuple(sorted([str(other), *Corpus.read(trained).clips]))
    # Without the weights, which the checkpoint holds.
    on = ["--data", str(other), "--out", str(out), "--resume", *SMALL, *brief, "--training.steps", "2"]
    assert main(["pretrain", *on]) == 0
    assert Corpus.read(out / "model").clips == seen
    assert "width is 32, not 64: its settings are those of its weights" in refused(
        ["pretrain", *given, *brief, "--out", str(tmp_path / "third"), "--model.width", "64"]
    )


def test_weights_that_say_nothing_of_whom_they_have_seen_are_remembered_so(trained, tmp_path):
    (trained / "corpus.json").unlink()
    data = ["--data", str(write_images(tmp_path / "other", grey(20, 32))), "--out", str(tmp_path / "second")]
    assert main(["pretrain", *data, "--model.from", str(trained), *SMALL]) == 0
    assert json.loads((tmp_path / "second" / "model" / "corpus.json").read_text()) == {"clips": None}


@pytest.fixture
def little_shared_memory(monkeypatch):
    statvfs = os.statvfs

    class Little:
        f_bavail, f_frsize = 0, 4096

    monkeypatch.setattr(os, "statvfs", lambda path: Little if path == "/dev/shm" else statvfs(path))


def test_little_shared_memory_is_named(little_shared_memory, image_folder, tmp_path, refused):
    arguments = ["pretrain", "--data", str(image_folder), "--out", str(tmp_path / "out"), *SMALL]
    printed = refused([*arguments, "--training.workers", "1"])
    assert "take 36864 bytes of shared memory, and /dev/shm has 0 left; fewer --training.workers" in printed
    assert main(arguments) == 0


def test_little_shared_memory_is_named_by_evaluate(little_shared_memory, database, tmp_path, refused):
    arguments = ["evaluate", *database, "--out", str(tmp_path / "out"), "--workers", "2", "--device", "cpu"]
    printed = refused([*arguments, "--seeds", "1"])
    assert "and /dev/shm has 0 left; --workers 1 shares nothing" in printed


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a page of the web"),
        (b"\n\n<HTML>", "is a page of the web"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "is a page of the web"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "is a pointer of Git LFS"),
        (b"", r"is empty \(0 bytes\)"),
        (b"just words", "refused, and nothing in it was executed"),
    ],
)
def test_what_was_downloaded_in_place_of_a_checkpoint_is_said(tmp_path, content, words):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights\.pth: {words}") as error:
        safe_load(path)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("name", ["rec", "out/rec"])
def test_a_folder_that_is_not_there_is_a_line_at_once(name, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(micron_model.saved_model, "snapshot_download", None)
    printed = refused(["predict", "face.avi", "--model", name])
    assert f"{name}: no such folder. A model of the Hugging Face hub is named hf://owner/name" in printed
