"""The recognizer and its fine-tuning."""

import json

import pytest
import torch

from micron_model import preset
from micron_model.recognizers.fitting import (
    FinetuneConfig,
    augment,
    class_weights,
    features_of,
    fit,
    logits_of,
    parameter_groups,
)
from micron_model.recognizers.micron_bert import Recognizer, RecognizerConfig

CLASSES = ("happiness", "surprise", "disgust")


@pytest.fixture
def recognizer(small):
    torch.manual_seed(0)
    return Recognizer.from_pretrained_backbone(small(tied_start=True), CLASSES, regions=2)


@pytest.fixture
def pairs(pair):
    return torch.stack(pair, 1)


def test_it_starts_from_the_pretrained_weights(small):
    model = small(tied_start=True)
    state = Recognizer.from_pretrained_backbone(model, CLASSES, regions=2).backbone.state_dict()
    assert {name.split(".")[0] for name in state} == {"encoder", "micro_attention"}
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in state.items())


@pytest.mark.parametrize("poi", ["soft", "hard", "off"])
def test_features_of_no_change_are_zero(small, pair, poi):
    model = Recognizer.from_pretrained_backbone(small(poi=poi), CLASSES, regions=2).eval()
    onset, apex = pair
    assert model.features(onset, onset).abs().max() < 1e-6
    assert model.features(onset, apex).abs().max() > 1e-4
    assert model.features(onset, apex).shape == (4, 2 * 2 * 32)


def test_features_are_the_mean_of_each_region(small, pair):
    model = Recognizer.from_pretrained_backbone(small(), CLASSES, regions=2, from_rest=False).eval()
    onset, apex = pair
    whole = model.backbone.extract_features(onset, apex)  # a grid of 4 × 4 patches
    grid = whole.transpose(1, 2).unflatten(2, (4, 4))
    features = model.features(onset, apex).unflatten(1, (32, 2, 2))
    torch.testing.assert_close(features[:, :, 0, 1], grid[:, :, :2, 2:].mean((2, 3)))


def test_it_is_saved_and_loaded_with_its_classes(recognizer, pair, tmp_path):
    recognizer.config.trained_on = "something"
    recognizer.save_pretrained(tmp_path)
    loaded = Recognizer.from_pretrained(tmp_path)
    assert loaded.config == recognizer.config
    assert json.loads((tmp_path / "config.json").read_text())["classes"] == list(CLASSES)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(*pair), recognizer.eval()(*pair))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ("a",)}, r"classes=\('a',\); at least 2 different names"),
        ({"classes": ("a", "a")}, "at least 2 different names"),
        ({"classes": CLASSES, "regions": 9}, r"regions=9; it must lie in \[1, 8\]"),
    ],
)
def test_bad_settings_of_a_recognizer_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        RecognizerConfig(**settings, model=preset("tiny"))


# Fine-tuning


def test_rates_decay_from_layer_to_layer(recognizer):
    config = FinetuneConfig(learning_rate=1.0, layer_decay=0.5, weight_decay=0.1)
    rate, decay = {}, {}
    names = {id(p): name for name, p in recognizer.named_parameters()}
    for group in parameter_groups(recognizer, config):
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
    config = FinetuneConfig(shift=0.2, brightness=0.3)
    augmented = augment(recognizer, same, config, torch.Generator().manual_seed(0))
    assert torch.equal(augmented[:, 0], augmented[:, 1])
    assert not torch.allclose(augmented[:, 0], recognizer.backbone.normalize(same[:, 0]))


def test_no_augmentation_is_normalising_alone(recognizer, pairs):
    config = FinetuneConfig(flip=False, shift=0, brightness=0)
    augmented = augment(recognizer, pairs, config, torch.Generator())
    torch.testing.assert_close(augmented[:, 1], recognizer.backbone.normalize(pairs[:, 1]))


@pytest.mark.parametrize("balance", ["loss", "sampling", "off"])
@pytest.mark.parametrize("freeze", ["none", "encoder"])
def test_it_learns_what_it_is_shown(recognizer, pairs, balance, freeze):
    config = FinetuneConfig(
        epochs=25, batch_size=4, learning_rate=1e-2, balance=balance, freeze=freeze, warmup=0.2
    )
    labels = torch.tensor([0, 1, 2, 1])
    before = {name: x.clone() for name, x in recognizer.backbone.state_dict().items()}
    inputs = features_of(recognizer.eval(), pairs) if freeze == "encoder" else pairs
    fit(recognizer, inputs, labels, config)
    assert logits_of(recognizer, pairs).argmax(1).tolist() == labels.tolist()
    changed = any(not torch.equal(x, before[name]) for name, x in recognizer.backbone.state_dict().items())
    assert changed == (freeze == "none")


def test_the_same_seed_gives_the_same_weights(recognizer, pairs):
    config = FinetuneConfig(epochs=2, batch_size=2)
    start = {name: x.clone() for name, x in recognizer.state_dict().items()}
    results = []
    for seed in (0, 0, 1):
        recognizer.load_state_dict(start)
        torch.manual_seed(7 + len(results))  # the global generator decides nothing
        fit(recognizer, pairs, torch.tensor([0, 1, 2, 1]), config, seed=seed)
        results.append(logits_of(recognizer, pairs))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_features_and_pairs_are_not_mistaken(recognizer, pairs):
    with pytest.raises(ValueError, match=r"freeze='encoder' needs features \(n, F\)"):
        fit(recognizer, pairs, torch.tensor([0, 1, 2, 1]), FinetuneConfig(freeze="encoder"))
    with pytest.raises(ValueError, match=r"labels=\(3,\)"):
        fit(recognizer, pairs, torch.tensor([0, 1, 2]), FinetuneConfig())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": 0}, "epochs=0; it must be at least 1"),
        ({"shift": 2.0}, r"shift=2.0; it must lie in \[0, 1\]"),
    ],
)
def test_bad_settings_of_fine_tuning_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        FinetuneConfig(**setting)
