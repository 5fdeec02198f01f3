"""Import of the authors' layout, on checkpoints that the tests build, against the formula written out."""

import argparse
import os
import pickle

import pytest
import torch
import torch.nn.functional as F

from micron_model import load_official
from micron_model.models.vit import sincos_positions

WIDTH, DEPTH, SIZE, PATCH, HEADS = 32, 2, 32, 8, 4


def official_state(convolution=True):
    """Random tensors under the authors' names."""

    def linear(name, out, into):
        return {f"{name}.weight": torch.randn(out, into) * into**-0.5, f"{name}.bias": torch.randn(out) * 0.1}

    def norm(name):
        return {f"{name}.weight": 1 + torch.randn(WIDTH) * 0.1, f"{name}.bias": torch.randn(WIDTH) * 0.1}

    def blocks(name):
        state = {}
        for i in range(DEPTH):
            block = f"{name}.{i}"
            state |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
            state |= linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH) | linear(
                f"{block}.attn.proj", WIDTH, WIDTH
            )
            state |= linear(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH) | linear(
                f"{block}.mlp.fc2", WIDTH, 4 * WIDTH
            )
        return state

    positions = torch.cat([torch.zeros(1, WIDTH), sincos_positions(WIDTH, SIZE // PATCH)])[None]
    state = {"backbone.cls_token": torch.randn(1, 1, WIDTH), "backbone.pos_embed": positions}
    state |= linear("backbone.patch_embed.proj", WIDTH, 3 * PATCH**2)
    if convolution:
        shape = (WIDTH, 3, PATCH, PATCH)
        state["backbone.patch_embed.proj.weight"] = torch.randn(shape) * 0.1
    state |= blocks("backbone.blocks") | norm("backbone.norm")
    for name in ("to_q", "to_k", "to_v", "proj"):
        state |= linear(f"att.{name}", WIDTH, WIDTH)
    state |= linear("decoder_embed", WIDTH, WIDTH) | {"decoder_pos_embed": positions.clone()}
    state |= blocks("decoder_blocks") | norm("decoder_norm") | linear("decoder_pred", 3 * PATCH**2, WIDTH)
    state |= {f"student.backbone.{n}": x for n, x in linear("x", 4, 4).items()}
    state |= {f"teacher.head.{n}": x for n, x in linear("x", 4, 4).items()}
    return state | {"dino_loss_fn.center": torch.zeros(1, 128)}


def official_forward(state, frame, other, diag_att):
    """(tokens of frame, reconstruction) by the formulas of models.md, written out on the named tensors."""

    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def transformer(name, x):
        for i in range(DEPTH):
            block = f"{name}.{i}"
            qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x))
            q, k, v = qkv.unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            attention = (q @ k.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5).softmax(-1)
            x = x + linear(f"{block}.attn.proj", (attention @ v).transpose(1, 2).flatten(2))
            x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))))
        return x

    def backbone(frame):
        name = "backbone.patch_embed.proj"
        x = (
            F.conv2d(frame, state[f"{name}.weight"], state[f"{name}.bias"], stride=PATCH)
            .flatten(2)
            .transpose(1, 2)
        )
        x = (
            torch.cat([state["backbone.cls_token"].expand(len(x), -1, -1), x], 1)
            + state["backbone.pos_embed"]
        )
        return norm("backbone.norm", transformer("backbone.blocks", x))[:, 1:]

    x, y = backbone(frame), backbone(other)
    attention = (linear("att.to_q", x) @ linear("att.to_k", y).transpose(1, 2) * WIDTH**-0.5).softmax(-1)
    value = linear("att.to_v", x)
    attended = attention.diagonal(dim1=1, dim2=2)[..., None] * value if diag_att else attention @ value
    z = linear("decoder_embed", linear("att.proj", attended)) + state["decoder_pos_embed"][:, 1:]
    return x, linear("decoder_pred", norm("decoder_norm", transformer("decoder_blocks", z)))


