import json

import pytest
import torch
import torch.nn.functional as F

from micron_kernels import topk_mask
from micron_model import MicronBERT, MicronBERTConfig, preset
from micron_model.models.patch_of_interest import random_resized_crop
from micron_model.models.vit import patchify, resample_positions, sincos_positions, unpatchify


def test_base_has_the_published_size():
    with torch.device("meta"):
        model = MicronBERT(preset("base"))

    def millions(module):
        # The authors count the fixed positions, an entry for the contextual token included, as parameters.
        fixed = 785 * 512 if hasattr(module, "positions") else 0
        return round((sum(p.numel() for p in module.parameters()) + fixed) / 1e6, 2)

    assert millions(model.encoder) == 13.11
    assert millions(model.micro_attention) == 1.05
    assert millions(model.decoder) == 13.37
    assert model.config.grid**2 == 784


def test_patches_are_in_the_order_row_column_channel():
    frames = torch.arange(2 * 3 * 16 * 24).reshape(2, 3, 16, 24)
    patches = patchify(frames, 8)
    assert patches.shape == (2, 6, 192)
    row, column, channel, patch = 3, 5, 2, 4  # patch 4 is the second of the second row
    assert patches[1, patch, (row * 8 + column) * 3 + channel] == frames[1, channel, 8 + row, 8 + column]
    assert torch.equal(unpatchify(patches, 8, 2, 3), frames)


def test_positions_are_those_of_the_vision_transformer():
    positions = sincos_positions(8, 5)
    row, column = 3, 2
    frequency = 10000 ** (-1 / 2)  # the second of width/4 = 2 frequencies
    expected = [f(torch.tensor(x)) for x in (column, row) for f in (torch.sin, torch.cos)]
    assert positions.shape == (25, 8)
    torch.testing.assert_close(positions[row * 5 + column, ::2], torch.stack(expected).float())
    torch.testing.assert_close(positions[row * 5 + column, 1], torch.tensor(column * frequency).sin())
    assert resample_positions(positions, 5, 5) is positions
    assert resample_positions(positions, 3, 7).shape == (21, 8)


@pytest.mark.parametrize("aggregation", ["mse", "dino", "off"])
@pytest.mark.parametrize("poi", ["soft", "hard", "off"])
def test_shapes_and_gradients(small, pair, poi, aggregation):
    model = small(poi=poi, aggregation=aggregation)
    frames, later = pair
    result = model({"frames": frames, "later": later}, torch.Generator().manual_seed(0))
    assert result["swapped"].shape == (4, 3, 32, 32)
    assert result["reconstruction"].shape == (4, 16, 192)
    for name in ("swap", "diagonal", "scores"):
        assert result[name].shape == (4, 16)
    for name in ("loss", "loss_reconstruction", "loss_aggregation", "contextual_variance"):
        assert result[name].shape == ()
    result["loss"].backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
        elif not (aggregation == "off" and poi != "soft" and name.startswith("encoder.contextual")):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_the_parts_compose_to_forward(small, pair):
    model = small(aggregation="off")
    frames, later = pair
    swap = torch.rand(4, 16) < 0.5
    result = model({"frames": frames, "later": later, "swap": swap})
    pixels = swap.reshape(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    swapped = torch.where(pixels, later, frames)
    _, swapped_patches = model.forward_encoder(swapped)
    _, later_patches = model.forward_encoder(later)
    scores = model.forward_poi(later)
    assert torch.allclose(scores, model.forward_poi(model.encode(later)))
    latent, diagonal = model.forward_micro_attention(swapped_patches, later_patches, scores)
    reconstruction = model.forward_decoder(latent)
    loss = model.forward_loss(frames, reconstruction)
    torch.testing.assert_close(result["swapped"], model.normalize(swapped))
    torch.testing.assert_close(result["diagonal"], diagonal.detach())
    torch.testing.assert_close(result["reconstruction"], reconstruction.detach())
    torch.testing.assert_close(result["loss"], loss)


def test_scores_are_a_row_of_the_last_attention(small, pair):
    model = small()
    block = model.encoder.blocks[-1]
    seen = {}
    block.norm1.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    scores = model.forward_poi(pair[0])
    q, k, _ = block.attn.qkv(block.norm1(seen["x"])).unflatten(2, (3, 4, 8)).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1)
    torch.testing.assert_close(scores, attention[:, :, 0, 1:].mean(1))


