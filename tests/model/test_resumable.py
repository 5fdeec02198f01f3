"""Folders that one process at a time writes to."""

import json
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from micron_model.cli import main
from micron_model.resumable import LOCK, Claimed, claimed
from micron_model.whole_file import whole_file

_HOLD = """
import sys, pathlib
from micron_model.resumable import claimed
with claimed(pathlib.Path(sys.argv[1])):
    print("claimed", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has claimed ``tmp_path / "out"``."""
    command = [sys.executable, "-c", _HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


def test_a_folder_is_made_and_left_without_a_lock(tmp_path):
    with claimed(tmp_path / "a" / "out"), claimed(tmp_path / "a" / ".." / "a" / "out"):
        about = json.loads((tmp_path / "a" / "out" / LOCK).read_text())
        assert (about["host"], about["process"]) == (socket.gethostname(), os.getpid())
    assert list((tmp_path / "a" / "out").iterdir()) == []


def test_the_second_is_refused_in_words_and_a_dead_lock_is_taken_over(holder, tmp_path):
    out = tmp_path / "out"
    words = rf"out: process {holder.pid} on {socket.gethostname()} writes to it since \d\d\d\d-.*; wait for it, stop it"
    with pytest.raises(Claimed, match=words), claimed(out):
        pass
    holder.kill()
    holder.wait()
    assert (out / LOCK).exists()
    with claimed(out):
        assert json.loads((out / LOCK).read_text())["process"] == os.getpid()
    assert list(out.iterdir()) == []


def test_another_thread_is_refused_too(tmp_path):
    refusals = []

    def claim():
        try:
            with claimed(tmp_path):
                pass
        except Claimed as error:
            refusals.append(str(error))

    with claimed(tmp_path):
        thread = threading.Thread(target=claim)
        thread.start()
        thread.join()
    assert len(refusals) == 1
    assert f"process {os.getpid()}" in refusals[0]


def test_a_lock_of_another_machine_is_not_taken_over(tmp_path):
    lock = tmp_path / LOCK
    lock.write_text(json.dumps({"host": "elsewhere", "process": 7, "since": "2026-01-01"}))
    with (
        pytest.raises(Claimed, match=r"process 7 on elsewhere wrote to it since 2026-01-01.*delete .*\.lock"),
        claimed(tmp_path),
    ):
        pass
    assert lock.exists()
    lock.unlink()
    with claimed(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "[", "[" * 5000, '{"host": 3', "null", '"a"'])
def test_a_lock_that_says_nothing_is_taken_over(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    with claimed(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_releases(tmp_path):
    def fail():
        with claimed(tmp_path):
            raise ValueError("inside")

    for _ in range(2):
        with pytest.raises(ValueError, match="inside"):
            fail()


@pytest.fixture
def held(tmp_path):
    """``tmp_path / "out"``, claimed by another thread: quicker than another process, and refused alike."""
    ready, done = threading.Event(), threading.Event()

    def hold():
        with claimed(tmp_path / "out"):
            ready.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    ready.wait()
    yield
    done.set()
    thread.join()


@pytest.mark.parametrize("command", ["shard", "pretrain", "demo", "finetune", "predict", "evaluate"])
def test_no_command_writes_to_a_claimed_folder(command, held, image_folder, small, tmp_path, refused):
    from micron_model.data.databases.lookalike import LookalikeConfig, make_lookalike
    from micron_model.recognizers.micron_bert import MicronBERTRecognizer

    small().save_pretrained(tmp_path / "model")
    MicronBERTRecognizer.from_pretrained_backbone(small(), ("a", "b"), regions=2).save_pretrained(
        tmp_path / "recognizer"
    )
    if command in ("finetune", "evaluate"):
        make_lookalike("casme2", tmp_path / "casme2", LookalikeConfig(subjects=2, clips=5, side=64))
    of_database = ["casme2", str(tmp_path / "casme2"), "--model", str(tmp_path / "model"), "--cache",
                   str(tmp_path / "faces"), "--allow-differences"]  # fmt: skip
    arguments = {
        "shard": ["--data", str(image_folder)],
        "pretrain": ["--data", str(image_folder), "--preset", "tiny"],
        "demo": [],
        "finetune": of_database,
        "evaluate": [*of_database, "--allow-overlap"],
        "predict": [str(image_folder), "--model", str(tmp_path / "recognizer")],
    }[command]
    printed = refused([command, *arguments, "--out", str(tmp_path / "out")])
    assert f"out: process {os.getpid()} on " in printed
    assert os.listdir(tmp_path / "out") == [LOCK]


def test_a_command_leaves_no_lock(image_folder, tmp_path):
    assert main(["shard", "--data", str(image_folder), "--out", str(tmp_path / "out"), "--size", "16"]) == 0
    assert not (tmp_path / "out" / LOCK).exists()


def test_two_threads_may_write_one_file(tmp_path):
    both = threading.Barrier(2, timeout=20)

    def write(text):
        with whole_file(tmp_path / "file") as file:
            both.wait()
            file.write(text)
            both.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, (b"one", b"two")))
    assert [path.read_bytes() in (b"one", b"two") for path in tmp_path.iterdir()] == [True]
