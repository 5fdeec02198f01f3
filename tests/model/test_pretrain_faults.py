"""What pre-training says of settings, frames, checkpoints and losses that are not as they should be."""

import itertools
import re
import time

import numpy as np
import pytest
import torch
from rich.console import Console

from micron_model import MicronBERT
from micron_model.data import FrameError, Problem, find_clips
from micron_model.training import (
    CheckpointError,
    NonFiniteLossError,
    PretrainConfig,
    checkpoint,
    pretrain,
)
from micron_model.training.log import read_log
from micron_model.training.problems import report_problems
from writers import write_images

QUIET = Console(quiet=True)


class PoisonedClip:
    """A clip whose frames are fine; its name is what an error must name."""

    name, fps = "poisoned", 30.0

    def __len__(self):
        return 20

    def read(self, indices, size):
        return np.zeros((len(indices), 3, size, size), np.uint8)


def poison(monkeypatch, *steps, gradient=False):
    """Make the loss, or its gradient alone, NaN in some steps."""
    forward = MicronBERT.forward
    calls = itertools.count()

    def poisoned(model, batch, generator=None):
        result = forward(model, batch, generator)
        if next(calls) in steps:
            if gradient:
                result["loss"].register_hook(lambda grad: grad * torch.nan)
            else:
                result["loss"] = result["loss"] * torch.nan
        return result

    monkeypatch.setattr(MicronBERT, "forward", poisoned)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("aggregation", ["mse", "dino"])
def test_a_step_that_is_not_finite_is_skipped_and_logged(
    training, small_config, tmp_path, monkeypatch, gradient, aggregation, capsys
):
    small_config.aggregation, small_config.dino_hidden = aggregation, 32
    poison(monkeypatch, 3, gradient=gradient)
    states = []

    def evaluate(model):
        states.append({name: x.clone() for name, x in model.state_dict().items()})
        return {}

    pretrain(
        training(evaluate_every=1), small_config, [PoisonedClip()], tmp_path, evaluate=evaluate,
        console=Console(width=300),
    )  # fmt: skip
    log = [e for e in read_log(tmp_path) if "seconds" in e]
    assert [e["step"] for e in log if "skipped" in e] == [4]
    assert "nan, at step 4" in log[3]["skipped"]
    assert len(log[3]["sources"]) == 4
    assert all(np.isfinite(e["loss"]) for e in log if "skipped" not in e)
    changed = [any(not torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))
               for a, b in itertools.pairwise(states)]  # fmt: skip
    assert changed == [True, True, True, False, True, True]
    assert all(x.isfinite().all() for x in states[-1].values())
    assert "at step 4: skipped. Pairs of rank 0: poisoned frames" in capsys.readouterr().out


def test_too_many_skipped_steps_in_a_row_end_the_run(training, small_config, tmp_path, monkeypatch):
    poison(monkeypatch, 0, 1, 3, 4, 5)
    with pytest.raises(
        NonFiniteLossError,
        match=r"nan, at step 6, the last of 3 in a row \(max_skipped=2\); pairs of rank 0: poisoned frames",
    ):
        pretrain(training(max_skipped=2), small_config, [PoisonedClip()], tmp_path, console=QUIET)
    assert checkpoint.load(tmp_path / "checkpoint.pt")["step"] == 4


def test_another_run_is_not_overwritten(training, small_config, clips, tmp_path):
    pretrain(training(steps=2), small_config, clips, tmp_path, console=QUIET)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(CheckpointError, match="exists: resume continues that run"):
        pretrain(training(steps=2), small_config, clips, tmp_path, console=QUIET)
    for changed, message in (
        ((training(steps=1), small_config, clips), "steps was 2, is 1"),
        (
            (training(steps=2), type(small_config)(**small_config.__dict__ | {"poi": "hard"}), clips),
            "poi was 'soft'",
        ),
        ((training(steps=2), small_config, clips[:2]), "data was 12 clips"),
    ):
        with pytest.raises(CheckpointError, match=message):
            pretrain(*changed, tmp_path, resume=True, console=QUIET)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"garbage", "refused, and nothing in it was executed"),
        (None, "refused, and nothing in it was executed"),
    ],
)
def test_a_corrupt_checkpoint_is_named(training, small_config, clips, tmp_path, content, message):
    pretrain(training(steps=2), small_config, clips, tmp_path, console=QUIET)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-500] if content is None else content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: " + message):
        pretrain(training(steps=2), small_config, clips, tmp_path, resume=True, console=QUIET)


def test_a_bad_frame_is_reported_and_training_goes_on(training, small_config, tmp_path, clips, capsys):
    folder = write_images(tmp_path / "clip", clips[0].read(range(44), 32))
    (folder / "img9.png").write_bytes(b"broken")
    found, _ = find_clips([folder])
    console = Console(width=300)
    pretrain(training(batch_size=16), small_config, found, tmp_path / "out", console=console)
    printed = capsys.readouterr().out
    assert "1 files were passed over, " in printed
    assert printed.count("img9.png: is not an image that can be decoded (6 bytes)") == 1
    for path in folder.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(FrameError, match="16 pairs in a row could not be read"):
        pretrain(training(), small_config, found, tmp_path / "out2", console=QUIET)


def test_problems_are_listed_once(capsys):
    report_problems(
        [Problem("a", "broken")] * 3 + [Problem(str(i), "x") for i in range(30)], Console(width=200)
    )
    printed = capsys.readouterr().out
    assert "31 files were passed over" in printed
    assert printed.count("a: broken") == 1
    assert "and 11 more" in printed
    report_problems([Problem("a", "no face was found")], Console(width=200), "clips are used all the same")
    assert capsys.readouterr().out == "1 clips are used all the same:\n  a: no face was found\n"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "steps=0; it must be at least 1"),
        ({"workers": -1}, "workers=-1; it must be at least 0"),
        ({"warmup": 2.0}, "warmup=2.0; it is a share"),
        ({"motion": (20, 10)}, "motion=(20, 10); it must be two grey levels in [0, 255], low to high"),
        ({"motion_end": (0, 256)}, "motion_end=(0, 256); it must be"),
        ({"candidates": 0.5}, "candidates=0.5; at least 1 pair is read"),
    ],
)
def test_bad_settings_are_named(setting, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PretrainConfig(**setting)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named(training, small_config, clips, tmp_path):
    with pytest.raises(RuntimeError, match="device='cuda', but torch sees no GPU"):
        pretrain(training(device="cuda"), small_config, clips, tmp_path, console=QUIET)


def test_time_spent_waiting_for_frames_is_logged_and_told(training, small_config, tmp_path, capsys):
    class Slow(PoisonedClip):
        def read(self, indices, size):
            time.sleep(0.05)
            return super().read(indices, size)

    pretrain(training(), small_config, [Slow()], tmp_path, console=Console(width=200))
    waited = [e["seconds_waiting"] for e in read_log(tmp_path)]
    assert len(waited) == 6
    assert min(waited) >= 4 * 0.05
    assert re.search(r"waited for frames \d+% of the time: more --training.workers", capsys.readouterr().out)


def test_collapse_is_told_once(training, small_config, tmp_path, capsys):
    small_config.aggregation = "off"
    pretrain(training(steps=25, checkpoint_every=100), small_config, [PoisonedClip()], tmp_path,
             console=Console(width=300))  # fmt: skip
    assert capsys.readouterr().out.count("the contextual token has collapsed") == 1  # all frames are black
