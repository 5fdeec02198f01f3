import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from micron_model import MicronBERT, preset
from micron_model.cli import main
from micron_model.data import find_shards, synthetic_clips
from micron_model.recognizers.micron_bert import MicronBERTRecognizer
from micron_model.training import PretrainConfig
from writers import grey, write_images, write_small_shards, write_video

# No test, nor process that it starts, depends on what is faster on the machine of the day; test_products.py measures.
os.environ.setdefault(
    "MICRON_PRODUCTS", "linear=torch,linear_grad_input=torch,linear_grad_weight=torch,attention=flash"
)

#: Settings of a model that trains in a blink.
SMALL = {"image_size": 32, "width": 32, "decoder_width": 32, "depth": 2, "decoder_depth": 1, "local_crops": 2}


@pytest.fixture
def small():
    """A function that makes a small model from settings."""

    def make(**overrides):
        torch.manual_seed(0)
        return MicronBERT(preset("tiny", **(SMALL | {"dino_hidden": 32} | overrides)))

    return make


@pytest.fixture
def small_config():
    return preset("tiny", **SMALL, tied_start=True)


@pytest.fixture
def training():
    """A function that makes settings of a short training."""

    def make(**overrides):
        return PretrainConfig(
            **({"steps": 6, "batch_size": 4, "checkpoint_every": 2, "warmup": 0.2} | overrides)
        )

    return make


@pytest.fixture
def clips():
    return synthetic_clips(range(4))


@pytest.fixture
def pair():
    """Frames t and t+δ, (4, 3, 32, 32) uint8."""
    frames = np.stack([clip.read([clip.onset, clip.apex], 32) for clip in synthetic_clips(range(4))[::3]])
    return torch.from_numpy(frames[:, 0]), torch.from_numpy(frames[:, 1])


@pytest.fixture
def image_folder(tmp_path, clips):
    """A folder of 44 images, 48×48."""
    return write_images(tmp_path / "clip", clips[0].read(range(len(clips[0])), 48))


@pytest.fixture
def video(tmp_path, clips):
    """A video of 44 frames, 64×64, at 30 frames a second."""
    return write_video(tmp_path / "video.avi", clips[1].read(range(len(clips[1])), 64))


@pytest.fixture
def sources(tmp_path):
    """Folders of images (70 and 20 frames) and a video (80 frames), of subjects s1 and s2."""
    write_images(tmp_path / "in" / "s1" / "smile", grey(70))
    write_images(tmp_path / "in" / "s2" / "frown", grey(20))
    write_video(tmp_path / "in" / "s2" / "video.avi", grey(80))
    return [tmp_path / "in"]


@pytest.fixture
def shards(sources, tmp_path):
    """Six shards of a run each."""
    write_small_shards(sources, tmp_path / "out", seconds=1.0, frames_per_shard=8)
    return find_shards([tmp_path / "out"])


@pytest.fixture
def documented():
    """A function that fails for a key, of a document or of what it holds, that the page does not name."""
    page = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text()

    def check(command, *documents):
        (row,) = re.findall(rf"^\| `{command}` \| (.*`.*) \|$", page.split("## Answers")[1], re.MULTILINE)
        named = set(re.findall(r"`(\w+)`", row))
        assert {key for document in documents for key in document} <= named

    return check


@pytest.fixture
def refused(capsys):
    """A function that runs a command that must fail, and gives what it printed, as one line."""

    def run(arguments):
        try:
            status = main(arguments)
        except SystemExit as ended:  # settings are checked while the command line is parsed
            status = ended.code
        assert status in (1, 2)
        captured = capsys.readouterr()
        printed = re.sub(r"[\s│]+", " ", captured.err + captured.out)
        assert "Traceback" not in printed
        return printed

    return run


@pytest.fixture(scope="module")
def recognizer():
    """An untrained μ-BERT of two classes."""
    torch.manual_seed(0)
    model = MicronBERT(preset("tiny", tied_start=True))
    return MicronBERTRecognizer.from_pretrained_backbone(
        model, ("happiness", "surprise"), trained_on="warps"
    ).eval()
