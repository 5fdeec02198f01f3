"""SLSTT as a recognizer: what it is given of a clip, and what it learns from it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from lookalikes import tiny_lookalike
from made_up import expression
from micron_model.data.clips.faces import square_about_nose
from micron_model.data.clips.flow import ImagesOfClip
from micron_model.data.clips.inputs import UnusableClip
from micron_model.data.databases import casme2
from micron_model.data.databases.given_faces import GivenFaces, read_landmarks
from micron_model.data.databases.prepared import FaceConfig, prepare
from micron_model.evaluation.task import Task, finetune
from micron_model.loading import load_recognizer
from micron_model.recognizers.base import Examples
from micron_model.recognizers.fitting import features_of, logits_of
from micron_model.recognizers.micron_bert import start_from
from micron_model.recognizers.slstt import RANDOM, SLSTTRecipe

CLASSES = ("up", "down")


def tiny(**settings):
    return SLSTTRecipe(preset="tiny", **settings)


@pytest.fixture(scope="module")
def clips():
    """Coded flow of two kinds: to the right in the upper half of the image, or down and left in the lower."""
    images = torch.zeros(8, 11, 3, 64, 64, dtype=torch.uint8)
    images[::2, 3:, 0, :32] = 200
    images[1::2, 3:, 1, 32:] = 200
    return images


def examples(values, embedded=False):
    return Examples(values, torch.tensor([0, 1] * 4), ["casme2/1"] * 8, embedded)


@pytest.mark.parametrize(
    ("onset", "apex", "offset", "frames"),
    [
        (10, 30, 60, (10, *range(25, 36))),
        (28, 30, 60, (28, *range(29, 40))),
        (10, 30, 31, (10, *range(25, 32))),
        (10, 12, 13, (10, 11, 12, 13)),
    ],
)
def test_eleven_frames_about_the_apex_and_the_onset_first(onset, apex, offset, frames):
    assert ImagesOfClip().frames(onset, apex, offset) == frames


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ((5, 5, 9), "the apex must come after the onset"),
        ((5, 9, 7), "the apex must come after the onset, by the offset"),
        ((5, 6, 6), "leave one frame; others are put between two or more"),
    ],
)
def test_a_clip_without_enough_frames_is_unusable_in_words(frames, message):
    with pytest.raises(UnusableClip, match=message):
        ImagesOfClip().frames(*frames)


def test_flow_is_computed_in_pixels_of_the_frame_and_then_resized():
    onset = np.random.default_rng(0).integers(0, 255, (3, 12, 12)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    moved = np.roll(onset, 2, 2)
    images = ImagesOfClip(side=32).encode(np.stack([onset, onset, moved]))
    assert (images.shape, images.dtype) == ((11, 3, 32, 32), np.uint8)
    assert (images[1:].max((1, 2, 3)) > 200).all()  # each is stretched to its own range, and then shrunk
    frames = ImagesOfClip(side=32, look="frames").encode(np.stack([onset, onset, moved]))
    assert np.abs(frames[0].astype(float).mean() - onset.mean()) < 2


def test_every_clip_of_a_look_alike_is_encoded_and_one_with_its_apex_at_the_onset_is_named(tmp_path):
    found = casme2.load(tiny_lookalike("casme2", tmp_path, quirks=False, side=24)).expressions[:3]
    found[1] = replace(found[1], apex=found[1].onset)
    prepared = prepare(found, ImagesOfClip(side=16), FaceConfig(detect=False), tmp_path / "cache")
    assert prepared.values.shape == (2, 11, 3, 16, 16)
    (problem,) = (p for p in prepared.problems if "left out" in p.reason)
    assert problem.path == f"casme2 {found[1].name}"
    assert "the apex must come after the onset, by the offset" in problem.reason


def upright(x=50.0, y=60.0):
    landmarks = np.full((68, 2), [x, y])
    landmarks[[8, 19, 57], 1] = [y + 40, y - 30, y + 20]
    return landmarks


def test_the_square_is_about_the_tip_of_the_nose():
    assert square_about_nose(upright()) == (50 - 45, 60 - 45, 90)
    with pytest.raises(ValueError, match="landmarks of an upright face give a positive side"):
        square_about_nose(upright()[::-1] * [1, -1])


def test_landmarks_are_found_by_the_number_of_the_subject(tmp_path):
    (tmp_path / "1").mkdir()
    np.save(tmp_path / "1" / "EP01_01.npy", upright().astype(np.int64))
    columns = ["clip", *(f"{axis}{i}" for i in range(1, 69) for axis in "xy")]
    row = ["sub01/EP01_01", *(f"{v:g}" for v in upright().ravel())]
    (tmp_path / "landmarks.csv").write_text(",".join(columns) + "\n" + ",".join(row) + "\n")
    for source in (tmp_path, tmp_path / "landmarks.csv"):
        faces = GivenFaces(None, source, 0.1)
        assert faces.of(expression(name="sub01/EP01_01")) == ((5, 15, 90), 0.0)
        assert faces.of(expression(subject="sub02", name="sub02/EP01_01")) is None


def test_landmarks_that_are_none_are_refused_and_nothing_is_unpickled(tmp_path):
    with pytest.raises(ValueError, match=r"holds no <subject>/<clip>\.npy"):
        read_landmarks(tmp_path)
    np.save(tmp_path / "a.npy", np.zeros((5, 2)))
    with pytest.raises(
        ValueError, match=r"holds float64 \(5, 2\); 68 landmarks are numbers of shape \(68, 2\)"
    ):
        read_landmarks(tmp_path)
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="holds nothing that numpy can read"):
        read_landmarks(tmp_path)
    (tmp_path / "b.csv").write_text("clip,x1\n")
    with pytest.raises(ValueError, match="lacks the columns y1, x2, y2, x3"):
        read_landmarks(tmp_path / "b.csv")


def test_a_nose_outside_the_frame_leaves_the_clip_out(tmp_path):
    (found, *_) = casme2.load(tiny_lookalike("casme2", tmp_path / "a", quirks=False, side=24)).expressions
    folder = tmp_path / "marks" / found.subject_text
    folder.mkdir(parents=True)
    np.save(folder / f"{found.name.split('/')[-1]}.npy", upright(x=500))
    with pytest.raises(ValueError, match=r"the centre of its face, \(500, 60\), is outside the frame"):
        prepare([found], ImagesOfClip(side=16), FaceConfig(landmarks=tmp_path / "marks"))


@pytest.mark.parametrize(
    ("aggregator", "freeze"), [("lstm", "encoder"), ("mean", "encoder"), ("mean", "none")]
)
@pytest.mark.filterwarnings("ignore:slstt. the frozen spatial encoder")
def test_it_learns_what_it_is_shown(clips, aggregator, freeze):
    hurry = (
        {"epochs": 40, "learning_rate": 1e-2}
        if freeze == "encoder"
        else {"epochs": 15, "learning_rate": 3e-4}
    )
    recipe = tiny(aggregator=aggregator, freeze=freeze, batch_size=8, optimizer="adamw", **hurry)
    recognizer = recipe.build(recipe.start(), CLASSES, seed=0)
    values = features_of(recognizer, clips) if recipe.embeds_once else clips
    recipe.fit(recognizer, examples(values, recipe.embeds_once), seed=0)
    assert logits_of(recognizer, clips).argmax(1).tolist() == [0, 1] * 4
    torch.testing.assert_close(
        logits_of(recognizer, features_of(recognizer, clips), embedded=True), logits_of(recognizer, clips)
    )


def test_features_take_the_precision_of_the_recipe():
    recipe = tiny(freeze="encoder", precision="bf16")
    with pytest.warns(UserWarning, match="random weights"):
        recognizer = recipe.build(recipe.start(), CLASSES, seed=0).eval()
    clips = torch.randint(0, 256, (2, 11, 3, 64, 64), dtype=torch.uint8)
    exact, rounded = (
        features_of(recognizer, clips, precision=p) for p in ("fp32", recipe.inference_precision)
    )
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() / exact.abs().max() < 0.1


def test_the_authors_rate_falls_to_a_tenth_after_three_quarters(clips, monkeypatch):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self))
    )
    recipe = tiny(epochs=4, batch_size=8)
    recipe.fit(recipe.build(recipe.start(), CLASSES, seed=0), examples(clips), seed=0)
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.001])


def test_random_weights_are_said_and_the_frozen_ones_are_the_same_for_all_seeds():
    recipe = tiny(freeze="encoder")
    with pytest.warns(UserWarning, match="the frozen spatial encoder has random weights"):
        start = recipe.start()
    assert start.about["spatial encoder"] == RANDOM
    encoders = [recipe.build(start, CLASSES, seed=seed).network.encoder for seed in (0, 1)]
    assert encoders[0] is encoders[1]
    trained = tiny()
    first, again, other = (
        trained.build(trained.start(), CLASSES, seed=seed).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["network.encoder.class_token"] + first["network.encoder.positions"],
                           other["network.encoder.class_token"] + other["network.encoder.positions"])  # fmt: skip


def test_the_encoder_of_a_micron_bert_takes_its_place(small, clips, tmp_path):
    model = small()
    recipe = tiny(micron_bert="elsewhere")
    assert recipe.embeds_once
    start = start_from(model, None, "elsewhere")
    side = recipe.clip_input(start).side
    assert side == model.config.image_size
    values = clips[:2, :, :, :side, :side]
    recognizer = recipe.build(start, CLASSES, seed=0).eval()
    expected = model.eval().encode(values.flatten(0, 1)).contextual
    torch.testing.assert_close(recognizer.embed(values).unflatten(1, (11, -1)).flatten(0, 1), expected)
    recognizer.save_pretrained(tmp_path)
    loaded = load_recognizer(str(tmp_path))
    assert torch.equal(loaded(values), recognizer(values))


def test_a_saved_one_is_loaded_by_its_name(clips, tmp_path):
    expressions = [expression(subject=f"sub0{i}", name=f"clip{i}") for i in range(1, 9)]
    recipe = tiny(epochs=1)
    clip_input = recipe.clip_input(recipe.start())
    task = Task(expressions, list(CLASSES) * 4, CLASSES, [], {clip_input.key: clips}, {"classes": "8 clips"})
    recognizer = finetune(task, recipe, seed=3)
    recognizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["recognizer"] == "slstt"
    loaded = load_recognizer(str(tmp_path))
    assert loaded.config.trained_on == "8 clips"
    assert torch.equal(logits_of(loaded, clips), logits_of(recognizer, clips))
    assert loaded.picture(clips, ["a"]) is not None


def test_two_spatial_encoders_are_refused():
    with pytest.raises(ValueError, match="are two spatial encoders; give one"):
        SLSTTRecipe(weights="a", micron_bert="b")
