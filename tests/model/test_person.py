"""A saved recognizer adapted to the person of a video."""

import json

import pytest
import torch
from rich.console import Console

from micron_model import MicronBERT
from micron_model.cli import main
from micron_model.data import synthetic_clips
from micron_model.data.databases.prepared import FaceConfig
from micron_model.evaluation.person import adapt_to_person
from micron_model.recognizers.micron_bert import MicronBERTRecognizer
from writers import write_images

QUIET = Console(quiet=True)
FACE = FaceConfig(detect=False)


@pytest.fixture
def recognizer(small_config):
    torch.manual_seed(0)
    made = MicronBERTRecognizer.from_pretrained_backbone(
        MicronBERT(small_config).eval(), ("happiness", "surprise")
    )
    made.config.recognizer, made.config.inner_rates = "lightman", (0.05, 0.05)
    return made.eval()


@pytest.fixture
def listed(tmp_path):
    """A function that lists two clips of a person under emotions."""
    for i, clip in enumerate(synthetic_clips([1])[:2]):
        write_images(tmp_path / f"clip{i}", clip.read(range(clip.onset, clip.offset, 4), 64))

    def write(*emotions, subjects=()):
        rows = [f"clip{i},{e}" + (f",{subjects[i]}" if subjects else "") for i, e in enumerate(emotions)]
        path = tmp_path / "clips.csv"
        path.write_text("\n".join(["clip,emotion" + (",subject" if subjects else ""), *rows]) + "\n")
        return path

    return write


def test_steps_on_the_clips_raise_the_likelihood_of_their_labels_and_leave_the_saved_one(recognizer, listed):
    path = listed("Happy", "surprise")
    before = {name: value.clone() for name, value in recognizer.state_dict().items()}
    few = {}

    def loss(model):
        from micron_model.data.databases.macro import load_of_person
        from micron_model.data.databases.prepared import prepare

        few.setdefault("values", prepare(load_of_person(path).expressions, model.clip_input, FACE).values)
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(model(few["values"]), torch.tensor([0, 1])).item()

    adapted = adapt_to_person(recognizer, path, steps=5, face=FACE, console=QUIET)
    assert loss(adapted) < loss(recognizer)
    assert all(torch.equal(value, before[name]) for name, value in recognizer.state_dict().items())
    assert (
        "adapted to a person by 5 steps on 2 labelled clips (happiness 1, surprise 1)"
        in adapted.config.trained_on
    )
    assert "adapted" not in recognizer.config.trained_on


def test_clips_that_cannot_adapt_are_refused_in_words(recognizer, listed, tmp_path):
    def adapt(path, **settings):
        adapt_to_person(recognizer, path, **{"steps": 1, "face": FACE, "console": QUIET} | settings)

    with pytest.raises(
        ValueError, match=r"'anger' is no class of the recognizer, which knows happiness, surprise"
    ):
        adapt(listed("anger"))
    with pytest.raises(ValueError, match="lists clips of 2 people"):
        adapt(listed("happiness", "surprise", subjects=("anna", "bob")))
    (tmp_path / "none.csv").write_text("clip,emotion\n")
    with pytest.raises(
        ValueError, match=r"none of 0 clips can be used\. Each needs an emotion, in the column"
    ):
        adapt(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="adapt_steps=0; at least 1"):
        adapt(listed("happiness"), steps=0)
    (tmp_path / "wrong.csv").write_text("clip,label\nclip0,happiness\n")
    with pytest.raises(ValueError, match=r"no column 'emotion'; its columns are clip, label"):
        adapt(tmp_path / "wrong.csv")
    with pytest.raises(ValueError, match="is a folder; clips of a person are listed in a csv"):
        adapt(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone"):
        adapt(tmp_path / "gone.csv")


def test_predict_says_that_it_was_adapted(recognizer, listed, tmp_path, capsys):
    recognizer.save_pretrained(tmp_path / "saved")
    video = write_images(tmp_path / "video", synthetic_clips([1])[0].read(range(44), 160))
    out = tmp_path / "out"
    command = ["predict", str(video), "--model", str(tmp_path / "saved"), "--out", str(out), "--fps", "60"]
    assert main([*command, "--adapt", str(listed("happiness", "surprise")), "--adapt-steps", "2"]) == 0
    assert (
        "adapted to a person by 2 steps on 2 labelled clips"
        in json.loads((out / "candidates.json").read_text())["note"]
    )
    assert "adapted to a person by 2 steps" in capsys.readouterr().err