@pytest.mark.parametrize("roles", ["paper", "code"])
@pytest.mark.parametrize("diag_att", [True, False])
def test_roles_of_micro_attention(small, roles, diag_att):
    model = small(roles=roles, diag_att=diag_att)
    swapped, later = torch.randn(2, 3, 16, 32)
    latent, diagonal = model.forward_micro_attention(swapped, later)
    m = model.micro_attention
    query, key = (later, swapped) if roles == "paper" else (swapped, later)
    attention = (m.to_q(query) @ m.to_k(key).transpose(1, 2) / 32**0.5).softmax(-1)
    if diag_att:
        expected = m.proj(attention.diagonal(dim1=1, dim2=2)[..., None] * m.to_v(swapped))
    else:
        expected = m.proj(attention @ m.to_v(swapped))
    torch.testing.assert_close(latent, expected)
    torch.testing.assert_close(diagonal, attention.diagonal(dim1=1, dim2=2))


@pytest.mark.parametrize("diag_att", [True, False])
def test_a_hard_patch_of_interest_equals_a_mask(small, diag_att):
    hard, soft = (small(poi=poi, poi_ratio=0.3, diag_att=diag_att) for poi in ("hard", "soft"))
    swapped, later, scores = torch.randn(2, 16, 32), torch.randn(2, 16, 32), torch.rand(2, 16)
    mask, _ = topk_mask(scores, 0.3)
    latent, diagonal = hard.forward_micro_attention(swapped, later, scores)
    expected, every = soft.forward_micro_attention(swapped, later, mask / 16)
    torch.testing.assert_close(latent, expected)
    torch.testing.assert_close(diagonal, every * mask)


def test_tied_start_makes_keys_equal_queries(small):
    tied, usual = small(tied_start=True).micro_attention, small().micro_attention
    assert torch.equal(tied.to_k.weight, tied.to_q.weight)
    assert tied.to_k.weight is not tied.to_q.weight
    assert not torch.equal(usual.to_k.weight, usual.to_q.weight)


def test_the_loss_is_the_mean_over_all_patches(small):
    model = small()
    frames, reconstruction = torch.randn(2, 3, 32, 32), torch.randn(2, 16, 192)
    target = model.patchify(frames)
    torch.testing.assert_close(model.forward_loss(frames, reconstruction), F.mse_loss(reconstruction, target))
    weight = torch.rand(2, 16)
    by_patch = (reconstruction - target).square().mean(2)
    torch.testing.assert_close(model.forward_loss(frames, reconstruction, weight), (weight * by_patch).mean())
    normalized = small(normalized_target=True)
    standard = (target - target.mean(2, keepdim=True)) / target.std(2, keepdim=True)
    torch.testing.assert_close(
        normalized.forward_loss(frames, standard), torch.tensor(0.0), atol=1e-6, rtol=0
    )


def test_motion_weights_what_moved(small, pair):
    frames, later = pair
    later = frames.clone()
    later[:, :, :8, :8] = 255 - later[:, :, :8, :8]  # only the first patch differs
    batch = {"frames": frames, "later": later, "swap": torch.zeros(4, 16, dtype=torch.bool)}
    result = small(reconstruction_weight="motion", aggregation="off")(batch)
    model = small()
    error = (result["reconstruction"] - model.patchify(model.normalize(frames))).square().mean(2)
    torch.testing.assert_close(result["loss_reconstruction"], error[:, 0].mean())


def test_uint8_and_normalised_frames_give_the_same(small, pair):
    model = small()
    for uint8, floating in zip(model.encode(pair[0]), model.encode(model.normalize(pair[0])), strict=True):
        torch.testing.assert_close(uint8, floating)
    torch.testing.assert_close(model.denormalize(model.normalize(pair[0])), pair[0] / 255)


def test_other_sizes_that_patches_divide(small, pair):
    model = small()
    frames = F.interpolate(pair[0].float(), (48, 24)).to(torch.uint8)
    result = model({"frames": frames, "later": frames})
    assert result["reconstruction"].shape == (4, 18, 192)
    with pytest.raises(ValueError, match=r"multiples of the patch size 8"):
        model.encode(frames[..., :20])


def test_features_are_trainable_through_everything(small, pair):
    model = small()
    features = model.extract_features(*pair)
    assert features.shape == (4, 16, 32)
    features.square().sum().backward()
    for part in (model.encoder, model.micro_attention):
        assert all(
            p.grad is not None and p.grad.abs().sum() > 0
            for n, p in part.named_parameters()
            if n != "to_k.bias"
        )


def test_nan_frames_give_a_nan_loss_and_no_crash(small, pair):
    model = small()
    frames = model.normalize(pair[0])
    frames[0, 0, 0, 0] = torch.nan
    assert model({"frames": frames, "later": model.normalize(pair[1])})["loss"].isnan()


