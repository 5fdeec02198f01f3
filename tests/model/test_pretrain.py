import json
import os
import signal

import numpy as np
import pytest
import torch
from rich.console import Console

from micron_model import MicronBERT, preset
from micron_model.data import synthetic_clips
from micron_model.training import (
    PretrainConfig,
    Stopped,
    checkpoint,
    pretrain,
)
from micron_model.training.config import learning_rate_at
from micron_model.training.log import read_log
from processes import Started

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


def test_kept_checkpoints_stay(training, small_config, clips, tmp_path):
    pretrain(training(keep_every=4, checkpoint_every=3), small_config, clips, tmp_path, console=QUIET)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["checkpoint-4.pt", "checkpoint.pt"]
    assert checkpoint.load(tmp_path / "checkpoint-4.pt")["step"] == 4


def test_the_log_is_json_a_line(training, small_config, clips, tmp_path):
    pretrain(training(steps=2), small_config, clips, tmp_path, console=QUIET)
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        assert isinstance(json.loads(line)["step"], int)
