"""SLSTT's network, against its formulas written out on the names of the files that it reads."""

import math
import pickle
import re

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from micron_model.models.config import preset
from micron_model.models.official.slstt import load_official_slstt
from micron_model.models.official.vit import import_timm_vit
from micron_model.models.slstt import SLSTT, SLSTTConfig, slstt_preset

WIDTH, HIDDEN, DEPTH, PATCH, GRID, CLASSES, LSTM = 128, 320, 2, 4, 3, 3, 24


def _published(*, scale: float = 0.3) -> dict[str, torch.Tensor]:
    """Random weights under the names of the authors' code."""
    shapes = {
        "vit.class_token": (1, 1, WIDTH),
        "vit.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        "vit.patch_embedding.bias": (WIDTH,),
        "vit.positional_embedding.pos_embedding": (1, 1 + GRID**2, WIDTH),
        "vit.norm.weight": (WIDTH,),
        "vit.norm.bias": (WIDTH,),
        "vit.fc.weight": (CLASSES, WIDTH),
        "vit.fc.bias": (CLASSES,),
        "fc1.weight": (10, LSTM),
        "fc1.bias": (10,),
        "fc2.weight": (CLASSES, 10),
        "fc2.bias": (CLASSES,),
    }
    for layer in range(2):
        shapes[f"lstm.weight_ih_l{layer}"] = (4 * LSTM, LSTM if layer else WIDTH)
        shapes[f"lstm.weight_hh_l{layer}"] = (4 * LSTM, LSTM)
        shapes[f"lstm.bias_ih_l{layer}"] = shapes[f"lstm.bias_hh_l{layer}"] = (4 * LSTM,)
    for i in range(DEPTH):
        block = f"vit.transformer.blocks.{i}"
        layers = {"attn.proj_q": (WIDTH, WIDTH), "attn.proj_k": (WIDTH, WIDTH), "attn.proj_v": (WIDTH, WIDTH)}
        layers |= {"proj": (WIDTH, WIDTH), "pwff.fc1": (HIDDEN, WIDTH), "pwff.fc2": (WIDTH, HIDDEN)}
        for name, shape in layers.items():
            shapes[f"{block}.{name}.weight"], shapes[f"{block}.{name}.bias"] = shape, shape[:1]
        for norm in ("norm1", "norm2"):
            shapes[f"{block}.{norm}.weight"] = shapes[f"{block}.{norm}.bias"] = (WIDTH,)
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(shape, generator=generator) * scale / math.sqrt(max(1, math.prod(shape[1:])))
        for name, shape in shapes.items()
    }


def _feature(w: dict[str, torch.Tensor], image: torch.Tensor, approximate: str) -> torch.Tensor:
    """The class token (D,) of an image (3, S, S), one head after another."""

    def layer(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, x):
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    patches = F.conv2d(image[None], w["vit.patch_embedding.weight"], w["vit.patch_embedding.bias"], PATCH)
    x = (
        torch.cat([w["vit.class_token"][0], patches[0].flatten(1).T])
        + w["vit.positional_embedding.pos_embedding"][0]
    )
    for i in range(DEPTH):
        block = f"vit.transformer.blocks.{i}"
        h = norm(f"{block}.norm1", x)
        q, k, v = (layer(f"{block}.attn.proj_{letter}", h) for letter in "qkv")
        heads = [torch.softmax(q[:, s] @ k[:, s].T / 8, 1) @ v[:, s] for s in (slice(0, 64), slice(64, 128))]
        x = x + layer(f"{block}.proj", torch.cat(heads, 1))
        h = F.gelu(layer(f"{block}.pwff.fc1", norm(f"{block}.norm2", x)), approximate=approximate)
        x = x + layer(f"{block}.pwff.fc2", h)
    return norm("vit.norm", x)[0]