def save(path, state, prefix="", **arguments):
    named = {prefix + name: x for name, x in state.items()}
    content = {"model": named, "args": argparse.Namespace(model_name="mae", **arguments), "epoch": 199}
    torch.save(content, path)
    return path


@pytest.mark.parametrize("diag_att", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_computes_what_the_authors_code_computes(tmp_path, diag_att, prefix):
    state = official_state()
    model = load_official(save(tmp_path / "m.pth", state, prefix, diag_att=diag_att))
    frame, other = torch.randn(2, 2, 3, SIZE, SIZE)
    tokens, reconstruction = official_forward(state, frame, other, diag_att)
    _, patches = model.forward_encoder(frame)
    _, other_patches = model.forward_encoder(other)
    latent, _ = model.forward_micro_attention(patches, other_patches)
    torch.testing.assert_close(patches, tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.forward_decoder(latent), reconstruction, rtol=1e-4, atol=1e-5)
    assert model.config.roles == "code"
    assert model.config.diag_att == diag_att
    assert not model.training


def test_linear_and_convolutional_patch_embeddings_are_the_same_weights(tmp_path):
    state = official_state()
    convolution = load_official(save(tmp_path / "c.pth", state))
    weight = state["backbone.patch_embed.proj.weight"].permute(0, 2, 3, 1).reshape(WIDTH, -1)
    linear = load_official(save(tmp_path / "l.pth", state | {"backbone.patch_embed.proj.weight": weight}))
    frame = torch.randn(1, 3, SIZE, SIZE)
    assert torch.equal(convolution.encode(frame).patches, linear.encode(frame).patches)


def test_a_bare_state_dict_and_overrides(tmp_path):
    torch.save(official_state(), tmp_path / "m.pth")
    model = load_official(tmp_path / "m.pth", roles="paper", poi="soft", aggregation="dino", dino_hidden=32)
    assert (model.config.roles, model.config.poi) == ("paper", "soft")
    teacher, student = model.dino.teacher_encoder.parameters(), model.encoder.parameters()
    assert all(torch.equal(t, s) for t, s in zip(teacher, student, strict=True))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path, legacy):
    proof, path = tmp_path / "executed", tmp_path / "m.pth"
    content = {"model": official_state(), "args": Malicious(proof)}
    if legacy:
        path.write_bytes(pickle.dumps({"model": {}, "args": Malicious(proof)}, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match="refused, and nothing in it was executed"):
        load_official(path)
    assert not proof.exists()


def damaged(path):
    save(path, official_state())
    path.write_bytes(path.read_bytes()[:1000])


def other_positions(path):
    state = official_state()
    state["backbone.pos_embed"] += 0.5
    save(path, state)


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (lambda path: None, FileNotFoundError, "no such file"),
        (lambda path: path.write_bytes(b""), ValueError, r"is empty \(0 bytes\)"),
        (lambda path: path.write_bytes(b"not a checkpoint at all"), ValueError, "refused"),
        (damaged, ValueError, "refused"),
        (lambda path: torch.save([1, 2], path), ValueError, "holds a list"),
        (
            lambda path: torch.save({"model": {"conv1.weight": torch.ones(1)}}, path),
            ValueError,
            "conv1.weight",
        ),
        (
            lambda path: torch.save({"model": {}}, path),
            ValueError,
            "is missing: not a checkpoint of the authors",
        ),
        (other_positions, ValueError, "does not hold the fixed sine-cosine positions"),
        (
            lambda path: save(path, {k: v for k, v in official_state().items() if k != "att.to_q.bias"}),
            ValueError,
            "does not fit a μ-BERT of its size: missing: .*to_q.bias",
        ),
    ],
)
def test_what_is_not_such_a_checkpoint_is_named(tmp_path, write, error, message):
    path = tmp_path / "m.pth"
    write(path)
    with pytest.raises(error, match=message):
        load_official(path)
