import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from micron_model import preset
from micron_model.data import find_clips
from micron_model.data.clips.faces import find_face
from micron_model.data.clips.in_memory import InMemoryClip
from micron_model.models.config import MOVEMENT
from micron_model.training import PretrainConfig, pretrain
from micron_model.training.log import read_log

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def real():
    """The files of tools/real_clips.py by their names."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import real_clips
    finally:
        sys.path.pop(0)
    try:
        return real_clips.fetch(ROOT / real_clips.OUT)
    except real_clips.Unreachable as error:
        pytest.skip(f"real clips: {error}")


def frames_of(path, every=1):
    """Frames (H, W, 3), RGB, of a video, the first of ``every``."""
    video, frames = cv2.VideoCapture(str(path)), []
    while video.grab():
        frames.append(video.retrieve()[1] if not len(frames) % every else None)
    video.release()
    return [np.ascontiguousarray(frame[:, :, ::-1]) for frame in frames[::every]]


@pytest.fixture(scope="session")
def few(real):
    """Some frames of a video by its name: the first of ``every``."""
    return lambda name, every: frames_of(real[name], every)


@pytest.fixture(scope="session")
def smile(real):
    """72 frames at 30 a second: a neutral face, which the camera shakes, smiles from frame 16 on."""
    return frames_of(real["smile.mp4"])


@pytest.fixture(scope="session")
def box(smile):
    return find_face(smile[0])


@pytest.fixture(scope="session")
def trained(real, tmp_path_factory):
    """A model trained on movement on the other clips, its losses, and its folder."""
    out = tmp_path_factory.mktemp("real")
    videos, problems = find_clips([real["talk.mp4"], real["actress.mp4"]])
    assert not problems
    clips = [InMemoryClip(video, 64, every=12) for video in videos]
    config = PretrainConfig(steps=30, batch_size=8, learning_rate=1e-3, warmup=0.1, delta=(1, 1))
    model = pretrain(config, preset("tiny", **MOVEMENT), clips, out, console=Console(quiet=True))
    return model, [entry["loss"] for entry in read_log(out)], out / "model"
