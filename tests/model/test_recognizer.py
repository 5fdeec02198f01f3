"""μ-BERT as a recognizer, and its fine-tuning."""

import json

import pytest
import torch

from made_up import expression
from micron_model import preset
from micron_model.data.databases.corpus import Corpus
from micron_model.evaluation.task import Task, finetune
from micron_model.loading import load_recognizer
from micron_model.recognizers.base import Examples
from micron_model.recognizers.fitting import class_weights, features_of, logits_of
from micron_model.recognizers.flow import FlowRecipe
from micron_model.recognizers.micron_bert import (
    MicronBERTRecipe,
    MicronBERTRecognizer,
    MicronBERTRecognizerConfig,
    augment,
    start_from,
)

CLASSES = ("happiness", "surprise", "disgust")


@pytest.fixture
def recognizer(small):
    torch.manual_seed(0)
    return MicronBERTRecognizer.from_pretrained_backbone(small(tied_start=True), CLASSES, regions=2)


def examples(values, labels, *, embedded=False):
    return Examples(values, labels, ["casme2/1"] * len(labels), embedded)


@pytest.fixture
def pairs(pair):
    return torch.stack(pair, 1)


def test_it_starts_from_the_pretrained_weights(small):
    model = small(tied_start=True)
    state = MicronBERTRecognizer.from_pretrained_backbone(model, CLASSES, regions=2).backbone.state_dict()
    assert {name.split(".")[0] for name in state} == {"encoder", "micro_attention"}
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in state.items())


@pytest.mark.parametrize("poi", ["soft", "hard", "off"])
def test_features_of_no_change_are_zero(small, pair, poi):
    model = MicronBERTRecognizer.from_pretrained_backbone(small(poi=poi), CLASSES, regions=2).eval()
    onset, apex = pair
    assert model.embed(torch.stack([onset, onset], 1)).abs().max() < 1e-6
    assert model.embed(torch.stack([onset, apex], 1)).abs().max() > 1e-4
    assert model.embed(torch.stack([onset, apex], 1)).shape == (4, 2 * 2 * 32)


def test_features_are_the_mean_of_each_region(small, pair):
    model = MicronBERTRecognizer.from_pretrained_backbone(small(), CLASSES, regions=2, from_rest=False).eval()
    onset, apex = pair
    whole = model.backbone.extract_features(onset, apex)  # a grid of 4 × 4 patches
    grid = whole.transpose(1, 2).unflatten(2, (4, 4))
    features = model.embed(torch.stack([onset, apex], 1)).unflatten(1, (32, 2, 2))
    torch.testing.assert_close(features[:, :, 0, 1], grid[:, :, :2, 2:].mean((2, 3)))


@pytest.mark.parametrize("regions", [2, 4])
def test_the_map_is_a_feature_too(small, pair, regions):
    settings = {"features": "map", "regions": regions}
    model = MicronBERTRecognizer.from_pretrained_backbone(small(), CLASSES, **settings).eval()
    onset, apex = pair
    change = model.backbone.movement_map(*model.backbone.encode_pair(onset, apex)).unflatten(1, (4, 4))
    pooled = change.unflatten(1, (regions, -1)).unflatten(3, (regions, -1)).mean((2, 4))
    features = model.embed(torch.stack([onset, apex], 1))
    torch.testing.assert_close(features, pooled.flatten(1))
    assert model.classify(features).shape == (4, len(CLASSES))


def test_it_is_saved_with_its_kind_and_its_classes_and_loaded_by_them(recognizer, pair, tmp_path):
    recognizer.config.trained_on = "something"
    recognizer.save_pretrained(tmp_path)
    loaded = load_recognizer(str(tmp_path))
    assert (loaded.classes, loaded.config.trained_on) == (CLASSES, "something")
    described = json.loads((tmp_path / "config.json").read_text())
    assert (described["recognizer"], described["classes"]) == ("micron-bert", list(CLASSES))
    with torch.no_grad():
        values = torch.stack(pair, 1)
        assert torch.equal(loaded(values), recognizer.eval()(values))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ("a",)}, r"classes=\('a',\); at least 2 different names"),
        ({"classes": ("a", "a")}, "at least 2 different names"),
        ({"classes": CLASSES, "regions": 9}, r"regions=9; it must lie in \[1, 8\]"),
        ({"classes": CLASSES, "features": "flow"}, "features='flow'; it must be one of latent, map"),
    ],
)
def test_bad_settings_of_a_recognizer_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        MicronBERTRecognizerConfig(**settings, model=preset("tiny"))


# Fine-tuning


def test_rates_decay_from_layer_to_layer(recognizer):
    config = MicronBERTRecipe(learning_rate=1.0, layer_decay=0.5, weight_decay=0.1)
    rate, decay = {}, {}
    names = {id(p): name for name, p in recognizer.named_parameters()}
    for group in config.groups(recognizer):
        for parameter in group["params"]:
            rate[names[id(parameter)]] = group["rate"]
            decay[names[id(parameter)]] = group["weight_decay"]
    assert rate.keys() == set(names.values())
    assert rate["head.weight"] == rate["norm.weight"] == 1
    assert rate["backbone.micro_attention.to_q.weight"] == rate["backbone.encoder.norm.bias"] == 0.5
    assert rate["backbone.encoder.blocks.1.mlp.fc1.weight"] == 0.25
    assert rate["backbone.encoder.blocks.0.mlp.fc1.weight"] == 0.125
    assert rate["backbone.encoder.patch_embed.weight"] == rate["backbone.encoder.contextual"] == 0.0625
    assert decay["head.weight"] == 0.1
    assert decay["head.bias"] == decay["backbone.encoder.contextual"] == decay["norm.weight"] == 0


