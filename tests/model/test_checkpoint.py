"""A checkpoint is there whole or not at all, whatever happens while it is written."""

import os
import resource
import time

import numpy as np
import pytest
import torch

from micron_model.training import CheckpointError, checkpoint
from processes import Started


def write_for_ever(path):
    for step in range(10**6):
        checkpoint.save(path, {"step": step, "x": torch.full((1 << 20,), float(step))})
        print(step, flush=True)


def write_more_than_may_be(path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    checkpoint.save(path, {"step": 2, "x": torch.zeros(1 << 20)})


def test_kill_9_at_any_moment_of_a_write_leaves_a_whole_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    rng = np.random.default_rng(0)
    in_the_middle = 0
    for _ in range(8):
        path.unlink(missing_ok=True)
        with Started(write_for_ever, path) as process:
            process.wait_until(lambda process=process: bool(process.stdout))
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
            written = [int(line) for line in process.wait().stdout.split()]
        content = checkpoint.load(path)
        assert content["step"] >= max(written, default=0)
        assert (content["x"] == content["step"]).all()
        in_the_middle += bool(list(tmp_path.glob(".checkpoint*.part")))
    assert in_the_middle > 0, "no kill met a write: nothing was tested"
    checkpoint.remove_partial(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"step": 1, "x": torch.ones(1 << 10)})
    with Started(write_more_than_may_be, path) as process:
        said = process.wait().stderr
    assert "CheckpointError" in said
    assert "checkpoint.pt: could not be written" in said
    assert "what was there before is intact" in said
    assert checkpoint.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_no_space_left_is_named(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"step": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*what was there before is intact"):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
