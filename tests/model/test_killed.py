"""Killed in the middle of a file: what is there is whole, and the same command does the rest."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing import kill_before

from micron_model.cli import main
from micron_model.data import synthetic_clips
from micron_model.data.databases.lookalike import LookalikeConfig, make_lookalike
from micron_model.evaluation.predictions import read_predictions
from micron_model.loading import load_recognizer
from micron_model.whole_file import remove_partial
from writers import write_video

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills as POSIX does")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A look-alike of CASME II, a cache of its faces, and a recognizer trained on it."""
    folder = tmp_path_factory.mktemp("killed")
    make_lookalike("casme2", folder / "casme2", LookalikeConfig(subjects=2, clips=5, side=48))
    assert main(command("finetune", folder, folder / "recognizer")) == 0
    return folder


def command(name, folder, out, *more):
    return [
        name, "casme2", str(folder / "casme2"), "--recognizer", "flow", "--size", "32", "--parts", "4", "--cache",
        str(folder / "faces"), "--allow-differences", "--out", str(out), *more,
    ]  # fmt: skip


def evaluation(folder, out, *more):
    return command(
        "evaluate", folder, out, "--seeds", "1", "--workers", "1", "--device", "cpu", "--no-shuffled", *more
    )


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_fold_in_the_making_is_done_again_and_finished_ones_are_kept(folder, tmp_path):
    kill_before(evaluation(folder, tmp_path / "out"), "casme2-*.csv", 2)
    (finished,) = (tmp_path / "out" / "folds").rglob("[!.]*.csv")
    written = finished.stat().st_mtime_ns
    assert any(name.endswith(".part") for name in files(tmp_path))
    assert main(evaluation(folder, tmp_path / "out")) == 0
    assert finished.stat().st_mtime_ns == written
    assert not [name for name in files(tmp_path) if name.endswith((".part", ".lock"))]
    assert {row.subject for row in read_predictions(tmp_path / "out" / "predictions.csv").rows} == {
        "casme2/1",
        "casme2/2",
    }


@pytest.mark.parametrize("name", ["model.safetensors", "README.md", "config.json"])
def test_half_a_recognizer_is_none_and_is_trained_again(folder, tmp_path, name):
    out = tmp_path / "out"
    kill_before(command("finetune", folder, out), name)
    with pytest.raises(FileNotFoundError, match="so it is no folder of a model"):
        load_recognizer(str(out))
    assert main(command("finetune", folder, out)) == 0
    assert files(out) == files(folder / "recognizer")
    for saved in files(out):
        assert (out / saved).read_bytes() == (folder / "recognizer" / saved).read_bytes()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """One with an expression in it, and one in which nothing happens."""
    folder, clip = tmp_path_factory.mktemp("videos"), synthetic_clips(range(4))[1]
    for name, numbers in (("face", range(150)), ("still", [0] * 100)):
        write_video(folder / f"{name}.avi", clip.read(numbers, 128), fps=60.0)
    return folder


def prediction(folder, video, out):
    return ["predict", str(video), "--model", str(folder / "recognizer"), "--out", str(out)]


@pytest.mark.parametrize("name", ["curve.png", "candidates.png", "candidates.json"])
def test_pictures_and_candidates_are_of_one_video(folder, videos, tmp_path, name):
    """Of another video there was more in that folder."""
    out = tmp_path / "out"
    assert main(prediction(folder, videos / "face.avi", out)) == 0
    complete = files(out)
    kill_before(prediction(folder, videos / "face.avi", out), name)
    assert not (out / "candidates.json").exists()  # the last, which says of which video they are
    assert main(prediction(folder, videos / "face.avi", out)) == 0
    assert files(out) == complete == ["candidates.json", "candidates.png", "curve.png"]


def test_no_picture_stays_of_an_earlier_video(folder, videos, tmp_path):
    for name in ("face", "still"):
        assert main(prediction(folder, videos / f"{name}.avi", tmp_path)) == 0
    assert json.loads((tmp_path / "candidates.json").read_text())["candidates"] == []
    assert files(tmp_path) == ["candidates.json", "curve.png"]


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    host = os.uname().nodename
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = [
        f".a.csv.{host}.{os.getpid()}.7.part",
        f".a.csv.elsewhere.{ended.pid}.7.part",
        "a.part",
        ".b.part",
    ]
    gone = f".a.csv.{host}.{ended.pid}.7.part"
    for name in (*names, gone):
        (tmp_path / "below").mkdir(exist_ok=True)
        (tmp_path / "below" / name).touch()
    remove_partial(tmp_path)
    assert sorted(p.name for p in (tmp_path / "below").iterdir()) == sorted(names)


_WAITING = """
import multiprocessing, os, sys, time
from micron_model.signals import end_with_parent
def work(pipe):
    end_with_parent()
    pipe.send(os.getpid())
    time.sleep(60)
if __name__ == "__main__":
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(target=work, args=(theirs,)).start()
    print(ours.recv(), flush=True)
    time.sleep(60)
"""


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_WAITING)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment) as parent:
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)
        parent.kill()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            break
        if Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        os.kill(worker, signal.SIGKILL)
        raise AssertionError("the worker lives on")
