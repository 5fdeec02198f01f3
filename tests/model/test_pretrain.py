import itertools
import json
import os
import re
import signal
import time

import numpy as np
import pytest
import torch
from rich.console import Console

from micron_model import MicronBERT, preset
from micron_model.data import FrameError, Problem, find_clips, synthetic_clips
from micron_model.models import products
from micron_model.training import (
    CheckpointError,
    NonFiniteLossError,
    PretrainConfig,
    Stopped,
    checkpoint,
    pretrain,
)
from micron_model.training.config import learning_rate_at
from micron_model.training.distributed import Ranks
from micron_model.training.log import read_log
from micron_model.training.problems import report_problems
from micron_model.training.run import Run
from processes import Started
from writers import write_images

QUIET = Console(quiet=True)


def losses(folder):
    return [(e["step"], e["loss"], e["gradient_norm"]) for e in read_log(folder) if "loss" in e]


def test_a_run_writes_log_checkpoint_and_model(training, small_config, clips, tmp_path):
    evaluated = []

    def evaluate(model):
        evaluated.append(model)
        return {"measure": 1.0}

    config = training(evaluate_every=4)
    model = pretrain(config, small_config, clips, tmp_path, evaluate=evaluate, console=QUIET)
    log = read_log(tmp_path)
    assert [e["step"] for e in log if "loss" in e] == [1, 2, 3, 4, 5, 6]
    assert [e["step"] for e in log if "measure" in e] == [0, 4, 6]
    for entry in log:
        if "loss" in entry:
            assert entry.keys() >= {
                "loss_reconstruction",
                "loss_aggregation",
                "contextual_variance",
                "learning_rate",
            }
    assert checkpoint.load(tmp_path / "checkpoint.pt")["step"] == 6
    assert not model.training
    loaded = MicronBERT.from_pretrained(tmp_path / "model")
    for x, y in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(x, y)
    assert not list(tmp_path.glob(".*"))


def test_training_learns(small_config, clips, tmp_path):
    config = PretrainConfig(steps=40, batch_size=16, learning_rate=2e-3)
    pretrain(config, small_config, clips, tmp_path, console=QUIET)
    curve = [e["loss_reconstruction"] for e in read_log(tmp_path)]
    assert np.mean(curve[-5:]) < 0.5 * np.mean(curve[:5])