def test_the_teacher_starts_as_a_frozen_copy_and_follows(small, pair):
    model = small(aggregation="dino")
    dino = model.dino
    pairs = list(zip(dino.teacher_encoder.parameters(), model.encoder.parameters(), strict=True))
    assert all(torch.equal(t, s) and not t.requires_grad for t, s in pairs)
    with torch.no_grad():
        for _, student in pairs:
            student.add_(1)
    before = [t.clone() for t, _ in pairs]
    model.update_teacher(0.0)
    for (teacher, student), old in zip(pairs, before, strict=True):
        torch.testing.assert_close(teacher, old + 0.004 * (student - old))
    after = [t.clone() for t, _ in pairs]
    model.update_teacher(1.0)
    assert all(torch.equal(t, a) for (t, _), a in zip(pairs, after, strict=True))


def test_dino_centres_the_teacher_in_training_only(small, pair):
    model = small(aggregation="dino")
    batch = {"frames": pair[0], "later": pair[1]}
    model.eval()(batch)
    model.update_teacher(0.0)
    assert (model.dino.center == 0).all()
    model.train()(batch)
    model.forget_step()
    model.update_teacher(0.0)
    assert (model.dino.center == 0).all()
    outputs = []
    model.dino.teacher_head.register_forward_hook(lambda *call: outputs.append(call[2]))
    for seed in (0, 1):  # two batches of one step
        model(batch, torch.Generator().manual_seed(seed))
    model.update_teacher(0.0)
    torch.testing.assert_close(model.dino.center, 0.1 * torch.cat(outputs).mean(0))


def test_crops_lie_inside_the_frame():
    ramp = torch.linspace(0, 1, 40).expand(64, 1, 40, 40)
    crops = random_resized_crop(ramp, 16, (0.25, 0.25), torch.Generator().manual_seed(0))
    assert crops.shape == (64, 1, 16, 16)
    width = crops[:, 0, 0, -1] - crops[:, 0, 0, 0]
    torch.testing.assert_close(
        width, torch.full((64,), 0.5 * 15 / 16 * 40 / 39)
    )  # half the side, pixel centres
    assert crops[:, 0, 0, 0].std() > 0.05
    whole = random_resized_crop(ramp, 40, (1.0, 1.0), None)
    torch.testing.assert_close(whole, ramp, atol=1e-5, rtol=0)


def test_the_same_generator_gives_the_same_step(small, pair):
    model = small()
    batch = {"frames": pair[0], "later": pair[1]}
    first, again = (model(batch, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("aggregation", ["mse", "dino"])
def test_save_and_load(small, pair, tmp_path, aggregation):
    model = small(aggregation=aggregation, poi="hard", mean=(0.1, 0.2, 0.3)).eval()
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    assert json.loads((tmp_path / "config.json").read_text())["poi"] == "hard"
    loaded = MicronBERT.from_pretrained(tmp_path).eval()
    assert loaded.config == model.config
    assert torch.equal(loaded.extract_features(*pair), model.extract_features(*pair))


def test_compiles_as_one_graph(small, pair):
    model = small(aggregation="off")
    batch = {"frames": pair[0], "later": pair[1], "swap": torch.rand(4, 16) < 0.5}
    expected = model(batch)
    expected["loss"].backward()
    gradient = model.micro_attention.to_q.weight.grad.clone()
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(batch)
    compiled["loss"].backward()
    torch.testing.assert_close(compiled["loss"], expected["loss"])
    torch.testing.assert_close(model.micro_attention.to_q.weight.grad, gradient)


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_config_round_trip(name):
    config = preset(name, poi="hard")
    assert MicronBERTConfig(**json.loads(json.dumps(config.__dict__))) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"image_size": 60}, "patch_size=8 does not divide image_size=60"),
        ({"num_heads": 3}, "num_heads=3 does not divide width=128"),
        ({"width": 6, "num_heads": 1}, "width=6; 2-D sine-cosine positions need a multiple of 4"),
        ({"roles": "both"}, "roles='both' is not one of 'paper', 'code'"),
        ({"poi": None}, "poi=None is not one of"),
        ({"swap_ratio": 2}, r"swap_ratio=2; it must lie in \[0, 1\]"),
        ({"poi_ratio": 0}, "poi_ratio=0; it must lie in"),
    ],
)
def test_bad_settings_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        preset("tiny", **overrides)


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="preset 'huge' is not one of base, tiny"):
        preset("huge")


@pytest.mark.parametrize("poi", ["soft", "hard", "off"])
def test_a_folded_model_is_the_same_function(small, pair, poi):
    model = small(poi=poi).double().eval()
    onset, apex = (model.normalize(x).double() for x in pair)
    before = model.compare(onset, apex)
    model.fold()
    for folded, whole in zip(model.compare(onset, apex), before, strict=True):
        torch.testing.assert_close(folded, whole)
    with pytest.raises(ValueError, match="folded already"):
        model.fold()
    with pytest.raises(ValueError, match="only diagonal micro-attention can be folded"):
        small(diag_att=False).fold()
