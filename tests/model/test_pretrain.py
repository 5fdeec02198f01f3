import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from rich.console import Console

from micron_kernels.info import OPERATORS
from micron_kernels.testing import assert_within_rounding
from micron_model import MicronBERT
from micron_model.data import FrameError, FramePairs, Problem, find_clips
from micron_model.data.pairs import collate
from micron_model.evaluation import auroc, swap_auroc
from micron_model.training import (
    CheckpointError,
    NonFiniteLossError,
    PretrainConfig,
    Stopped,
    checkpoint,
    pretrain,
)
from micron_model.training.log import read_log
from micron_model.training.pretrain import learning_rate_at, report_problems
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


def test_a_killed_run_resumes_with_the_same_losses(training, small_config, clips, tmp_path):
    arguments = [
        *("pretrain", "--preset", "tiny", "--model.image-size", "32", "--model.width", "32"),
        *("--model.decoder-width", "32", "--model.depth", "1", "--model.decoder-depth", "1"),
        *("--training.steps", "40", "--training.batch-size", "4", "--training.checkpoint-every", "7"),
    ]
    command = [sys.executable, "-m", "micron_model.cli", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, "--out", whole], check=True, env=environment, capture_output=True)
    process = subprocess.Popen([*command, "--out", killed], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (killed / "log.jsonl").exists() or len(losses(killed)) < 20:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert len(losses(killed)) < 40
    with open(killed / "log.jsonl", "a") as log:
        log.write('{"step": 21, "lo')  # as a write cut short would leave it
    subprocess.run([*command, "--out", killed, "--resume"], check=True, env=environment, capture_output=True)
    assert losses(killed) == losses(whole)


@pytest.mark.parametrize("roles", ["paper", "code"])
def test_native_operators_give_the_curve_of_the_reference(small, clips, roles, monkeypatch):
    """Held to the rule of the operators: its distance from fp64 may be twice that of the reference in fp32."""
    implementations = [ops.IMPLEMENTATIONS for ops in OPERATORS.values()]
    if not all("native" in available for available in implementations):
        pytest.skip("the extension was not built")

    def curve(dtype, seed, native):
        with monkeypatch.context() as patch:
            for available in implementations:
                if not native:
                    patch.delitem(available, "native")
            model = small(roles=roles, tied_start=True).to(dtype)
            optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
            frames = FramePairs(clips, 32, seed)
            losses = []
            for step in range(20):
                batch = collate([frames[4 * step + i] for i in range(4)])
                pair = {name: model.normalize(batch[name]).to(dtype) for name in ("frames", "later")}
                loss = model(pair, torch.Generator().manual_seed(step))["loss"]
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        return torch.tensor(losses, dtype=torch.float64)

    seeds = range(4)
    oracle = torch.cat([curve(torch.float64, seed, native=False) for seed in seeds])
    reference, native = (
        torch.cat([curve(torch.float32, seed, native=use) for seed in seeds]) for use in (False, True)
    )
    assert oracle[15:20].mean() < 0.7 * oracle[:5].mean()
    assert_within_rounding("loss", native.float(), oracle, plain_error=reference - oracle)


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


def test_a_nan_loss_stops_and_names_step_and_pairs(training, small_config, tmp_path, monkeypatch):
    forward = MicronBERT.forward

    def poisoned(model, batch, generator=None):
        result = forward(model, batch, generator)
        return result | {"loss": result["loss"] * (torch.nan if poisoned.calls == 3 else 1)}

    def counted(model, batch, generator=None):
        poisoned.calls += 1
        return poisoned(model, batch, generator)

    poisoned.calls = -1
    monkeypatch.setattr(MicronBERT, "forward", counted)
    with pytest.raises(
        NonFiniteLossError, match="the loss is nan at step 3, batch 0 of 1; its pairs: poisoned frames"
    ):
        pretrain(training(), small_config, [PoisonedClip()], tmp_path, console=QUIET)
    assert checkpoint.load(tmp_path / "checkpoint.pt")["step"] == 2
    assert all(np.isfinite(loss) for _, loss, _ in losses(tmp_path))


def test_another_run_is_not_overwritten(training, small_config, clips, tmp_path):
    pretrain(training(steps=2), small_config, clips, tmp_path, console=QUIET)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(CheckpointError, match="exists: resume continues that run"):
        pretrain(training(steps=2), small_config, clips, tmp_path, console=QUIET)
    for changed, message in (
        ((training(steps=3), small_config, clips), "steps was 2, is 3"),
        (
            (training(steps=2), type(small_config)(**small_config.__dict__ | {"poi": "hard"}), clips),
            "poi was 'soft'",
        ),
        ((training(steps=2), small_config, clips[:2]), "data was 12 clips"),
    ):
        with pytest.raises(CheckpointError, match=message):
            pretrain(*changed, tmp_path, resume=True, console=QUIET)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_corrupt_checkpoint_is_named(training, small_config, clips, tmp_path, content):
    pretrain(training(steps=2), small_config, clips, tmp_path, console=QUIET)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-500] if content is None else content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: refused, and nothing in it was executed"):
        pretrain(training(steps=2), small_config, clips, tmp_path, resume=True, console=QUIET)


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"step": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*what was there before is intact"):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_bad_frame_is_reported_and_training_goes_on(training, small_config, tmp_path, clips, capsys):
    folder = write_images(tmp_path / "clip", clips[0].read(range(44), 32))
    (folder / "img9.png").write_bytes(b"broken")
    found, _ = find_clips([folder])
    console = Console(width=300)
    pretrain(training(batch_size=16), small_config, found, tmp_path / "out", console=console)
    assert "1 files were passed over" in capsys.readouterr().out
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


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"steps": 0}, "steps=0; it must be at least 1"), ({"warmup": 2.0}, "warmup=2.0; it is a share")],
)
def test_bad_settings_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**setting)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named(training, small_config, clips, tmp_path):
    with pytest.raises(RuntimeError, match="device='cuda', but torch sees no GPU"):
        pretrain(training(device="cuda"), small_config, clips, tmp_path, console=QUIET)


def test_auroc_counts_pairs():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 5, 60), rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc(scores, np.ones(60)))


def test_swap_auroc_tells_an_oracle_from_chance(small, pair):
    frames, later = pair
    moved = torch.rand(4, 16)
    model = small()

    class Oracle(MicronBERT):
        """Micro-attention that compares the pixels themselves."""

        def encode(self, x):
            patches = self.patchify(self.normalize(x))
            return super().encode(x)._replace(patches=patches)

        def forward_micro_attention(self, swapped, later, scores=None):
            return None, torch.exp(-(swapped - later).square().mean(2))

    def blind(swapped, later, scores=None):
        return None, torch.rand(4, 16)

    oracle = Oracle(model.config)
    assert swap_auroc(oracle, frames, later, moved)["auroc_all"] > 0.99
    model.forward_micro_attention = blind
    assert abs(swap_auroc(model, frames, later, moved)["auroc_all"] - 0.5) < 0.1


def test_the_log_is_json_a_line(training, small_config, clips, tmp_path):
    pretrain(training(steps=2), small_config, clips, tmp_path, console=QUIET)
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        assert isinstance(json.loads(line)["step"], int)
