"""Pre-training on shards: going on with a run, and what becomes of damaged data while one trains."""

import contextlib
import io
import multiprocessing
import os
import re
import shutil
import signal
import tarfile
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from micron_model import preset
from micron_model.cli import main
from micron_model.data import find_clips, find_shards, synthetic_clips
from micron_model.training import CheckpointError, PretrainConfig, Stopped, checkpoint, pretrain
from micron_model.training.log import read_log
from processes import start_ranks
from writers import write_images, write_video

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

SMALL = [
    "pretrain", "--preset", "tiny", "--training.device", "cpu", "--training.batch-size", "4",
    "--model.image-size", "32", "--model.width", "32", "--model.depth", "1", "--model.decoder-width", "32",
    "--model.decoder-depth", "1", "--training.steps", "3",
]  # fmt: skip
#: Pairs of an epoch: 8 shards of a run each, 4 pairs a run.
EPOCH = 32
MODEL = {"image_size": 32, "width": 32, "decoder_width": 32, "depth": 1, "decoder_depth": 1}


@pytest.fixture(scope="module")
def clips_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i, clip in enumerate(synthetic_clips(range(4))[:4]):
        write_images(folder / f"clip{i}", clip.read(range(44), 32))
    return folder


@pytest.fixture(scope="module")
def folder(clips_folder, tmp_path_factory):
    """Eight shards of a run each, written by the command."""
    out = tmp_path_factory.mktemp("shards")
    arguments = ["--size", "32", "--seconds", "0.7", "--frames-per-shard", "8", "--workers", "1"]
    assert main(["shard", "--data", str(clips_folder), "--out", str(out), *arguments]) == 0
    assert len(list(out.glob("*.tar"))) == 8
    return out