@pytest.mark.parametrize("aggregation", ["mse", "dino"])
def test_resuming_equals_never_stopping(training, small_config, clips, tmp_path, aggregation):
    small_config.aggregation = aggregation
    small_config.dino_hidden = 32
    config = training(accumulate=2)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    model = pretrain(config, small_config, clips, whole, console=QUIET)

    def stop(_model):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(Stopped, match="SIGTERM after step 4"):
        pretrain(training(accumulate=2, evaluate_every=4), small_config, clips, halved, evaluate=lambda m: (
            stop(m) if (halved / "checkpoint.pt").exists() else {}
        ), console=QUIET)  # fmt: skip
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resumed = pretrain(config, small_config, clips, halved, resume=True, console=QUIET)
    assert losses(halved) == losses(whole)
    for x, y in zip(resumed.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(x, y)


def test_a_killed_run_resumes_with_the_same_losses(tmp_path):
    training = {"steps": 40, "batch_size": 4, "checkpoint_every": 7}
    model = {"image_size": 32, "width": 32, "decoder_width": 32, "depth": 1, "decoder_depth": 1}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with Started(
        pretrain, PretrainConfig(**training), preset("tiny", **model), synthetic_clips([0]), killed
    ) as process:
        process.wait_until(lambda: (killed / "log.jsonl").exists() and len(losses(killed)) >= 20)
        process.kill()
        process.wait()
    assert len(losses(killed)) < 40
    with open(killed / "log.jsonl", "a") as log:
        log.write('{"step": 21, "lo')  # as a write cut short would leave it
    arguments = PretrainConfig(**training), preset("tiny", **model), synthetic_clips([0])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as the killed one had: sums have another order with more
    try:
        pretrain(*arguments, whole, console=QUIET)
        pretrain(*arguments, killed, resume=True, console=QUIET)
    finally:
        torch.set_num_threads(threads)
    assert losses(killed) == losses(whole)


def test_workers_change_nothing(training, small_config, clips, tmp_path):
    for name, count in (("none", 0), ("some", 1)):
        pretrain(training(workers=count), small_config, clips, tmp_path / name, console=QUIET)
    assert losses(tmp_path / "none") == losses(tmp_path / "some")


def test_accumulation_averages_the_gradients(training, small_config, clips, tmp_path):
    small_config.aggregation = "off"
    small_config.swap_ratio = 1.0  # so that masks do not depend on how the batch is split
    for name, size, parts in (("whole", 8, 1), ("parts", 4, 2)):
        config = training(steps=1, batch_size=size, accumulate=parts, flip=False)
        pretrain(config, small_config, clips, tmp_path / name, console=QUIET)
    (_, loss, norm), (_, loss_in_parts, norm_in_parts) = losses(tmp_path / "whole") + losses(
        tmp_path / "parts"
    )
    assert loss == pytest.approx(loss_in_parts, rel=1e-5)
    assert norm == pytest.approx(norm_in_parts, rel=1e-4)


def test_bf16_trains(training, small_config, clips, tmp_path):
    pretrain(training(precision="bf16"), small_config, clips, tmp_path, console=QUIET)
    assert all(np.isfinite(loss) for _, loss, _ in losses(tmp_path))


def test_tensorboard_events_are_written(training, small_config, clips, tmp_path):
    pytest.importorskip("tensorboard")
    pretrain(training(steps=2, tensorboard=True), small_config, clips, tmp_path, console=QUIET)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_the_learning_rate_rises_then_falls_to_zero():
    config = PretrainConfig(steps=100, warmup=0.1, learning_rate=1.0)
    rates = [learning_rate_at(step, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3


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


@pytest.fixture
def choices(monkeypatch):
    """What this process has chosen to multiply with, as a dictionary that a test may change."""
    monkeypatch.delenv("MICRON_PRODUCTS")
    monkeypatch.setattr(products, "_choices", {})
    return products._choices


def test_a_resumed_run_multiplies_as_before(training, small_config, clips, tmp_path, choices, capsys):
    def resume():
        pretrain(training(steps=2), small_config, clips, tmp_path, resume=True, console=Console(width=400))
        return capsys.readouterr().out

    products.use({"attention": "matrices", "linear": "torch"}, "the test")
    pretrain(training(steps=2), small_config, clips, tmp_path, console=QUIET)
    choices.clear()
    products.use({"attention": "flash"}, "the test")
    assert "products" not in resume()
    assert products.choices() == {"attention": "matrices", "linear": "torch"}
    content = checkpoint.load(tmp_path / "checkpoint.pt")
    content["products"]["processor"] = "another processor"
    checkpoint.save(tmp_path / "checkpoint.pt", content)
    choices.clear()
    assert "attention=matrices, linear=torch, kept from another processor, where this run was" in resume()
    assert products.chosen("attention") == "matrices"


def test_a_run_that_cannot_multiply_as_before_says_so(
    training, small_config, clips, tmp_path, choices, capsys, monkeypatch
):
    products.use({"attention": "matrices"}, "the test")
    pretrain(training(steps=2), small_config, clips, tmp_path, console=QUIET)
    monkeypatch.setenv("MICRON_PRODUCTS", "attention=flash")
    choices.clear()
    pretrain(training(steps=2), small_config, clips, tmp_path, resume=True, console=Console(width=400))
    assert (
        "attention=flash as MICRON_PRODUCTS says, not matrices: the losses will differ"
        in capsys.readouterr().out
    )
    assert products.chosen("attention") == "flash"


class OneOfTwo(Ranks):
    """A rank whose neighbour's part in what is gathered is known: that of rank 0 for rank 1."""

    def __init__(self, rank, chosen_by_first):
        super().__init__(rank, 2)
        object.__setattr__(self, "chosen_by_first", chosen_by_first)

    def gather(self, value):
        return [self.chosen_by_first if value == {} else value, value]


def test_ranks_multiply_as_the_first_of_them(training, small_config, clips, tmp_path, choices, monkeypatch):
    first = dict.fromkeys(products.PRODUCTS, "torch") | {"attention": "matrices"}
    products.use({"attention": "flash"}, "measured by rank 1")
    run = Run(training(), small_config, clips, tmp_path, OneOfTwo(1, first))
    run.agree_on_products()
    assert products.choices() == first
    monkeypatch.setenv("MICRON_PRODUCTS", "attention=flash")
    with pytest.raises(
        ValueError, match=r"cannot multiply alike \(rank 0: attention=flash as .* not matrices"
    ):
        run.agree_on_products()


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


def test_kept_checkpoints_stay(training, small_config, clips, tmp_path):
    pretrain(training(keep_every=4, checkpoint_every=3), small_config, clips, tmp_path, console=QUIET)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["checkpoint-4.pt", "checkpoint.pt"]
    assert checkpoint.load(tmp_path / "checkpoint-4.pt")["step"] == 4


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


def test_the_log_is_json_a_line(training, small_config, clips, tmp_path):
    pretrain(training(steps=2), small_config, clips, tmp_path, console=QUIET)
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        assert isinstance(json.loads(line)["step"], int)
