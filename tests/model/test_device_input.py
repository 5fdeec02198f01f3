"""Pairs chosen and weighted by their motion."""

import numpy as np
import pytest
import torch
from rich.console import Console

from micron_model.data.clips.motion import pair_motion
from micron_model.training import pretrain
from micron_model.training.config import motion_limits_at
from micron_model.training.device_input import choose_pairs
from micron_model.training.log import read_log

QUIET = Console(quiet=True)


class Steps:
    """Pairs whose motion is known: frame i + 1 is brighter than frame i by ``step`` grey levels."""

    fps = 30.0

    def __init__(self, step):
        self.step, self.name = step, f"by {step}"

    def __len__(self):
        return 2

    def read(self, indices, size):
        return np.stack([np.full((3, size, size), i * self.step, np.uint8) for i in indices])


def test_motion_is_the_difference_of_the_patches_that_differ_most():
    frames = torch.full((2, 3, 32, 32), 100, dtype=torch.uint8)
    later = frames.clone()
    later[0, :, :16, :16] = 120  # 4 of 16 patches
    later[1, :, :8, :16] = 120  # 2 of 16
    torch.testing.assert_close(pair_motion(frames, later, 8), torch.tensor([20.0, 10.0]), atol=1e-4, rtol=0)


def test_rejected_pairs_make_room_for_others_and_count_for_nothing():
    frames = torch.zeros(5, 3, 32, 32, dtype=torch.uint8)
    later = frames + torch.tensor([1, 30, 2, 40, 200], dtype=torch.uint8)[:, None, None, None]
    chosen = choose_pairs({"frames": frames, "later": later}, 3, (20, 100), 8)
    assert chosen["later"][:, 0, 0, 0].tolist() == [1, 30, 40]
    assert chosen["weight"].tolist() == [0, 1.5, 1.5]
    none = choose_pairs({"frames": frames, "later": later}, 3, (50, 100), 8)
    assert none["weight"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("aggregation", ["mse", "dino"])
@pytest.mark.parametrize("weighting", ["uniform", "motion"])
def test_a_pair_of_weight_0_leaves_the_losses_alone(small, pair, aggregation, weighting):
    model = small(aggregation=aggregation, reconstruction_weight=weighting)
    frames, later = pair

    def losses(later, weight):
        batch = {"frames": frames, "later": later, "weight": weight}
        result = model(batch, torch.Generator().manual_seed(0))
        return torch.stack([result["loss_reconstruction"], result["loss_aggregation"]])

    other = torch.cat([later[:3], later[:1].flip(-1)])
    weight = torch.tensor([4 / 3, 4 / 3, 4 / 3, 0])
    torch.testing.assert_close(losses(later, weight), losses(other, weight))
    assert (losses(later, torch.ones(4)) != losses(other, torch.ones(4))).all()


def test_motion_limits_choose_what_is_trained_on(training, small_config, tmp_path):
    clips = [Steps(1), Steps(30)]
    config = training(steps=4, motion=(10, 255), motion_end=(0, 255), candidates=4.0)
    pretrain(config, small_config, clips, tmp_path / "first", console=QUIET)
    accepted = [e["accepted"] for e in read_log(tmp_path / "first")]
    assert accepted == [1, 1, 1, 1]
    config = training(steps=4, motion=(50, 255))
    pretrain(config, small_config, clips, tmp_path / "none", console=QUIET)
    log = read_log(tmp_path / "none")
    assert [e["accepted"] for e in log] == [0] * 4
    assert [e["loss"] for e in log] == [0] * 4
    assert motion_limits_at(0, training(steps=4, motion=(10, 255), motion_end=(0, 100))) == (10, 255)
    assert motion_limits_at(3, training(steps=4, motion=(10, 255), motion_end=(0, 100))) == (0, 100)