@pytest.fixture
def own_folder(folder, tmp_path):
    """The shards, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "shards"))


def train(data, out, *, console=None, evaluate=None, resume=False, **settings):
    config = PretrainConfig(
        **({"steps": 8, "batch_size": 3, "checkpoint_every": 3, "device": "cpu"} | settings)
    )
    return pretrain(
        config, preset("tiny", **MODEL), data, out, resume=resume, evaluate=evaluate,
        console=console or Console(quiet=True),
    )  # fmt: skip


def train_and_stop(data, out, after, **settings):
    """A run that is told to stop while it is at step ``after``."""

    def stop(_model):
        if (out / "log.jsonl").stat().st_size:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(Stopped, match=f"SIGTERM after step {after}"):
        train(data, out, evaluate=stop, evaluate_every=after, **settings)


def losses(folder):
    return [(e["step"], e["loss"], e["gradient_norm"]) for e in read_log(folder) if "loss" in e]


def printed(capture):
    captured = capture.readouterr()
    return re.sub(r"\s+", " ", captured.err + captured.out)


# By the command


@pytest.mark.parametrize(("pattern", "count"), [("", 8), ("/shard-{{000000..000001}}.tar", 2)])
def test_the_command_trains_on_shards(folder, tmp_path, capsys, pattern, count):
    out = tmp_path / "out"
    data = f"{folder}{pattern.format()}"
    assert main([*SMALL, "--data", data, "--out", str(out)]) == 0
    assert f"{count} shards" in printed(capsys)
    assert [step for step, *_ in losses(out)] == [1, 2, 3]
    assert (out / "model" / "config.json").is_file()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["{clips}", "{shards}"], "shards is shards and .*clips0 is not: train on one kind"),
        (["{shards}/none-*.tar"], r"none-\*\.tar: no such shard, nor a folder or pattern that has any"),
        (["{shards}/none-{{0..1}}.tar"], r"none-0\.tar: no such shard"),
    ],
)
def test_what_is_no_set_of_shards_is_refused(
    folder, clips_folder, tmp_path, capsys, monkeypatch, data, message
):
    monkeypatch.setenv("COLUMNS", "1000")
    names = [name.format(clips=clips_folder, shards=folder) for name in data]
    assert main([*SMALL, "--data", *names, "--out", str(tmp_path / "out")]) == 1
    said = printed(capsys)
    assert re.search(message.replace("shards is", f"{re.escape(str(folder))} is"), said)
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["clips", "shards"])
def test_nothing_that_can_be_decoded_is_one_line(
    kind, clips_folder, own_folder, tmp_path, capfd, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "1000")
    if kind == "clips":
        data = Path(shutil.copytree(clips_folder, tmp_path / "clips"))
        for path in data.rglob("*.png"):
            path.write_bytes(b"broken")
        message = r"16 pairs in a row could not be read; the last: \S+png: is not an image"
    else:
        data = own_folder
        for path in data.glob("*.tar"):
            break_frames(path, every=1)
        message = "an epoch of 8 shards had not one pair .*is not an image"
    workers = "1" if kind == "clips" else "0"
    arguments = ["--out", str(tmp_path / "out"), "--training.workers", workers]
    assert main([*SMALL, "--data", str(data), *arguments]) == 1
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if re.search(f"^micron: error: {message}", line)]) == 1
    assert said.rstrip().splitlines()[-1].startswith("micron: error: ")


# Going on


@pytest.fixture(scope="module")
def run_of_two_workers(folder, tmp_path_factory):
    """(a run, one that was stopped after its third step of eight), of two workers."""
    out = tmp_path_factory.mktemp("runs")
    shards = find_shards([folder])
    train(shards, out / "whole", workers=2, accumulate=2)
    train_and_stop(shards, out / "stopped", 3, workers=2, accumulate=2)
    return out / "whole", out / "stopped"


def test_resuming_equals_never_stopping(folder, tmp_path):
    shards = find_shards([folder])
    train(shards, tmp_path / "whole", steps=12)
    assert EPOCH < 12 * 3
    train_and_stop(shards, tmp_path / "stopped", 5, steps=12)
    train(shards, tmp_path / "stopped", steps=12, resume=True)
    assert len(losses(tmp_path / "whole")) == 12
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_resuming_equals_never_stopping_with_two_workers(folder, run_of_two_workers, tmp_path):
    whole, stopped = run_of_two_workers
    before = checkpoint.load(stopped / "checkpoint.pt")["positions"]
    out = shutil.copytree(stopped, tmp_path / "resumed")
    train(find_shards([folder]), out, workers=2, accumulate=2, resume=True)
    assert losses(out) == losses(whole)
    after = checkpoint.load(out / "checkpoint.pt")["positions"]
    assert before.keys() == after.keys() == {0, 1}
    for consumer in before:  # each had left its first shard, not at a shard's end, and went on to others
        assert before[consumer][1] >= 2
        assert before[consumer][2] < 4
        assert after[consumer][:2] > before[consumer][:2]


def test_another_number_of_workers_is_refused_unless_allowed(folder, run_of_two_workers, tmp_path):
    out = shutil.copytree(run_of_two_workers[1], tmp_path / "resumed")
    shards = find_shards([folder])
    with pytest.raises(
        CheckpointError,
        match=r"a run of 2 readers of shards .*, this one has 1: .*--training\.other-ranks",
    ):
        train(shards, out, accumulate=2, resume=True)
    epochs = [place[0] for place in checkpoint.load(out / "checkpoint.pt")["positions"].values()]
    train(shards, out, accumulate=2, resume=True, other_ranks=True)
    assert [step for step, *_ in losses(out)] == list(range(1, 9))
    assert losses(out)[:3] == losses(run_of_two_workers[0])[:3]
    positions = checkpoint.load(out / "checkpoint.pt")["positions"]
    assert positions.keys() == {0}
    assert positions[0][0] == max(epochs) + 1


def test_other_shards_are_refused(own_folder, tmp_path):
    train_and_stop(find_shards([own_folder]), tmp_path / "out", 2)
    (own_folder / "shard-000003.tar").unlink()
    with pytest.raises(CheckpointError, match=r"data was 8 shards \w+, is 7 shards \w+\. Give the same"):
        train(find_shards([own_folder]), tmp_path / "out", resume=True)


def test_an_interrupt_that_reaches_the_workers_does_not_end_them(folder, tmp_path):
    shards = find_shards([folder])
    signalled = []

    def signal_workers(_model):
        if not signalled:  # at step 0 there is none yet
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGINT)
                signalled.append(worker.pid)
        return {}

    train(shards, tmp_path / "signalled", workers=1, evaluate=signal_workers, evaluate_every=1)
    assert len(signalled) == 1
    train(shards, tmp_path / "alone")
    assert losses(tmp_path / "signalled") == losses(tmp_path / "alone")


# Damage


def break_frames(path, every):
    """Write zeros over each ``every``-th JPEG of a shard."""
    with tarfile.open(path) as tar:
        images = [member for member in tar if member.name.endswith(".jpg")][::every]
    with open(path, "r+b") as file:
        for image in images:
            file.seek(image.offset_data)
            file.write(bytes(image.size))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Watched:
    """A console, and what it had said at each step."""

    def __init__(self, damage=None):
        self.console = Console(file=io.StringIO(), width=1000)
        self.damage, self.at_step = damage, []

    def __call__(self, _model):
        self.at_step.append(self.console.file.getvalue())
        if len(self.at_step) == 2 and self.damage:  # after the first step
            self.damage()
        return {}

    def said_once(self, line):
        """Whether a line that matches is there once at the end, and was before the last step."""
        text = self.console.file.getvalue()
        return [len(re.findall(f"(?m)^{line}$", said)) for said in (self.at_step[-2], text)] == [1, 1]


@pytest.mark.parametrize(
    ("damage", "before", "reasons"),
    [
        (Path.unlink, False, [r"cannot be read to its end \(No such file or directory\)"]),
        (cut, True, [r"(is damaged|cannot be read).*", r".* of its \d+ frames are missing.*"]),
        (
            lambda path: break_frames(path, 5),
            True,
            [r"\S+: frame \d+ is not an image that can be decoded .*"],
        ),
    ],
    ids=["deleted", "truncated", "corrupt"],
)
def test_a_damaged_shard_is_told_once_and_training_goes_on(own_folder, tmp_path, damage, before, reasons):
    path = own_folder / "shard-000005.tar"
    if before:
        damage(path)
    watched = Watched(None if before else lambda: damage(path))
    train(
        find_shards([own_folder]), tmp_path / "out", steps=12, batch_size=8, console=watched.console,
        evaluate=watched, evaluate_every=1,
    )  # fmt: skip
    assert len(losses(tmp_path / "out")) == 12
    text = watched.console.file.getvalue()
    lines = re.findall(f"(?m)^passed over: {re.escape(str(path))}: .*$", text)
    assert len(lines) == len(set(lines)) >= len(reasons)
    for reason in reasons:
        assert any(re.fullmatch(f"passed over: \\S+: {reason}", line) for line in lines)
    assert all(watched.said_once(re.escape(line)) for line in lines)
    times = re.search(r"(?m)^1 files were passed over, (\d+) times in all$", text)
    assert int(times[1]) >= 2 * len(reasons)  # in each of three epochs


def test_a_video_that_ends_early_is_told_once_and_training_goes_on(clips_folder, tmp_path):
    path = write_video(tmp_path / "cut.avi", synthetic_clips([0])[0].read(range(44), 48))
    cut(path)
    clips, problems = find_clips([path, clips_folder])
    assert problems == []
    watched = Watched()
    train(clips, tmp_path / "out", batch_size=8, console=watched.console, evaluate=watched, evaluate_every=1)
    assert len(losses(tmp_path / "out")) == 8
    assert watched.said_once(f"passed over: {path}: ends before the 44 frames it states")
    times = re.search(r"(?m)^1 files were passed over, (\d+) times in all$", watched.console.file.getvalue())
    assert int(times[1]) > 1


# Several processes


def pretrain_and_die(shards, out, part):
    """A rank of two: a whole run and one that is killed, or what is left of the second."""
    model = preset("tiny", image_size=32, width=32, decoder_width=32, depth=1, decoder_depth=1)
    config = PretrainConfig(steps=10, batch_size=3, checkpoint_every=3, evaluate_every=5, device="cpu")

    def die(_):
        if (out / "killed" / "checkpoint.pt").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    run = partial(pretrain, config, model, find_shards([str(shards)]), console=Console(quiet=True))
    torch.distributed.init_process_group("gloo")
    if part == "begin":
        run(out / "whole")
        run(out / "killed", evaluate=die)
    else:
        run(out / "killed", resume=True)
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without")
def test_two_ranks_go_on_after_one_was_killed(folder, tmp_path):
    for part in ("begin", "resume"):
        with contextlib.ExitStack() as stack:
            ranks = start_ranks(2, pretrain_and_die, folder, tmp_path, part)
            ended = [stack.enter_context(rank).wait() for rank in ranks]
            codes = [rank.returncode for rank in ended]
            if part == "begin":  # one may see that the other is gone before it kills itself
                assert -signal.SIGKILL in codes
                assert 0 not in codes
            else:
                assert codes == [0, 0], [rank.stderr for rank in ended]
        if part == "begin":
            assert [step for step, *_ in losses(tmp_path / "killed")] == [1, 2, 3, 4, 5]
    assert [step for step, *_ in losses(tmp_path / "whole")] == list(range(1, 11))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    positions = checkpoint.load(tmp_path / "killed" / "checkpoint.pt")["positions"]
    assert positions.keys() == {0, 1}
    assert min(positions.values())[:2] > (0, 3)  # each rank had read several shards