def test_classes_weigh_the_same_together():
    labels = torch.tensor([0, 0, 0, 2])
    weights = class_weights(labels, 4)
    assert weights[labels].tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])
    assert weights[labels].sum() == len(labels)
    assert weights[1] == weights[3] == 0


def test_both_frames_of_a_pair_are_augmented_alike(recognizer, pairs):
    same = pairs[:, :1].expand_as(pairs)
    config = MicronBERTRecipe(shift=0.2, brightness=0.3)
    augmented = augment(recognizer.backbone, same, config, torch.Generator().manual_seed(0))
    assert torch.equal(augmented[:, 0], augmented[:, 1])
    assert not torch.allclose(augmented[:, 0], recognizer.backbone.normalize(same[:, 0]))


def test_no_augmentation_is_normalising_alone(recognizer, pairs):
    config = MicronBERTRecipe(flip=False, shift=0, brightness=0)
    augmented = augment(recognizer.backbone, pairs, config, torch.Generator())
    torch.testing.assert_close(augmented[:, 1], recognizer.backbone.normalize(pairs[:, 1]))


@pytest.mark.parametrize("balance", ["loss", "sampling", "off"])
@pytest.mark.parametrize("freeze", ["none", "encoder"])
def test_it_learns_what_it_is_shown(recognizer, pairs, balance, freeze):
    config = MicronBERTRecipe(
        epochs=25, batch_size=4, learning_rate=1e-2, balance=balance, freeze=freeze, warmup=0.2
    )
    labels = torch.tensor([0, 1, 2, 1])
    before = {name: x.clone() for name, x in recognizer.backbone.state_dict().items()}
    inputs = features_of(recognizer.eval(), pairs) if config.embeds_once else pairs
    config.fit(recognizer, examples(inputs, labels, embedded=config.embeds_once), seed=0)
    assert logits_of(recognizer, pairs).argmax(1).tolist() == labels.tolist()
    changed = any(not torch.equal(x, before[name]) for name, x in recognizer.backbone.state_dict().items())
    assert changed == (freeze == "none")


def test_the_same_seed_gives_the_same_weights(recognizer, pairs):
    config = MicronBERTRecipe(epochs=2, batch_size=2)
    start = {name: x.clone() for name, x in recognizer.state_dict().items()}
    results = []
    for seed in (0, 0, 1):
        recognizer.load_state_dict(start)
        torch.manual_seed(7 + len(results))  # the global generator decides nothing
        config.fit(recognizer, examples(pairs, torch.tensor([0, 1, 2, 1])), seed=seed)
        results.append(logits_of(recognizer, pairs))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_features_and_pairs_are_not_mistaken(recognizer, pairs):
    labels = torch.tensor([0, 1, 2, 1])
    with pytest.raises(ValueError, match=r"with embeds_once=True, micron-bert learns from features \(n, F\)"):
        MicronBERTRecipe(freeze="encoder").fit(recognizer, examples(pairs, labels), seed=0)
    with pytest.raises(TypeError, match="recognizer is a MicronBERTRecognizer; flow trains a FlowRecognizer"):
        FlowRecipe().fit(recognizer, examples(pairs, labels), seed=0)
    with pytest.raises(ValueError, match="4 clips and 3 labels"):
        MicronBERTRecipe().fit(recognizer, examples(pairs, labels[:3]), seed=0)


def test_the_authors_checkpoint_has_seen_casme2(tmp_path, monkeypatch, small):
    (tmp_path / "released.pth").touch()
    monkeypatch.setattr("micron_model.recognizers.micron_bert.load_model", lambda name: small())
    start = MicronBERTRecipe(model=str(tmp_path / "released.pth")).start()
    assert start.corpus == Corpus(("CASME2",))


def test_one_that_learned_all_clips_of_a_task_says_of_which(small, pairs):
    model, recipe = small(tied_start=True), MicronBERTRecipe(epochs=1, freeze="encoder", regions=2)
    start = start_from(model, Corpus(()))
    expressions = [expression(name=str(i)) for i in range(4)]
    values = {recipe.clip_input(start).key: pairs}
    task = Task(expressions, list("abca"), tuple("abc"), [], values, {"classes": "four clips"})
    trained = finetune(task, recipe, start)
    assert trained.config.trained_on == "four clips"
    assert trained.classes == tuple("abc")
    with pytest.raises(ValueError, match="the task has no values of the input 'onset and apex, 32 pixels'"):
        finetune(task._replace(values={}), recipe, start)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": 0}, "epochs=0; it must be at least 1"),
        ({"shift": 2.0}, r"shift=2.0; it must lie in \[0, 1\]"),
    ],
)
def test_bad_settings_of_fine_tuning_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        MicronBERTRecipe(**setting)