def _lstm_logits(w: dict[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    for layer in range(2):
        h = c = torch.zeros(LSTM, dtype=features.dtype)
        outputs = []
        for x in features:
            gates = w[f"lstm.weight_ih_l{layer}"] @ x + w[f"lstm.bias_ih_l{layer}"]
            gates = gates + w[f"lstm.weight_hh_l{layer}"] @ h + w[f"lstm.bias_hh_l{layer}"]
            i, f, g, o = gates.chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        features = torch.stack(outputs)
    hidden = torch.relu(w["fc1.weight"] @ features[-1] + w["fc1.bias"])
    return w["fc2.weight"] @ hidden + w["fc2.bias"]


def _file(tmp_path, tensors, prefix=""):
    path = tmp_path / "model_best.pth"
    state = {prefix + name: x for name, x in tensors.items()}
    moments = {
        "state": {0: {"momentum_buffer": torch.ones(2)}},
        "param_groups": [{"lr": 0.01, "params": [0]}],
    }
    torch.save(
        {"epoch": 7, "arch": "slstt", "state_dict": state, "best_acc1": 61.2, "best_f1": np.float64(0.71),
         "optimizer": moments},
        path,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def clips():
    return torch.randn(2, 5, 3, PATCH * GRID, PATCH * GRID, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_checkpoint_computes_its_formulas(tmp_path, clips, prefix):
    weights = _published()
    network = load_official_slstt(_file(tmp_path, weights, prefix))
    assert not network.training
    exact = {name: x.double() for name, x in weights.items()}
    for clip, features, logits in zip(clips, network.extract_features(clips), network(clips), strict=True):
        expected = torch.stack([_feature(exact, image, "tanh") for image in clip.double()])
        torch.testing.assert_close(features.double(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits.double(), _lstm_logits(exact, expected), atol=1e-5, rtol=1e-5)


def test_the_mean_takes_the_transformers_own_classifier(tmp_path, clips):
    weights = _published()
    network = load_official_slstt(_file(tmp_path, weights), aggregator="mean")
    logits = network.extract_features(clips) @ weights["vit.fc.weight"].T + weights["vit.fc.bias"]
    torch.testing.assert_close(network(clips), logits.mean(1), atol=1e-5, rtol=1e-5)
    spatial = {name: x for name, x in weights.items() if name.startswith("vit.")}
    assert load_official_slstt(_file(tmp_path, spatial)).config.aggregator == "mean"


def test_timms_names_are_the_same_transformer_with_exact_gelu(tmp_path, clips):
    weights = _published()
    timm = {
        "cls_token": weights["vit.class_token"],
        "pos_embed": weights["vit.positional_embedding.pos_embedding"],
    }
    timm |= {"head.weight": torch.zeros(5, WIDTH), "head.bias": torch.zeros(5)}
    for kind in ("weight", "bias"):
        timm[f"patch_embed.proj.{kind}"] = weights[f"vit.patch_embedding.{kind}"]
        timm[f"norm.{kind}"] = weights[f"vit.norm.{kind}"]
        for i in range(DEPTH):
            theirs = f"vit.transformer.blocks.{i}"
            qkv = [weights[f"{theirs}.attn.proj_{letter}.{kind}"] for letter in "qkv"]
            timm[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(qkv)
            timm[f"blocks.{i}.attn.proj.{kind}"] = weights[f"{theirs}.proj.{kind}"]
            for name in ("norm1", "norm2"):
                timm[f"blocks.{i}.{name}.{kind}"] = weights[f"{theirs}.{name}.{kind}"]
            for name in ("fc1", "fc2"):
                timm[f"blocks.{i}.mlp.{name}.{kind}"] = weights[f"{theirs}.pwff.{name}.{kind}"]
    safetensors.torch.save_file(timm, tmp_path / "vit.safetensors")
    torch.save(timm, tmp_path / "vit.pth")
    expected = _feature({name: x.double() for name, x in weights.items()}, clips[0, 0].double(), "none")
    for name in ("vit.safetensors", "vit.pth"):
        network = import_timm_vit(tmp_path / name, SLSTTConfig(classes=5, aggregator="mean"))
        assert network.config.gelu == "exact"
        assert network(clips).shape == (2, 5)
        torch.testing.assert_close(
            network.extract_features(clips)[0, 0].double(), expected, atol=1e-5, rtol=1e-5
        )


def test_the_published_size_is_that_of_the_published_files():
    with torch.device("meta"):
        network = SLSTT(SLSTTConfig())
    own_classifier = 768 * 3 + 3  # the transformer's, which the network with an LSTM does not use
    assert sum(p.numel() for p in network.parameters()) + own_classifier == 93_052_934
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 6_960_131


def test_a_frozen_encoder_stays_as_it_is():
    network = SLSTT(slstt_preset("tiny", frozen=True, dropout=0.5)).train()
    clips = torch.randint(256, (1, 3, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(network.extract_features(clips), network.extract_features(clips))
    network(clips).sum().backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    assert all(p.grad is not None for p in network.aggregator.parameters())


@pytest.mark.parametrize("changes", [{}, {"micron_bert": preset("tiny")}, {"aggregator": "mean"}])
def test_every_weight_of_a_trained_network_is_reached(changes):
    network = SLSTT(slstt_preset("tiny", **changes)).train()
    clips = torch.randint(256, (2, 11, 3, 64, 64), dtype=torch.uint8)
    assert network.extract_features(clips).shape == (2, 11, network.encoder.width)
    network(clips).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_uint8_clips_are_normalised():
    network = SLSTT(slstt_preset("tiny", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))).eval()
    clips = torch.randint(256, (1, 2, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(network(clips), network(clips / 127.5 - 1), atol=1e-5, rtol=1e-5)
    with pytest.raises(
        ValueError, match=re.escape("clips have shape (2, 3, 64, 64); they must be (B, T, 3, S, S)")
    ):
        network(clips[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("vit.norm.bias"), "missing: norm.bias"),
        (
            lambda w: w.pop("vit.transformer.blocks.1.attn.proj_k.weight"),
            "missing: blocks.1.attn.qkv.weight",
        ),
        (lambda w: w.update({"vit.other": torch.ones(1)}), "unexpected: vit.other"),
        (lambda w: w["fc1.bias"].fill_(math.nan), "holds NaN or infinity in fc1.bias"),
        (
            lambda w: w.update({"fc1.bias": torch.ones(3)}),
            re.escape("fc1.bias has the shape (3,), not (10,)"),
        ),
        (lambda w: w.pop("vit.class_token"), "missing: class_token"),
        (lambda w: w.pop("vit.positional_embedding.pos_embedding"), "pos_embed is missing"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path, change, message):
    weights = _published()
    change(weights)
    with pytest.raises(ValueError, match=message):
        load_official_slstt(_file(tmp_path, weights))


class _Runs:
    def __reduce__(self):
        return print, ("executed",)


def test_nothing_in_a_checkpoint_is_executed(tmp_path, capsys):
    path = tmp_path / "bad.pth"
    torch.save({"state_dict": _published(), "arch": _Runs()}, path)
    with pytest.raises(ValueError, match="refused, and nothing in it was executed"):
        load_official_slstt(path)
    path.write_bytes(pickle.dumps(_Runs(), protocol=2))
    with pytest.raises(ValueError, match="refused, and nothing in it was executed"):
        import_timm_vit(path)
    assert capsys.readouterr().out == ""


def test_settings_that_cannot_be_are_refused():
    for settings, message in (
        ({"patch_size": 7}, "patch_size=7 does not divide image_size=384"),
        ({"num_heads": 5}, "num_heads=5 does not divide width=768"),
        ({"aggregator": "gru"}, "aggregator='gru' is not one of 'lstm', 'mean'"),
        ({"dropout": 1.0}, r"dropout=1.0; it must lie in \[0, 1\)"),
        ({"classes": 0}, "classes=0; it must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            SLSTTConfig(**settings)
